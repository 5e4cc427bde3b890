"""Reads of a search's trials: the best, the failed, their attempts, warnings and modes. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import aliased

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.schema import Attempt, Lease, Search, Trial, TrialState, TrialWarning
from gridfleet.storage.trial_results import NON_FINITE

#: Rows fetched at once where there may be many.
ROWS = 500


@dataclass(frozen=True, slots=True)
class RankedTrial:
    """A trial with its rank, 1 for the best; equal scores share a rank, as in scikit-learn."""

    rank: int
    number: int
    mean_test_score: float
    std_test_score: float | None
    params: dict[str, Any]
    mean_fit_time: float | None


@dataclass(frozen=True, slots=True)
class FailedTrial:
    """A trial that failed, and why."""

    number: int
    params: dict[str, Any]
    error_type: str | None
    error: str | None
    attempt: int
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class AttemptStory:
    """One try of one worker at one trial, and what became of it."""

    number: int
    attempt: int
    worker_id: str
    started_at: datetime
    seconds: float
    outcome: str | None
    error: str | None
    peak_memory_mb: int | None


@dataclass(frozen=True, slots=True)
class FitModeCount:
    """How many trials of a search trained their Keras models in one way, for one reason."""

    fit_mode: str
    fallback_reason: str | None
    n_trials: int


def fit_modes(database: Database, search_id: int, *, among: Sequence[int] | None = None) -> list[FitModeCount]:
    """Count the trials of a search, or those with some numbers, by how their Keras models trained, most first."""
    columns = (Trial.fit_mode, Trial.fit_fallback_reason)
    n_trials = func.count().label("n_trials")
    query = (
        select(*columns, n_trials)
        .where(Trial.search_id == search_id, Trial.fit_mode.is_not(None), *_numbered(among))
        .group_by(*columns)
    )
    with database.read() as connection:
        rows = connection.execute(query.order_by(n_trials.desc(), *columns)).all()
    return [FitModeCount(row.fit_mode, row.fit_fallback_reason, row.n_trials) for row in rows]


def _numbered(among: Sequence[int] | None) -> list[Any]:
    return [] if among is None else [Trial.number.in_(among)]


def reused(database: Database, search_id: int) -> dict[str, int]:
    """Count the trials that took a result, by the name of the search that it is of; "" for a deleted one."""
    source, of = aliased(Trial), aliased(Search)
    # grouped before names are looked up: of 50,000 trials that took a result there are few searches
    taken = (
        select(source.search_id, func.count().label("n_trials"), func.min(Trial.number).label("first"))
        .select_from(Trial)
        .outerjoin(source, source.id == Trial.reused_from)
        .where(Trial.search_id == search_id, Trial.reused_from.is_not(None))
        .group_by(source.search_id)
        .subquery()
    )
    query = (
        select(func.coalesce(of.name, "").label("name"), taken.c.n_trials)
        .select_from(taken)
        .outerjoin(of, of.id == taken.c.search_id)
        .order_by(taken.c.first)
    )
    with database.read() as connection:
        return {row.name: row.n_trials for row in connection.execute(query)}


def best_first(search_id: Any) -> Select[Any]:
    """Return the query of a search's scored trials, the best first, the lower number among equals.

    Of a halving search those of its last round come first, for only they had all its resources.
    """
    # exactly the order of ix_trials_best, so the best of a million trials is one step in the index
    return (
        select(Trial.number, Trial.mean_test_score, Trial.std_test_score, Trial.params, Trial.mean_fit_time)
        .where(Trial.search_id == search_id, Trial.mean_test_score.is_not(None))
        .order_by(Trial.iter.desc(), Trial.mean_test_score.desc(), Trial.number)
    )


def best_trial(database: Database, search_id: int) -> RankedTrial | None:
    """Return the trial with the best mean score, the lower number among equals; None without any."""
    ranked = leaderboard(database, search_id, limit=1)
    return ranked[0] if ranked else None


def leaderboard(database: Database, search_id: int, *, limit: int = 10) -> list[RankedTrial]:
    """List the best trials of a search.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id in ``searches``.
    limit : int, default=10
        How many trials.

    Returns
    -------
    list of RankedTrial
        Best score first, the lower number first among equals.
    """
    with database.read() as connection:
        rows = connection.execute(best_first(search_id).limit(limit)).all()
    ranked: list[RankedTrial] = []
    for place, row in enumerate(rows, start=1):
        ties = ranked and ranked[-1].mean_test_score == row.mean_test_score
        ranked.append(RankedTrial(rank=ranked[-1].rank if ties else place, **row._mapping))
    return ranked


def trial_of(database: Database, search_id: int, number: int) -> RankedTrial | None:
    """Return a trial by its number; None if it has no score. Its rank is not asked for, and is 0."""
    with database.read() as connection:
        row = connection.execute(best_first(search_id).where(Trial.number == number)).one_or_none()
    return None if row is None else RankedTrial(rank=0, **row._mapping)


def failures(database: Database, search_id: int, *, limit: int | None = 10) -> list[FailedTrial]:
    """List the failed trials of a search, by number; all of them without a limit."""
    with database.read() as connection:
        rows = connection.execute(
            select(Trial.number, Trial.params, Trial.error_type, Trial.error, Trial.attempt, Trial.worker_id)
            .where(Trial.search_id == search_id, Trial.state == TrialState.FAILED)
            .order_by(Trial.number)
            .limit(limit)
        )
        return [FailedTrial(**row._mapping) for row in rows]


def attempts(database: Database, search_id: int, *, number: int | None = None) -> list[AttemptStory]:
    """Tell every attempt at a search's trials, or at one of them, by number; the outcome of those that run is None."""
    return list(iterate_attempts(database, search_id, number=number))


def iterate_attempts(database: Database, search_id: int, *, number: int | None = None) -> Iterator[AttemptStory]:
    """Tell the same one by one, as the database gives them: their errors may be many MB."""
    seconds = seconds_between(database.dialect, Attempt.started_at, func.coalesce(Attempt.ended_at, now()))
    query = (
        select(
            Trial.number,
            Attempt.attempt,
            Attempt.worker_id,
            Attempt.started_at,
            seconds.label("seconds"),
            Attempt.outcome,
            Attempt.error,
            # of one that runs, what its last heartbeat said
            func.coalesce(Attempt.peak_memory_mb, Lease.memory_mb).label("peak_memory_mb"),
        )
        .join(Trial, Trial.id == Attempt.trial_id)
        .outerjoin(Lease, and_(Lease.trial_id == Attempt.trial_id, Lease.token == Attempt.token))
        .where(Trial.search_id == search_id, *([] if number is None else [Trial.number == number]))
        .order_by(Trial.number, Attempt.attempt)
    )
    with database.read() as connection:
        for row in connection.execute(query.execution_options(yield_per=ROWS)):
            yield AttemptStory(**{**row._mapping, "seconds": float(row.seconds)})


def has_raised(database: Database, search_id: int, *, any_error: bool) -> bool:
    """Whether a trial of a search ended with what scikit-learn lets out of ``fit``.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id in ``searches``.
    any_error : bool
        Count every error, as ``error_score="raise"`` does, but no score that is just no number.
    """
    raised = select(Trial.id).where(
        Trial.search_id == search_id,
        Trial.state == TrialState.FAILED,
        Trial.error_type.is_distinct_from(NON_FINITE) if any_error else Trial.exception.is_not(None),
    )
    with database.read() as connection:
        return bool(connection.execute(select(raised.exists())).scalar())


@dataclass(frozen=True, slots=True)
class GivenWarning:
    """A warning of a search's fits, the module that gave it first, and how many fits gave it."""

    category: str
    message: str
    module: str | None
    n_fits: int


def trial_warnings(database: Database, search_id: int, *, limit: int) -> list[GivenWarning]:
    """List what the fits of a search warned of, the most frequent first."""
    what = (TrialWarning.category, TrialWarning.message)
    n_fits = func.sum(TrialWarning.n_fits).label("n_fits")
    query = (
        select(*what, func.min(TrialWarning.module).label("module"), n_fits)
        .join(Trial, Trial.id == TrialWarning.trial_id)
        .where(Trial.search_id == search_id)
        .group_by(*what)
        .order_by(n_fits.desc(), func.min(Trial.number), func.min(TrialWarning.position))
    )
    with database.read() as connection:
        rows = connection.execute(query.limit(limit)).all()
    return [GivenWarning(row.category, row.message, row.module, int(row.n_fits)) for row in rows]


def peak_memory_mb(database: Database, search_id: int) -> int | None:
    """Return the most memory that a worker process took for a trial of a search, in MB; None if nobody knows."""
    # the condition is that of the index, in which it is one step
    known = (Trial.search_id == search_id, Trial.peak_memory_mb.is_not(None))
    most = select(func.max(Trial.peak_memory_mb)).where(*known)
    with database.read() as connection:
        return connection.execute(most).scalar()
