"""One combination over its splits, with scikit-learn's own fitting and scoring."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import format_exc
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import _validation
from sklearn.pipeline import Pipeline

from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.trial_results import NON_FINITE, EpochResult, SplitResult, TrialResult
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from gridfleet.worker.trial.model_memory import forget_models

#: Name of the only metric of a search with one, as in scikit-learn's ``mean_test_score``.
SCORE = "score"

Split = tuple[Any, Any]


@dataclass(frozen=True)
class Evaluation:
    """What all trials of a search share: the payload ``evaluation``.

    Parameters
    ----------
    estimator : estimator
        Unfitted; cloned for every split.
    arguments : dict
        The arguments of scikit-learn's ``_fit_and_score`` that are equal for all calls: ``scorer``,
        ``fit_params``, ``score_params``, ``return_train_score``, ``error_score``, ``verbose``.
    config : dict
        scikit-learn's configuration where the search was started (``sklearn.get_config()``).
    params : list of dict or None
        The hyperparameters of each trial, where they may share objects with the estimator, such as functions that
        it compares them with: one pickle keeps them one.
    """

    estimator: Any
    arguments: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    params: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Candidates:
    """The combinations of a search and how its best one is chosen: the payload ``candidates``.

    Parameters
    ----------
    params : list of dict
        The hyperparameters of each trial, by its number, as Python objects.
    refit : bool, str or callable
        scikit-learn's ``refit``.
    refit_metric : str
        The metric that chooses the best trial.
    return_train_score : bool
        Whether ``cv_results_`` has train scores.
    error_score : "raise" or float
        The score of a fit that raised.
    metrics : list of str or None
        The names of a multimetric scorer; None for a single score, or where a callable decides.
    """

    params: list[dict[str, Any]]
    refit: Any
    refit_metric: str
    return_train_score: bool
    error_score: Any
    metrics: list[str] | None


def cross_validate_trial(
    evaluation: Evaluation,
    X: Any,
    y: Any,
    splits: Sequence[Split],
    params: Mapping[str, Any],
    *,
    number: int,
    n_trials: int,
    refit_metric: str,
    fit_mode: FitMode = FitMode.EXACT,
) -> TrialResult:
    """Fit and score one combination on every split, in order.

    Parameters
    ----------
    evaluation : Evaluation
        What to fit and how to score it.
    X, y : array-like
        The data, as given to ``fit``; `y` may be None.
    splits : sequence of (train, test)
        Indices of each split, drawn once for the whole search.
    params : mapping
        The hyperparameters.
    number, n_trials : int
        The trial's number and how many there are, for the lines that ``verbose`` prints.
    refit_metric : str
        The metric whose mean becomes ``mean_test_score``.
    fit_mode : FitMode, default="exact"
        How Keras models are trained.

    Returns
    -------
    TrialResult
        With ``error`` set if a fit or score raised or the mean score is not finite.
    """
    splits_done: list[SplitResult] = []
    epochs: list[EpochResult] = []
    errors: list[tuple[str, str]] = []
    process_id = os.getpid()
    with compiled_fit(fit_mode, n_fits=len(splits)) as report:
        for index, split in enumerate(splits):
            try:
                row = _fit_and_score(
                    evaluation,
                    X,
                    y,
                    split,
                    params,
                    split_progress=(index, len(splits)),
                    candidate_progress=(number, n_trials),
                )
            # raised under error_score="raise", or for hyperparameters that the estimator refuses
            except Exception as error:  # noqa: BLE001 - a user's model may raise anything
                errors.append((_qualified_name(type(error)), format_exc()))
                break
            finally:
                if os.getpid() != process_id:  # a copy that the model forked, and that returned from its fit too
                    os._exit(0)
                forget_models(keep_programs=report.mode is not FitMode.KERAS)
            if row["fit_error"] is not None:
                errors.append((_raised_in(row["fit_error"]), row["fit_error"]))
            splits_done += _split_results(index, split, row)
            epochs += _learning_curves(index, row["estimator"])
            del row  # with its estimator
    result = _summarise(splits_done, epochs, errors, n_splits=len(splits), refit_metric=refit_metric)
    return replace(result, **_story_of(report, splits_done))


def _story_of(report: FitReport, splits: Sequence[SplitResult]) -> dict[str, Any]:
    """Tell how the fits ran and where their time went."""
    times = {split.split: (split.fit_time, split.score_time) for split in splits}
    fit_time = sum(fit for fit, _ in times.values())
    score_time = sum(score for _, score in times.values())
    if report.mode is None:  # no Keras model
        return {"score_time": score_time}
    return {
        "fit_mode": report.mode,
        "fit_fallback_reason": report.fallback_reason,
        "trace_time": report.trace_time,
        "compile_time": report.compile_time,
        "train_time": report.train_time,
        "build_time": max(0.0, fit_time - report.trace_time - report.compile_time - report.train_time),
        "score_time": score_time,
    }


def _fit_and_score(
    evaluation: Evaluation,
    X: Any,
    y: Any,
    split: Split,
    params: Mapping[str, Any],
    **progress: tuple[int, int],
) -> dict[str, Any]:
    train, test = split
    with config_context(**evaluation.config):
        row: dict[str, Any] = _validation._fit_and_score(
            clone(evaluation.estimator),
            X,
            y,
            train=train,
            test=test,
            parameters=dict(params),
            return_n_test_samples=True,
            return_times=True,
            return_estimator=True,
            **progress,
            **evaluation.arguments,
        )
    return row


def _split_results(index: int, split: Split, row: dict[str, Any]) -> list[SplitResult]:
    test_scores = _by_metric(row["test_scores"])
    train_scores = _by_metric(row.get("train_scores", {}))
    return [
        SplitResult(
            split=index,
            metric=metric,
            test_score=float(score),
            train_score=float(train_scores[metric]) if metric in train_scores else None,
            fit_time=row["fit_time"],
            score_time=row["score_time"],
            n_train=_length(split[0]),
            n_test=row["n_test_samples"],
            error=row["fit_error"],
        )
        for metric, score in test_scores.items()
    ]


def _by_metric(scores: Any) -> dict[str, Any]:
    return scores if isinstance(scores, dict) else {SCORE: scores}


def _length(indices: Any) -> int:
    indices = np.asarray(indices)
    return int(indices.sum()) if indices.dtype == bool else len(indices)


def _learning_curves(index: int, estimator: Any) -> list[EpochResult]:
    """Read Keras' History off a fitted estimator, or off the last step of a pipeline."""
    final = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    history = getattr(final, "history_", None)
    if not isinstance(history, dict):
        return []
    return [
        EpochResult(split=index, epoch=epoch, metric=str(metric), value=float(value))
        for metric, values in history.items()
        if isinstance(values, (list, tuple))
        for epoch, value in enumerate(values)
        if isinstance(value, (int, float, np.number))
    ]


def _summarise(
    splits: list[SplitResult],
    epochs: list[EpochResult],
    errors: list[tuple[str, str]],
    *,
    n_splits: int,
    refit_metric: str,
) -> TrialResult:
    if splits and refit_metric not in {split.metric for split in splits}:  # a callable named its own metrics
        refit_metric = min(split.metric for split in splits)
    scores = [split.test_score for split in splits if split.metric == refit_metric]
    # as scikit-learn's _format_results computes them
    mean = float(np.average(scores)) if len(scores) == n_splits else math.nan
    std = float(np.sqrt(np.average((np.asarray(scores) - mean) ** 2))) if math.isfinite(mean) else math.nan
    error_type, error = errors[0] if errors else (None, None)
    if error is None and not math.isfinite(mean):
        error_type = NON_FINITE
        error = f"the mean {refit_metric} over {n_splits} splits is {mean}; see test_score_reason in split_scores"
    fit_times = {split.split: split.fit_time for split in splits}
    return TrialResult(
        splits=splits,
        epochs=epochs,
        mean_test_score=mean,
        std_test_score=std,
        mean_fit_time=float(np.average(list(fit_times.values()))) if fit_times else None,
        error_type=error_type,
        error=error,
    )


def _qualified_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _raised_in(traceback: str) -> str:
    """Return the exception's name as the last unindented line of a traceback gives it."""
    for line in reversed(traceback.splitlines()):
        name = line.partition(":")[0]
        if name and not line[0].isspace() and name.replace(".", "").isidentifier():
            return name
    return "Exception"
