"""What commands print for programs: JSON types with all digits, under the names that SQL's views and tables have."""

from __future__ import annotations

from typing import Any

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.causes import cause
from gridfleet.scheduler.reports.tables import metric_of
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchNotFinishedError
from gridfleet.storage.tags import tags_of

#: Failures in a report; `sql` has all.
FAILURES = 1_000


def searches(database: Database, *, limit: int, **only: Any) -> list[dict[str, Any]]:
    """Return the newest searches, `only` as `reader.list_searches` has it."""
    found = reader.list_searches(database, limit=limit, **only)
    ids = [search.id for search in found]
    counts, tags = reader.count_trials(database, ids), tags_of(database, ids)
    listed = []
    for search in found:
        trials = counts.get(search.id, reader.TrialCounts())
        listed.append(
            {
                **facts_of(search),
                "total": search.n_trials,
                "completed": trials.scored,
                "failed": trials.failed,
                "pruned": trials.pruned,
                "done": trials.done,
                "best_score": trials.best_score,
                "tags": tags.get(search.id, {}),
            }
        )
    return listed


def best(database: Database, asked: str | int) -> dict[str, Any]:
    """Return the best trial of a search.

    Raises
    ------
    SearchNotFinishedError
        If no trial has a score yet.
    """
    search = reader.find_search(database, asked)
    trial = trial_reader.best_trial(database, search.id)
    if trial is None:
        raise SearchNotFinishedError(f"search {search.name!r} has no score yet; it is {search.shown_state}")
    return {
        "search": search.name,
        "state": search.state,
        "metric": metric_of(search),
        "best_score": trial.mean_test_score,
        "std_test_score": trial.std_test_score,
        "best_params": trial.params,
        "number": trial.number,
    }


def progress(database: Database, search: reader.SearchSummary) -> dict[str, Any]:
    """Return how far a search is, as the view ``search_progress``, with its best score."""
    now = reader.progress(database, search.id)
    return {
        "search": search.name,
        "search_id": search.id,
        "state": now.state,
        "total": now.total,
        "queued": now.queued,
        "running": now.running,
        "completed": now.completed,
        "failed": now.failed,
        "pruned": now.pruned,
        "cancelled": now.cancelled,
        "done": now.done,
        "seconds_running": now.seconds_running,
        "seconds_left": now.seconds_left,
        "best_score": now.best_score,
    }


def report(database: Database, asked: str | int) -> dict[str, Any]:
    """Return what `gridfleet report` shows: the search, its trials counted, its best, its leaderboard, its failures."""
    search = reader.find_search(database, asked)
    leaderboard = trial_reader.leaderboard(database, search.id)
    return {
        **facts_of(search),
        **progress(database, search),
        "best_params": leaderboard[0].params if leaderboard else None,
        "std_test_score": leaderboard[0].std_test_score if leaderboard else None,
        "peak_memory_mb": trial_reader.peak_memory_mb(database, search.id),
        "leaderboard": [
            {
                "rank_test_score": trial.rank,
                "number": trial.number,
                "mean_test_score": trial.mean_test_score,
                "std_test_score": trial.std_test_score,
                "mean_fit_time": trial.mean_fit_time,
                "params": trial.params,
            }
            for trial in leaderboard
        ],
        "failures": [
            {
                "number": trial.number,
                "params": trial.params,
                "error_type": trial.error_type,
                "cause": cause(trial.error, trial.error_type),
                "attempt": trial.attempt,
                "worker_id": trial.worker_id,
            }
            for trial in trial_reader.failures(database, search.id, limit=FAILURES)
        ],
    }


def attempt(one: trial_reader.AttemptStory) -> dict[str, Any]:
    """Return an attempt, as the table ``attempts`` has it."""
    return {
        "number": one.number,
        "attempt": one.attempt,
        "worker_id": one.worker_id,
        "started_at": one.started_at.isoformat(),
        "seconds": one.seconds,
        "outcome": one.outcome,
        "error": one.error,
        "peak_memory_mb": one.peak_memory_mb,
    }


def facts_of(search: reader.SearchSummary) -> dict[str, Any]:
    """Return what a search is, with the names of SQL."""
    times = {column: getattr(search, column) for column in ("created_at", "started_at", "finished_at")}
    return {
        "search": search.name,
        "search_id": search.id,
        "state": search.state,
        "strategy": search.strategy,
        "metric": metric_of(search),
        "n_splits": search.n_splits,
        "estimator": search.estimator,
        "submitted_by": search.submitted_by,
        **{column: None if at is None else at.isoformat() for column, at in times.items()},
        "error": search.error,
    }
