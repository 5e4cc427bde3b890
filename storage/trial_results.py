"""What a worker found out about a trial, and the rows that it becomes. Numbers that are not finite become NULL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Characters of a stored traceback; the end is kept, for there the error stands.
MAX_ERROR = 8_192
#: Columns of ``trials`` that say where the time of the fits went.
PHASES = ("build_time", "trace_time", "compile_time", "train_time", "score_time")
#: Columns of ``trials`` that a result fills.
RESULT_COLUMNS = (
    "mean_test_score",
    "std_test_score",
    "mean_fit_time",
    "error_type",
    "error",
    "exception",
    "fit_mode",
    "fit_fallback_reason",
    "peak_memory_mb",
    "seed",
    "environment_digest",
    "pruned_split",
    "pruned_epoch",
    "pruned_value",
    *PHASES,
)
#: Warnings of a trial that are stored, and characters of each.
MAX_WARNINGS = 50
MAX_WARNING = 2_048
#: ``error_type`` of a trial whose mean score is NaN or infinite though nothing was raised.
NON_FINITE = "non_finite_score"
#: Reason of a score that is 0 in SQL, and was -0.0.
MINUS_ZERO = "-0"


@dataclass(frozen=True, slots=True)
class SplitResult:
    """One metric on one split; scores may be NaN or infinite."""

    split: int
    metric: str
    test_score: float
    train_score: float | None
    fit_time: float
    score_time: float
    n_train: int
    n_test: int
    error: str | None = None
    score_error: str | None = None


@dataclass(frozen=True, slots=True)
class CurveResult:
    """One learning curve, with a value for each epoch; None: what the fit noted of it is no number."""

    split: int
    metric: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class WarningResult:
    """A warning, the module that gave it, and how many of the trial's fits gave it."""

    category: str
    message: str
    module: str | None
    n_fits: int


@dataclass(frozen=True, slots=True)
class PrunedResult:
    """Where a trial was stopped: in a split after an epoch, or at its end (None), and the value that was compared."""

    split: int
    epoch: int | None
    value: float | None


@dataclass(frozen=True, slots=True)
class ModelResult:
    """A model that a refit fitted, as it is stored: its content in parts, and what is signed of it."""

    content: Sequence[memoryview]
    number: int
    digest: str
    size: int
    signature: str


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a worker found out about a trial.

    ``error_type`` and ``error`` are those of the first split whose fit raised, or else whose scorer did; the trial
    is then ``failed``, and its scores, if any, are made of ``error_score`` as scikit-learn does it. ``exception``
    is what scikit-learn lets out of ``fit``, as `storage.exceptions` writes it. One with ``pruned`` was stopped, for
    others did better.
    """

    splits: Sequence[SplitResult]
    curves: Sequence[CurveResult] = field(default_factory=tuple)
    warnings: Sequence[WarningResult] = field(default_factory=tuple)
    mean_test_score: float | None = None
    std_test_score: float | None = None
    mean_fit_time: float | None = None
    error_type: str | None = None
    error: str | None = None
    exception: str | None = None
    fit_mode: str | None = None
    fit_fallback_reason: str | None = None
    build_time: float | None = None
    trace_time: float | None = None
    compile_time: float | None = None
    train_time: float | None = None
    score_time: float | None = None
    peak_memory_mb: int | None = None
    model: ModelResult | None = None
    seed: int | None = None
    environment_digest: str | None = None
    pruned: PrunedResult | None = None


def shorten(error: str | None, most: int = MAX_ERROR) -> str | None:
    """Cut a traceback to what is stored, keeping its end; what no database takes is shown as an escape."""
    if error is None:
        return None
    clean = error.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= most else "…" + clean[-(most - 1) :]


def result_row(result: TrialResult) -> dict[str, Any]:
    """Return what `RESULT_COLUMNS` of a trial's own row get."""
    pruned = result.pruned
    return {
        "mean_test_score": _finite(result.mean_test_score),
        "std_test_score": _finite(result.std_test_score),
        "mean_fit_time": _finite(result.mean_fit_time),
        "error_type": result.error_type,
        "error": shorten(result.error),
        "exception": result.exception,
        "fit_mode": result.fit_mode,
        "fit_fallback_reason": shorten(result.fit_fallback_reason),
        "peak_memory_mb": result.peak_memory_mb,
        "seed": result.seed,
        "environment_digest": result.environment_digest,
        "pruned_split": None if pruned is None else pruned.split,
        "pruned_epoch": None if pruned is None else pruned.epoch,
        "pruned_value": None if pruned is None else _finite(pruned.value),
        **{name: _finite(getattr(result, name)) for name in PHASES},
    }


def split_row(trial_id: int, result: SplitResult) -> dict[str, Any]:
    """Return the row of ``split_scores``."""
    return {
        "trial_id": trial_id,
        "split": result.split,
        "metric": result.metric,
        "test_score": _finite(result.test_score),
        "train_score": _finite(result.train_score),
        "test_score_reason": _reason(result.test_score),
        "train_score_reason": _reason(result.train_score),
        "fit_time": result.fit_time,
        "score_time": result.score_time,
        "n_train": result.n_train,
        "n_test": result.n_test,
        "error": shorten(result.error),
        "score_error": shorten(result.score_error),
    }


def curve_row(trial_id: int, result: CurveResult) -> dict[str, Any]:
    """Return the row of ``curves``."""
    return {
        "trial_id": trial_id,
        "split": result.split,
        "metric": result.metric,
        "values": [_finite(value) for value in result.values],
    }


def warning_row(trial_id: int, position: int, result: WarningResult) -> dict[str, Any]:
    """Return the row of ``trial_warnings``."""
    return {
        "trial_id": trial_id,
        "position": position,
        "category": shorten(result.category, MAX_WARNING),
        "message": shorten(result.message, MAX_WARNING),
        "module": shorten(result.module, MAX_WARNING),
        "n_fits": result.n_fits,
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _reason(value: float | None) -> str | None:
    if value is None:
        return None
    if value == 0 and math.copysign(1, value) < 0:  # SQLite stores it as 0
        return MINUS_ZERO
    return None if math.isfinite(value) else str(float(value))


def score_of(value: float | None, reason: str | None) -> float:
    """Return a score as it was recorded, from its two columns of ``split_scores``."""
    if value is None:
        return float(reason or math.nan)
    return -0.0 if value == 0 and reason == MINUS_ZERO else float(value)
