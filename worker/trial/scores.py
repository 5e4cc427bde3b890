"""From SQL rows back to what scikit-learn's ``_fit_and_score`` returned, and on to ``cv_results_``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NoTrialCompletedError, SearchCancelledError, TrialFailedError
from gridfleet.storage.exceptions import exception_from_json, imported_class_of, rebuild
from gridfleet.storage.plain import plain, plain_lines
from gridfleet.storage.schema import TrialState
from gridfleet.storage.trial_results import NON_FINITE, score_of
from gridfleet.storage.trials.recorded import trial_rows

if TYPE_CHECKING:
    from gridfleet.worker.trial.cross_validation import Candidates


def fit_and_score_rows(
    database: Database, search_id: int, candidates: Candidates, n_splits: int, *, stopped: str | None = None
) -> list[dict[str, Any]]:
    """Rebuild the rows of a finished search, candidate by candidate, split by split.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id in ``searches``.
    candidates : Candidates
        Its combinations and what counts for a fit that raised.
    n_splits : int
        Splits of each candidate.
    stopped : str, default=None
        Why the search was stopped with what was there, if it was.

    Returns
    -------
    list of dict
        As scikit-learn's ``_fit_and_score`` returned them on the workers. A trial that was lost for good
        counts as a fit that raised, and so does one that a stopped search did not come to. Splits to which a trial that
        was pruned did not come have NaN as their score, and did not raise.

    Raises
    ------
    SearchCancelledError
        If it was cancelled.
    Exception
        Of the first trial that ended with what scikit-learn lets out, as all errors are under ``error_score="raise"``.
    """
    return fit_and_score_rows_of(trial_rows(database, search_id), candidates, n_splits, stopped=stopped)


def fit_and_score_rows_of(
    rows: Sequence[Any], candidates: Candidates, n_splits: int, *, stopped: str | None = None
) -> list[dict[str, Any]]:
    """As `fit_and_score_rows`, of what `trial_rows` returned."""
    lost: dict[int, str] = {}
    pruned = {row.number for row in rows if row.state == TrialState.PRUNED}
    _raise_first_error(rows, any_error=candidates.error_score == "raise")
    for row in rows:
        if row.state == TrialState.CANCELLED:
            if stopped is None:
                raise SearchCancelledError("the search was cancelled, so it has no complete result")
            lost[row.number] = f"not evaluated: the search was {stopped}"
        if row.state == TrialState.FAILED:
            lost[row.number] = row.trial_error
    recorded = recorded_splits(rows, candidates)
    return [
        recorded[number, split]
        if (number, split) in recorded
        else _not_run(candidates, recorded)
        if number in pruned
        else _lost(lost.get(number, "the trial has no result"), candidates)
        for number in range(len(candidates.params))
        for split in range(n_splits)
    ]


def rows_by_now(
    database: Database, search_id: int, candidates: Candidates, n_splits: int
) -> tuple[list[int], list[dict[str, Any]]]:
    """Rebuild the rows of the trials that have ended by now, of any search; no error of a trial is raised.

    Returns
    -------
    numbers : list of int
        Of the trials that were scored, failed or were pruned.
    rows : list of dict
        Theirs, as `fit_and_score_rows` has them.
    """
    found = trial_rows(database, search_id)
    states = (TrialState.COMPLETED, TrialState.FAILED, TrialState.PRUNED)
    ended = {row.number: row.trial_error for row in found if row.state in states}
    pruned = {row.number for row in found if row.state == TrialState.PRUNED}
    recorded = recorded_splits(found, candidates)
    rows = [
        recorded[number, split]
        if (number, split) in recorded
        else _not_run(candidates, recorded)
        if number in pruned
        else _lost(error or "", candidates)
        for number, error in ended.items()
        for split in range(n_splits)
    ]
    return list(ended), rows


def recorded_splits(rows: Sequence[Any], candidates: Candidates) -> dict[tuple[int, int], dict[str, Any]]:
    """Return what ``_fit_and_score`` returned, by the number of the trial and the split.

    Parameters
    ----------
    rows : sequence of Row
        From `trial_rows`.
    candidates : Candidates
        The search's combinations.
    """
    metrics: dict[tuple[int, int], list[Any]] = {}
    for row in rows:
        if row.split is not None:
            metrics.setdefault((row.number, row.split), []).append(row)
    return {place: _recorded(of_split, candidates) for place, of_split in metrics.items()}


def cv_results(rows: Sequence[dict[str, Any]], candidates: Candidates, n_splits: int) -> dict[str, Any]:
    """Return ``cv_results_`` as scikit-learn itself formats it.

    Parameters
    ----------
    rows : sequence of dict
        From `fit_and_score_rows`.
    candidates : Candidates
        The search's combinations.
    n_splits : int
        Splits of each candidate.

    Returns
    -------
    dict of str to array
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.model_selection._validation import _insert_error_scores

    rows = [dict(row) for row in rows]
    _insert_error_scores(rows, candidates.error_score)
    formatter = GridSearchCV(None, {}, return_train_score=candidates.return_train_score)
    with warning_of_pruned_left_out(rows, n_splits):
        formatted: dict[str, Any] = formatter._format_results(candidates.params, n_splits, rows, candidates.rounds())
    return formatted


def pruned_numbers(rows: Sequence[dict[str, Any]], n_splits: int) -> set[int]:
    """Return the numbers of the trials that were pruned, by the rows of their splits."""
    return {place // n_splits for place, row in enumerate(rows) if _is_not_run(row)}


def require_not_pruned(index: int, pruned: Collection[int]) -> None:
    """Make sure that a best trial is none that was pruned: there is no other where all others failed.

    Raises
    ------
    NoTrialCompletedError
        If it is one.
    """
    if index in pruned:
        raise NoTrialCompletedError(
            f"trial {index} would be the best one, and was pruned: no trial was evaluated on all splits with a score; "
            "see `gridfleet report` for those that failed, or give a pruner that stops fewer"
        )


@contextmanager
def warning_of_pruned_left_out(rows: Sequence[dict[str, Any]], n_splits: int) -> Iterator[None]:
    """Leave out what scikit-learn warns of means that are not finite, where only those of pruned trials are."""
    pruned = pruned_numbers(rows, n_splits)
    others = (row for place, row in enumerate(rows) if place // n_splits not in pruned)
    if not pruned or not all(map(_is_finite, others)):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more of the (test|train) scores are non-finite")
        yield


def metric_of(results: dict[str, Any], candidates: Candidates) -> str:
    """Return the metric that ranks the trials; where it is in no row, as that of trials that all failed, the first."""
    if f"mean_test_{candidates.refit_metric}" in results:
        return candidates.refit_metric
    return next(key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_"))


def best_index(results: dict[str, Any], candidates: Candidates, pruned: Collection[int] = ()) -> int:
    """Return the number of the best trial, as scikit-learn chooses it.

    Parameters
    ----------
    results : dict of str to array
        From `cv_results`.
    candidates : Candidates
        How it is chosen: a function of the script may do it.
    pruned : collection of int, default=()
        From `pruned_numbers`; none of these is fitted again.
    """
    from sklearn.model_selection._search import BaseSearchCV

    metric = metric_of(results, candidates)
    if candidates.halving is not None:
        from sklearn.model_selection._search_successive_halving import BaseSuccessiveHalving

        return int(BaseSuccessiveHalving._select_best_index(candidates.refit, metric, results))
    index = int(BaseSearchCV._select_best_index(candidates.refit, metric, results))
    require_not_pruned(index, pruned)
    return index


def rebuild_exception(error_type: str | None, error: str | None, described: str | None = None) -> Exception:
    """Return the exception that a worker recorded, with the worker's traceback as its cause.

    Parameters
    ----------
    error_type : str
        Name of its class, with its module unless that is ``builtins``.
    error : str
        Its traceback.
    described : str, default=None
        The exception as `exception_to_json` described it, if the worker could.

    Returns
    -------
    Exception
        Of the same class where that is a builtin or its module is imported here already (nothing is imported
        because a table says so), else a `TrialFailedError` with the traceback.
    """
    fallback = TrialFailedError(f"a trial failed with {plain(str(error_type))} on a worker:\n{plain_lines(str(error))}")
    rebuilt = exception_from_json(described) if described is not None else None
    if rebuilt is None:
        rebuilt = _of_its_text(error_type or "Exception", error or "")
    if rebuilt is None:
        return fallback
    rebuilt.__cause__ = fallback
    return rebuilt


def _of_its_text(error_type: str, error: str) -> Exception | None:
    """Make an exception of what its traceback says, if its class shows it so."""
    _, found, message = error.rpartition(f"\n{error_type}: ")
    message = message.strip() if found else error.strip()
    kind = imported_class_of(error_type, Exception)
    try:
        rebuilt = None if kind is None else rebuild(kind, [message])
        return rebuilt if str(rebuilt) == message else None
    except Exception:  # noqa: BLE001 - it wants other arguments
        return None


def _raise_first_error(rows: Sequence[Any], *, any_error: bool) -> None:
    for row in rows:
        if row.state != TrialState.FAILED:
            continue
        if row.exception is not None or (any_error and not _is_score_only(row)):
            raise rebuild_exception(row.error_type, row.trial_error, row.exception)


def _is_score_only(row: Any) -> bool:
    # the fit did not raise, its score is NaN: scikit-learn goes on with it
    return bool(row.error_type == NON_FINITE)


def _recorded(metrics: Sequence[Any], candidates: Candidates) -> dict[str, Any]:
    first = metrics[0]
    row: dict[str, Any] = {
        "fit_error": first.error,
        "test_scores": _scores(metrics, "test_score", candidates),
        "n_test_samples": first.n_test,
        "fit_time": first.fit_time,
        "score_time": first.score_time,
    }
    if candidates.return_train_score:
        row["train_scores"] = _scores(metrics, "train_score", candidates)
    return row


def _scores(metrics: Sequence[Any], column: str, candidates: Candidates) -> Any:
    values = {metric.metric: _number(metric, column) for metric in metrics}
    if candidates.metrics is not None:
        values = {name: values[name] for name in candidates.metrics if name in values}
    # a single score and a dict with one entry of that name give the same columns in cv_results_
    return values["score"] if list(values) == ["score"] and candidates.metrics is None else values


def _number(metric: Any, column: str) -> float:
    return score_of(getattr(metric, column), getattr(metric, f"{column}_reason"))


def _not_run(candidates: Candidates, recorded: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a split to which a trial that was pruned did not come."""
    # with the metrics that others have: a callable names its own
    like = next(iter(recorded.values()), None) or _lost("", replace(candidates, error_score=math.nan))
    scores = {
        name: dict.fromkeys(value, math.nan) if isinstance(value, dict) else math.nan
        for name, value in like.items()
        if name in ("test_scores", "train_scores")
    }
    return {"fit_error": None, "n_test_samples": 0, "fit_time": 0.0, "score_time": 0.0, **scores}


def _is_not_run(row: dict[str, Any]) -> bool:
    return row["fit_error"] is None and row["n_test_samples"] == 0


def _is_finite(row: dict[str, Any]) -> bool:
    scores = (row["test_scores"], row.get("train_scores", 0.0))
    return all(
        math.isfinite(value) for each in scores for value in (each.values() if isinstance(each, dict) else [each])
    )


def _lost(error: str, candidates: Candidates) -> dict[str, Any]:
    score = candidates.error_score if candidates.error_score != "raise" else math.nan
    scores: Any = score if candidates.metrics is None else dict.fromkeys(candidates.metrics, score)
    row = {"fit_error": error, "test_scores": scores, "n_test_samples": 0, "fit_time": 0.0, "score_time": 0.0}
    if candidates.return_train_score:
        row["train_scores"] = scores
    return row
