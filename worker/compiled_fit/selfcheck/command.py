"""Whether compiled fits still equal Keras' own: a tool to run against a new release of Keras or TensorFlow.

``python -m gridfleet.worker.compiled_fit.selfcheck`` trains every model family with every optimizer and every option of
``fit`` twice from one seed, by Keras itself and inside `compiled_fit`, and compares all that can be seen of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.scope import compiled_fit
from gridfleet.worker.compiled_fit.selfcheck.cases import (
    FAMILIES,
    N_ROWS,
    OPTIMIZERS,
    Case,
    data_cases,
    other_cases,
    quick_data_cases,
)
from gridfleet.worker.trial.model_memory import forget_models

#: Every training starts from it.
SEED = 3
#: As few epochs as show ``validation_freq=2``.
EPOCHS, BATCH_SIZE = 3, 16
#: Times in the lines that Keras prints.
PRINTED_TIMES = re.compile(r"\b\d+(s|ms|us)(/step|/epoch)?\b")


@dataclass(frozen=True)
class Outcome:
    """All that a training leaves behind.

    Parameters
    ----------
    values : dict of str to ndarray
        Variables of model and optimizer, History, predictions, results of ``evaluate``, numbers in files.
    told : tuple of str
        What either is equal or is not: keys of the History in their order, names of files, printed lines.
    report : FitReport
        How it ran.
    """

    values: dict[str, Any]
    told: tuple[str, ...]
    report: FitReport


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


def train(case: Case, mode: FitMode) -> Outcome:
    """Train a model from `SEED`, predict with it and evaluate it.

    Parameters
    ----------
    case : Case
    mode : FitMode
        ``keras`` leaves Keras as it is.

    Returns
    -------
    Outcome
    """
    printed, data = io.StringIO(), case.family.draw(np.random.default_rng(SEED), N_ROWS)
    with _session(case.option.policy), tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(printed):
        folder = Path(name)
        with contextlib.nullcontext(FitReport()) if mode is FitMode.KERAS else compiled_fit(mode) as report:
            keras.utils.set_random_seed(SEED)
            model = _compiled_model(case)
            arguments = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "verbose": 0}
            history = model.fit(data.x, data.y, **(arguments | case.option.fit_arguments(data, folder))).history
            values = _values_of_fit(model, history)
            values["predict"] = model.predict(data.x, batch_size=BATCH_SIZE, verbose=0)
            values["evaluate"] = model.evaluate(data.x, data.y, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
        files = sorted(folder.iterdir())
        values |= {path.name: _numbers_in(path, model) for path in files}
    told = (*history, *(path.name for path in files), PRINTED_TIMES.sub("", printed.getvalue()))
    return Outcome(_flat(values), told, report)


@contextlib.contextmanager
def _session(policy: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    forget_models(keep_programs=True)
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _compiled_model(case: Case) -> Any:
    model = (case.option.build or case.family.build)()
    optimizer = OPTIMIZERS[case.optimizer](**case.option.optimizer_arguments())
    model.compile(optimizer, **case.family.compile_arguments, **case.option.compile_arguments)
    return model


def _values_of_fit(model: Any, history: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "variable": {
            f"{place}": keras.ops.convert_to_numpy(variable) for place, variable in enumerate(model.variables)
        },
        "optimizer": {
            f"{place}": keras.ops.convert_to_numpy(variable) for place, variable in enumerate(model.optimizer.variables)
        },
        "history": {name: np.array(values) for name, values in history.items()},
        "metric": model.get_metrics_result(),
    }


def _numbers_in(path: Path, model: Any) -> Any:
    if path.suffix == ".csv":
        return np.genfromtxt(path, delimiter=",", skip_header=1)
    model.load_weights(path)
    return {f"{place}": np.asarray(weight) for place, weight in enumerate(model.get_weights())}


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Return nested values by the path to each."""
    if not isinstance(values, dict):
        return {name: np.asarray(values)}
    return {
        path: value for key, part in values.items() for path, value in _flat(part, f"{name} {key}".lstrip()).items()
    }


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
    if expected.told != found.told:
        differences["what is printed, named or written"] = np.inf
    for name in expected.values.keys() & found.values.keys():
        differences[name] = difference(expected.values[name], found.values[name])
    where = max(differences, key=lambda name: differences[name])
    return Verdict(
        differences[where],
        where,
        case.tolerance(mode),
        mode if case.option.runs_in_xla else FitMode.EXACT,
        found.report.mode,
        found.report.fallback_reason,
        () if case.option.known_fallback is None else (case.option.known_fallback,),
    )


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


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Check cases and print a line for each.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Instead of those of the command line.

    Returns
    -------
    int
        The exit status: 1 if a case differs from Keras or fell back to it, else 0.
    """
    chosen = _parse(arguments)
    data = quick_data_cases() if chosen.quick else data_cases()
    cases = [
        case
        for case in (*data, *other_cases())
        if case.family.name in chosen.family and case.optimizer in chosen.optimizer
    ]
    return _run(cases, FitMode(chosen.mode))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gridfleet.worker.compiled_fit.selfcheck", description=__doc__)
    families = [family.name for family in FAMILIES]
    parser.add_argument("--mode", choices=["exact", "xla"], default="exact", help="default: exact")
    parser.add_argument("--family", nargs="+", metavar="NAME", choices=families, default=families)
    parser.add_argument("--optimizer", nargs="+", metavar="NAME", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--quick", action="store_true", help="each pair of family and optimizer with one option")
    return parser.parse_args(arguments)


def _run(cases: Iterable[Case], mode: FitMode) -> int:
    started, counts = time.monotonic(), {"ok": 0, "differ": 0, "fell back": 0}
    for case in cases:
        verdict = check(case, mode)
        counts["differ" if verdict.differs else "fell back" if verdict.fell_back else "ok"] += 1
        _print(f"{case.family.name:20} {case.optimizer:8} {case.option.name:24} {verdict}")
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    _print(f"{told} ({mode}, {versions}, {time.monotonic() - started:.0f} s)")
    return 0 if counts["ok"] == sum(counts.values()) else 1


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
