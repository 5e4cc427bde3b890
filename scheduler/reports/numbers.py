"""The fleet in numbers, as monitoring asks for them: each a statement of SQL, whatever was asked before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from gridfleet.scheduler.reports.trial_reader import best_first
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.schema import Search, Trial, TrialState, Worker
from gridfleet.storage.search_states import SEEN_S, STATE, with_fleet
from gridfleet.storage.workers import IS_OF_HOST, was_seen

#: Seconds for which a search is counted by its name after its end, and how many are so at most, the newest.
NAMED_S, MAX_NAMED = 24 * 3_600, 1_000
#: The states of trials that are counted; the others are those of which there are the most.
NOT_SCORED = [state for state in TrialState if state != TrialState.COMPLETED]


@dataclass(frozen=True)
class Numbers:
    """The fleet in numbers."""

    searches: dict[str, int]
    trials: dict[tuple[str, str], int]
    best_scores: dict[str, float]
    n_queued: int
    oldest_queued_s: float
    n_workers: int


def read_numbers(database: Database) -> Numbers:
    """Read them all, in one transaction."""
    with database.read() as connection:
        named = connection.execute(_named()).all()
        trials = _trials(connection, named)
        waiting = [search for search in named if search.finished_at is None and search.paused_at is None]
        workers = select(func.count()).where(was_seen(SEEN_S), ~IS_OF_HOST, Worker.stopped_reason.is_(None))
        return Numbers(
            searches=_searches(connection),
            trials=trials,
            best_scores=_best_scores(connection, named),
            n_queued=sum(trials[search.name, str(TrialState.QUEUED)] for search in waiting),
            oldest_queued_s=_oldest_queued_s(connection, [search.id for search in waiting]),
            n_workers=connection.execute(workers).scalar_one(),
        )


_SHOWN = and_(Search.refit_of.is_(None), Search.deleted_at.is_(None))


def _named() -> Any:
    is_young = or_(Search.finished_at.is_(None), Search.finished_at > now(-NAMED_S))
    columns = select(Search.id, Search.name, Search.n_trials, Search.finished_at, Search.paused_at)
    return columns.where(_SHOWN, is_young).order_by(Search.id.desc()).limit(MAX_NAMED)


def _searches(connection: Connection) -> dict[str, int]:
    state = STATE.label("state")
    rows = connection.execute(select(state, func.count().label("n")).where(_SHOWN).group_by(state)).all()
    found: dict[str, int] = {}
    for shown, row in zip(with_fleet(connection, [row.state for row in rows]), rows, strict=True):
        found[str(shown)] = found.get(str(shown), 0) + row.n
    return found


def _trials(connection: Connection, named: Sequence[Any]) -> dict[tuple[str, str], int]:
    # not those that were scored, which are the most: each is one of `n_trials`
    query = (
        select(Trial.search_id, Trial.state, func.count().label("n"))
        .where(Trial.search_id.in_([search.id for search in named]), Trial.state.in_(NOT_SCORED))
        .group_by(Trial.search_id, Trial.state)
    )
    counted = {(row.search_id, str(row.state)): row.n for row in connection.execute(query)}
    found: dict[tuple[str, str], int] = {}
    for search in named:
        others = {state: counted.get((search.id, str(state)), 0) for state in TrialState}
        others[TrialState.COMPLETED] = search.n_trials - sum(others.values())
        found |= {(search.name, str(state)): n for state, n in others.items()}
    return found


def _best_scores(connection: Connection, named: Sequence[Any]) -> dict[str, float]:
    best = best_first(Search.id).with_only_columns(Trial.mean_test_score).limit(1).scalar_subquery()
    query = select(Search.name, best.label("score")).where(Search.id.in_([search.id for search in named]))
    return {row.name: row.score for row in connection.execute(query) if row.score is not None}


def _oldest_queued_s(connection: Connection, search_ids: Sequence[int]) -> float:
    # the first of each search, which the index of what is queued has
    queued = select(Trial.created_at).where(Trial.search_id == Search.id, Trial.state == "queued").correlate(Search)
    first = queued.order_by(Trial.id).limit(1).scalar_subquery()
    age = seconds_between(connection.dialect.name, first, now())
    ages = connection.execute(select(age).where(Search.id.in_(search_ids))).scalars()
    return max([0.0, *(float(age) for age in ages if age is not None)])
