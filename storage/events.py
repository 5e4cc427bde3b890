"""The outbox of what people are told: written in the transaction of what happened, taken and marked by who sends it.

An event is written once, and sent at least once: who takes one counts the try and says when it is due again before it
is sent, so that one whose sender was killed is sent again, with the same id. Of new bests only the best one is sent,
once in `BEST_S` for each search, and none once the search has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, case, delete, exists, func, insert, or_, select, true, update
from sqlalchemy.engine import Connection
from sqlalchemy.orm import aliased

from gridfleet.storage import search_states
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.locks import alone
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Event, EventKind, ReconcilerPass, Search, Trial
from gridfleet.storage.trial_results import shorten

#: Key of PostgreSQL's advisory lock that one sender holds while it takes an event.
TAKER_LOCK = 0x6E6F7469
#: Seconds between two new bests of a search that are sent.
BEST_S = 60
#: How often an event is sent at most, and the seconds after the first try, twice as many after each other one, and at
#: most: 4.4 hours in all.
MAX_TRIES = 12
RETRY_S = 20
LONGEST_RETRY_S = 3_600
#: Seconds after which an event is removed, sent or not.
KEEP_S = 7 * 86_400

#: Whether anybody is to be told.
NOTIFIES = select(ReconcilerPass.notifies).limit(1).scalar_subquery().label("notifies")
_BEST_OF_SEARCH = (
    select(Trial.id)
    .where(Trial.search_id == bindparam("wanted_id"), Trial.mean_test_score.is_not(None))
    .order_by(Trial.iter.desc(), Trial.mean_test_score.desc(), Trial.number)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class TakenEvent:
    """An event that this process is about to send."""

    id: int
    search_id: int
    kind: str
    state: str | None
    trial_id: int | None
    n_tries: int


def note_best(connection: Connection, search_id: int, trial_id: int) -> None:
    """Note that a trial is the best of its search so far, if it is: in the transaction that records it.

    Of two that are recorded at once, neither sees the other: who sends the event looks which one is the best.
    """
    if connection.execute(_BEST_OF_SEARCH, {"wanted_id": search_id}).scalar() == trial_id:
        connection.execute(insert(Event).values(search_id=search_id, kind=EventKind.BEST, trial_id=trial_id))


def note_end(connection: Connection, search_id: int) -> None:
    """Note what came of a search, if anybody is to be told: in the transaction that finishes it."""
    state = search_states.STATE
    kind = case((state == search_states.ShownState.FAILED, EventKind.FAILED), else_=EventKind.ENDED)
    ended = select(Search.id, kind, state).where(
        Search.id == search_id, Search.refit_of.is_(None), NOTIFIES.element.is_(true())
    )
    connection.execute(insert(Event).from_select(["search_id", "kind", "state"], ended))


def take_due(database: Database) -> TakenEvent | None:
    """Take the next event that is to be sent now, and say when it is due again if it is not marked as sent.

    Returns
    -------
    TakenEvent or None
        None if there is none, or another process is taking one.
    """
    columns = (Event.id, Event.search_id, Event.kind, Event.state, Event.trial_id, Event.n_tries)
    next_due = select(*columns).where(_is_due()).order_by(Event.id).limit(1)
    with database.read() as connection:  # no transaction that writes where there is nothing to do
        if connection.execute(select(exists().where(_is_pending()))).scalar() is not True:
            return None
    # two that take at once would not see each other's new best
    with alone(database, TAKER_LOCK) as is_alone:
        if not is_alone:
            return None
        with database.write() as connection:
            connection.execute(delete(Event).where(_is_superseded()))
            row = connection.execute(next_due).one_or_none()
            if row is None:
                return None
            pause_s = max(min(RETRY_S * 2.0**row.n_tries, LONGEST_RETRY_S), BEST_S if row.kind == EventKind.BEST else 0)
            connection.execute(
                update(Event)
                .where(Event.id == row.id)
                .values(n_tries=Event.n_tries + 1, tried_at=now(), not_before=now(pause_s))
            )
    return TakenEvent(**{**row._mapping, "n_tries": row.n_tries + 1})


def mark_sent(database: Database, event: TakenEvent) -> None:
    """Note that the receiver took an event."""
    with database.write() as connection:
        connection.execute(
            update(Event).where(Event.id == event.id, Event.sent_at.is_(None)).values(sent_at=now(), error=None)
        )


def note_error(database: Database, event: TakenEvent, error: str) -> None:
    """Note why the receiver did not take an event."""
    with database.write() as connection:
        connection.execute(
            update(Event).where(Event.id == event.id, Event.sent_at.is_(None)).values(error=shorten(error))
        )


def prune(database: Database) -> int:
    """Remove old events, sent or not; returns how many."""
    with database.write() as connection:
        return connection.execute(delete(Event).where(Event.created_at < now(-KEEP_S))).rowcount


def _is_pending() -> Any:
    return and_(
        Event.sent_at.is_(None),
        Event.n_tries < MAX_TRIES,
        or_(Event.not_before.is_(None), Event.not_before <= now()),
    )


def _is_due() -> Any:
    other = aliased(Event)
    was_tried = exists().where(
        other.search_id == Event.search_id, other.kind == EventKind.BEST, other.tried_at > now(-BEST_S)
    )
    return and_(_is_pending(), or_(Event.kind != EventKind.BEST, ~was_tried.correlate(Event)))


def _is_superseded() -> Any:
    """Whether a new best is no news any more; one that is just being sent stays, to say when that was."""
    later = aliased(Event)
    best = aliased(Trial)
    best_id = (
        select(best.id)
        .where(best.search_id == Event.search_id, best.mean_test_score.is_not(None))
        .order_by(best.iter.desc(), best.mean_test_score.desc(), best.number)
        .limit(1)
        .correlate(Event)
        .scalar_subquery()
    )
    has_ended = exists().where(
        later.search_id == Event.search_id, later.id > Event.id, later.kind.in_((EventKind.ENDED, EventKind.FAILED))
    )
    return and_(
        Event.kind == EventKind.BEST,
        Event.sent_at.is_(None),
        or_(Event.tried_at.is_(None), Event.tried_at <= now(-BEST_S)),
        or_(func.coalesce(best_id, 0) != func.coalesce(Event.trial_id, -1), has_ended.correlate(Event)),
    )
