"""Whether a compiled training left what Keras' own leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.selfcheck.cases import Case
from gridfleet.worker.compiled_fit.selfcheck.training import Outcome, train


@dataclass(frozen=True)
class Verdict:
    """What comes of comparing a compiled training with Keras' own.

    Parameters
    ----------
    difference : float
        The largest, relative to values above one; infinite where shapes, names or printed lines differ.
    where : str
        What differs most.
    tolerance : float
        The difference that is in order.
    expected_mode, mode : FitMode or None
        How ``fit`` should run, and how it ran.
    fallback_reason : str or None
        Why one of ``fit``, ``evaluate`` and ``predict`` ran as Keras runs it, or ``fit`` not in XLA.
    known_fallbacks : tuple of str
        How reasons begin that are in order.
    """

    difference: float
    where: str
    tolerance: float
    expected_mode: FitMode
    mode: FitMode | None
    fallback_reason: str | None
    known_fallbacks: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the result is another one than Keras'."""
        return not self.difference <= self.tolerance

    @property
    def fell_back(self) -> bool:
        """Whether Keras' own loop ran, or the graph's where XLA's should have."""
        reason = self.fallback_reason
        is_known = reason is None or reason.startswith(("not in XLA", *self.known_fallbacks))
        return self.mode is not self.expected_mode or not is_known

    def __str__(self) -> str:
        if self.differs:
            return f"DIFFERS {self.difference:.1e} in {self.where} ({self.mode}; {self.fallback_reason})"
        if self.fell_back:
            return f"fell back: {self.fallback_reason}"
        return f"ok {self.mode}{f' {self.difference:.1e}' if self.difference else ''}"


def check(case: Case, mode: FitMode) -> Verdict:
    """Train by Keras and compiled, and compare.

    Parameters
    ----------
    case : Case
    mode : FitMode
        ``exact`` or ``xla``.

    Returns
    -------
    Verdict
    """
    expected, found = train(case, FitMode.KERAS), train(case, mode)
    return compare(case, mode, expected=expected, found=found)


def compare(case: Case, mode: FitMode, *, expected: Outcome, found: Outcome) -> Verdict:
    """Compare a compiled training with Keras' own.

    Parameters
    ----------
    case : Case
    mode : FitMode
        What was asked for: in XLA's, small differences are in order.
    expected, found : Outcome
        Of Keras' own training and of the compiled one.

    Returns
    -------
    Verdict
    """
    differences = dict.fromkeys(expected.values.keys() ^ found.values.keys(), np.inf)
    if expected.texts != found.texts:
        differences["what is printed, named or written"] = np.inf
    for name in expected.values.keys() & found.values.keys():
        differences[name] = difference(expected.values[name], found.values[name])
    where = max(differences, key=lambda name: differences[name])
    return Verdict(
        differences[where],
        where,
        case.tolerance(mode),
        _expected_mode(case, mode, found.report.mode),
        found.report.mode,
        found.report.fallback_reason,
        _known_fallbacks(case),
    )


def _expected_mode(case: Case, mode: FitMode, found: FitMode | None) -> FitMode:
    if case.option.runs_by_keras:
        return FitMode.KERAS
    if case.family.may_leave_xla and found is FitMode.EXACT:
        return FitMode.EXACT
    is_for_xla = case.option.runs_in_xla and case.family.runs_in_xla
    return mode if is_for_xla and case.optimizer not in case.family.leaves_xla_with else FitMode.EXACT


def _known_fallbacks(case: Case) -> tuple[str, ...]:
    if case.option.runs_by_keras:
        return ("",)  # whatever the reason
    return () if case.option.known_fallback is None else (case.option.known_fallback,)


def difference(expected: Any, found: Any) -> float:
    """Return by how much two arrays differ at most, relative to values above one.

    Parameters
    ----------
    expected, found : array-like

    Returns
    -------
    float
        0 where they are equal (NaN is equal to NaN), infinity where shapes differ or only one is finite.
    """
    expected, found = np.asarray(expected, dtype="float64"), np.asarray(found, dtype="float64")
    if np.array_equal(expected, found, equal_nan=True):
        return 0.0
    finite = np.isfinite(expected)
    if expected.shape != found.shape or not np.array_equal(
        np.where(finite, 0.0, expected), np.where(np.isfinite(found), 0.0, found), equal_nan=True
    ):
        return float("inf")
    gaps = np.abs(expected[finite] - found[finite]) / np.maximum(np.abs(expected[finite]), 1.0)
    return float(gaps.max())
