"""One combination over its splits, with scikit-learn's own fitting and scoring."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from traceback import format_exc
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import _validation

from gridfleet.storage.errors import SampleError
from gridfleet.storage.exceptions import exception_to_json, qualified_name
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.halving import Halving
from gridfleet.storage.spaces import GivenSpace
from gridfleet.storage.trial_results import NON_FINITE, CurveResult, PrunedResult, SplitResult, TrialResult
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from gridfleet.worker.trial.fit_warnings import WarningFilters, WarningNotes
from gridfleet.worker.trial.keras_objects import KerasObjects
from gridfleet.worker.trial.keras_state import has_made_models, keras_configured
from gridfleet.worker.trial.model_memory import forget_models
from gridfleet.worker.trial.noting_scorer import ScoreErrors, noting
from gridfleet.worker.trial.race import Race, RaceEnded, final_step
from gridfleet.worker.trial.seeds import draw_seed, has_seeded_keras_model, set_seeds, wants_seed

#: Name of the only metric of a search with one, as in scikit-learn's ``mean_test_score``.
SCORE = "score"

#: What a trial warns of whose Keras model ended with a loss that is no number.
DIVERGED = (
    "a model diverged: its loss was not finite when its training ended; a smaller learning rate or scaled data may help"
)

#: Arguments of ``_fit_and_score`` that are dicts, some of whose values may have one item for each row of X.
PARAMS_OF_ROWS = ("fit_params", "score_params")

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
    keras_config : dict
        Keras' own, likewise; empty where Keras was not imported.
    warning_filters : WarningFilters, default=None
        Python's there; None leaves those of the process.
    keras_objects : KerasObjects, default=None
        What the script registered with Keras, if anything.
    params : list of dict, default=None
        The hyperparameters of each trial, where they may share objects with the estimator, such as functions that
        it compares them with: one pickle keeps them one.
    seed : int, default=None
        The seed of its trials, as one was recorded that is evaluated once more; None: each draws one if it needs one.
    """

    estimator: Any
    arguments: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    keras_config: Mapping[str, Any] = field(default_factory=dict)
    warning_filters: WarningFilters | None = None
    keras_objects: KerasObjects | None = None
    params: list[dict[str, Any]] | None = None
    seed: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # first, for the estimator may need it to be unpickled
        return {"keras_objects": self.keras_objects, **vars(self)}


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
    space : GivenSpace, default=None
        Of what trials are proposed; `params` is empty then. None: they were stored with their search.
    halving : Halving, default=None
        The rounds of a halving search; `params` are the candidates of the first one. None: it has no rounds.
    numbers : sequence of int, default=None
        The trials whose `params` these are; None: all, from 0.
    """

    params: list[dict[str, Any]]
    refit: Any
    refit_metric: str
    return_train_score: bool
    error_score: Any
    metrics: list[str] | None
    space: GivenSpace | None = None
    halving: Halving | None = None
    numbers: Sequence[int] | None = None

    @property
    def are_proposed(self) -> bool:
        """Whether trials are added while their search goes on."""
        return self.space is not None or self.halving is not None

    def params_of(self, number: int, sample: Any, params: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Return the hyperparameters of a trial that was proposed.

        Parameters
        ----------
        number : int
            The trial's.
        sample : object
            As it was stored.
        params : sequence of mapping, default=None
            To be taken in the place of those of these candidates, which they equal.

        Raises
        ------
        SampleError
            If it is no point of the space, or none of the first round's candidates.
        """
        if self.halving is not None:
            return self.halving.params(params or self.params, number, sample)
        if self.space is None:
            raise SampleError("its search proposes nothing")
        return self.space.params(sample)

    def proposed(self, samples: Sequence[Any], params: Sequence[Mapping[str, Any]] | None = None) -> Candidates:
        """Return these with the combinations of samples, where trials are proposed; else these.

        Raises
        ------
        SampleError
            As `params_of`.
        """
        if not self.are_proposed:
            return self
        return replace(self, params=[self.params_of(number, one, params) for number, one in enumerate(samples)])

    def rounds(self) -> dict[str, list[int]]:
        """Return what ``cv_results_`` has of the rounds of a halving search, if this is one."""
        if self.halving is None:
            return {}
        numbers = range(len(self.params)) if self.numbers is None else self.numbers
        of_trials = [self.halving.round_of(number) for number in numbers]
        return {"iter": of_trials, "n_resources": [self.halving.n_resources[index] for index in of_trials]}


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
    seed: int | None = None,
    race: Race | None = None,
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
    seed : int, default=None
        Set before split 0 where the estimator has no seed of its own, and one more before each further one; None:
        that of the evaluation, or one is drawn.
    race : Race, default=None
        How it stands against others, by which it may be pruned; None: all splits are evaluated.

    Returns
    -------
    TrialResult
        With ``error`` set if a fit or score raised or the mean score is not finite; with ``pruned`` and without a mean
        if others did better.
    """
    done = _Done()
    notes = WarningNotes()
    process_id = os.getpid()
    seed = _seed_of(evaluation, params, seed)
    watching = None if race is None else race.watching
    with compiled_fit(fit_mode, n_fits=len(splits), watching=watching) as report:
        for index, split in enumerate(splits):
            try:
                row, score_errors = _fit_and_score(
                    evaluation,
                    notes,
                    X,
                    y,
                    split,
                    params,
                    seed=None if seed is None else seed + index,
                    race=race,
                    refit_metric=refit_metric,
                    split_progress=(index, len(splits)),
                    candidate_progress=(number, n_trials),
                )
            except RaceEnded:
                break
            # under error_score="raise", or what scikit-learn lets out whatever it is: a score that is no number
            except Exception as error:  # noqa: BLE001 - a user's model may raise anything
                done.raised(error, format_exc())
                break
            finally:
                if os.getpid() != process_id:  # a copy that the model forked, and that returned from its fit too
                    os._exit(0)
                if report.mode is not None or has_made_models():
                    forget_models(keep_programs=report.mode is not FitMode.KERAS)
            done.add(index, split, row, score_errors)
            del row  # with its estimator
            if _diverged(index, done.curves):  # a classifier has a finite score all the same
                notes.note(UserWarning, DIVERGED, None)
            if race is not None and not _goes_on(race, done, refit_metric, is_last=index + 1 == len(splits)):
                break
    if race is not None:
        done.take_over(race)
    result = _summarise(done, n_splits=len(splits), refit_metric=refit_metric)
    story = _story_of(report, done.splits)
    return replace(result, exception=done.exception, pruned=done.pruned, warnings=notes.results(), seed=seed, **story)


def _seed_of(evaluation: Evaluation, params: Mapping[str, Any], seed: int | None) -> int | None:
    """Return what is set before split 0; None: the estimator has seeds of its own."""
    if not wants_seed(evaluation.estimator, params):
        return None
    given = evaluation.seed if seed is None else seed
    return draw_seed() if given is None else given


@dataclass
class _Done:
    """What came of the splits so far."""

    splits: list[SplitResult] = field(default_factory=list)
    curves: list[CurveResult] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    exception: str | None = None
    pruned: PrunedResult | None = None

    def raised(self, error: Exception, text: str) -> None:
        """Note what ended the evaluation."""
        self.errors.append((qualified_name(type(error)), text))
        self.exception = exception_to_json(error)

    def add(self, index: int, split: Split, row: dict[str, Any], score_errors: ScoreErrors) -> None:
        """Note what scikit-learn returned of a split."""
        if row["fit_error"] is not None:
            self.errors.append((_raised_in(row["fit_error"]), row["fit_error"]))
        self.splits += _split_results(index, split, row, score_errors)
        self.curves += _learning_curves(index, row["estimator"])

    def take_over(self, race: Race) -> None:
        """Note how a race ended, if it did."""
        if race.error is not None:
            self.raised(race.error, str(race.error))
        self.pruned = race.pruned
        if race.is_over and not self.splits:
            self.curves += race.curves()


def _goes_on(race: Race, done: _Done, refit_metric: str, *, is_last: bool) -> bool:
    """Whether a trial is to be evaluated on its next split."""
    metric = _ranking(refit_metric, (split.metric for split in done.splits))
    ranked = [split for split in done.splits if split.metric == metric]
    # one without a finite score fails in the end, and says why
    if done.errors or any(split.score_error or not math.isfinite(split.test_score) for split in ranked):
        return True
    return race.split_ended([split.test_score for split in ranked], metric=metric, is_last=is_last)


def _ranking(refit_metric: str, metrics: Iterable[str]) -> str:
    """Return the metric that ranks trials: a callable names its own."""
    there = set(metrics)
    return refit_metric if refit_metric in there or not there else min(there)


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
    notes: WarningNotes,
    X: Any,
    y: Any,
    split: Split,
    params: Mapping[str, Any],
    *,
    seed: int | None,
    race: Race | None,
    refit_metric: str,
    **progress: tuple[int, int],
) -> tuple[dict[str, Any], ScoreErrors]:
    train, test = split
    score_errors = ScoreErrors()
    arguments = {**evaluation.arguments, "scorer": noting(evaluation.arguments["scorer"], score_errors)}
    with (
        keras_configured(evaluation.keras_config),
        config_context(**evaluation.config),
        notes.of_a_fit(evaluation.warning_filters),
        ExitStack() as stack,
    ):
        if seed is not None:
            set_seeds(seed, tensorflow=not has_seeded_keras_model(evaluation.estimator, params))
        estimator = clone(evaluation.estimator)
        if race is not None:
            score = partial(_score_as_it_is, evaluation, estimator, X, y, split, refit_metric)
            stack.enter_context(race.on_split(progress["split_progress"][0], estimator, score))
        row: dict[str, Any] = _validation._fit_and_score(
            estimator,
            X,
            y,
            train=train,
            test=test,
            parameters=dict(params),
            return_n_test_samples=True,
            return_times=True,
            return_estimator=True,
            **progress,
            **arguments,
        )
    return row, score_errors


def _score_as_it_is(evaluation: Evaluation, estimator: Any, X: Any, y: Any, split: Split, refit_metric: str) -> float:
    """Score an estimator in the middle of its fit, on the test rows of its split."""
    train, test = split
    X_test, y_test = _validation._safe_split(estimator, X, y, test, train)
    score_params = _validation._check_method_params(X, evaluation.arguments.get("score_params") or {}, indices=test)
    scores = _by_metric(
        _validation._score(estimator, X_test, y_test, evaluation.arguments["scorer"], score_params, "raise")
    )
    return float(scores[_ranking(refit_metric, scores)])


def _split_results(index: int, split: Split, row: dict[str, Any], score_errors: ScoreErrors) -> list[SplitResult]:
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
            # the only scorer may name several metrics
            score_error=score_errors.get(metric, score_errors.get(None)),
        )
        for metric, score in test_scores.items()
    ]


def _by_metric(scores: Any) -> dict[str, Any]:
    return scores if isinstance(scores, dict) else {SCORE: scores}


def _length(indices: Any) -> int:
    indices = np.asarray(indices)
    return int(indices.sum()) if indices.dtype == bool else len(indices)


def _learning_curves(index: int, estimator: Any) -> list[CurveResult]:
    """Read Keras' History off a fitted estimator, or off the last step of a pipeline."""
    history = getattr(final_step(estimator), "history_", None)
    if not isinstance(history, dict):
        return []
    return [
        CurveResult(split=index, metric=str(metric), values=list(map(_number, values)))
        for metric, values in history.items()
        if isinstance(values, (list, tuple)) and any(map(_is_number, values))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _summarise(done: _Done, *, n_splits: int, refit_metric: str) -> TrialResult:
    splits, curves = done.splits, done.curves
    refit_metric = _ranking(refit_metric, (split.metric for split in splits))
    scores = [split.test_score for split in splits if split.metric == refit_metric]
    # as scikit-learn's _format_results computes them
    mean = float(np.average(scores)) if len(scores) == n_splits else math.nan
    std = float(np.sqrt(np.average((np.asarray(scores) - mean) ** 2))) if math.isfinite(mean) else math.nan
    error_type, error = done.errors[0] if done.errors else (None, None)
    if error is None and done.pruned is None:
        error_type, error = _why_not_scored(splits, curves, mean, refit_metric=refit_metric)
    fit_times = {split.split: split.fit_time for split in splits}
    return TrialResult(
        splits=splits,
        curves=curves,
        mean_test_score=mean,
        std_test_score=std,
        mean_fit_time=float(np.average(list(fit_times.values()))) if fit_times else None,
        error_type=error_type,
        error=error,
    )


def _why_not_scored(
    splits: Sequence[SplitResult], curves: Sequence[CurveResult], mean: float, *, refit_metric: str
) -> tuple[str | None, str | None]:
    """Return type and text of what kept fits that did not raise from a score; None, None if all is well."""
    ranked = [split for split in splits if split.metric == refit_metric]
    raised = next((split for split in ranked if split.score_error is not None), None)
    if raised is None and math.isfinite(mean):
        return None, None
    not_finite = [split.split for split in ranked if not math.isfinite(split.test_score)]
    first = raised.split if raised else min(not_finite, default=0)
    diverged = _diverged(first, curves)
    if raised is not None and raised.score_error is not None:
        error = f"the scorer raised on split {first}:\n{raised.score_error.rstrip()}"
        return _raised_in(raised.score_error), f"{error}\n{diverged}" if diverged else error
    of_splits = f"of split {first}" if not_finite else f"over {len(ranked)} splits"
    score = next((split.test_score for split in ranked if split.split == first), mean) if not_finite else mean
    reason = diverged or "the scorer returned that and raised nothing"
    return NON_FINITE, f"the {refit_metric} {of_splits} is {score}: {reason}"


def _diverged(split: int, curves: Sequence[CurveResult]) -> str | None:
    """Say from which epoch on a Keras model's loss was no number, if it was so at the end."""
    noted = (curve.values for curve in curves if curve.split == split and curve.metric == "loss")
    losses = [loss for loss in next(noted, ()) if loss is not None]
    if not losses or math.isfinite(losses[-1]):
        return None
    first = next(number for number, loss in enumerate(losses, start=1) if not math.isfinite(loss))
    return (
        f"the model diverged: its loss was {losses[first - 1]} from epoch {first} of {len(losses)} on; "
        "a smaller learning rate or scaled data may help"
    )


def _raised_in(traceback: str) -> str:
    """Return the exception's name: what begins the first line after the last traceback's indented ones."""
    _, _, last = traceback.rpartition("Traceback (most recent call last):\n")
    for line in last.splitlines():
        name = line.partition(":")[0]
        if name and not line[0].isspace():
            return name if name.replace(".", "").isidentifier() else "Exception"
    return "Exception"
