"""What a search is called that people see: what came of it, and whether anything goes on.

The column ``searches.state`` says only how far a search was driven. Here are told apart a search of which nothing was
scored, one that its time limit ended, and one that waits without a fleet, for every command, handle and report; the
views do the same in SQL (migration 0025).
"""

from __future__ import annotations

import enum
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, case, exists, or_, select

from gridfleet.storage.private_folder import is_locked
from gridfleet.storage.schema import Search, SearchState, Trial, TrialState, Worker
from gridfleet.storage.workers import IS_OF_HOST, was_seen

#: Seconds for which a worker counts as there that was seen; it is seen every ``heartbeat_s``.
SEEN_S = 60
#: How ``searches.error`` begins of a search that its time limit ended; of any other it says why nothing is proposed.
STOPPED = "stopped after "
#: The lock in the folder of an embedded fleet, held as long as that runs.
FLEET_LOCK = "fleet.lock"


class ShownState(enum.StrEnum):
    """The states of a search as people see them; the order is that of its life."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # queued or running, and no fleet is there
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"  # ended, and nothing was scored, or no more could be proposed
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


_HAS_ENDED = Search.finished_at.is_not(None)
_IS_SCORED = exists().where(Trial.search_id == Search.id, Trial.state == TrialState.COMPLETED).correlate(Search)
#: Whether a search waits to be resumed.
IS_PAUSED = and_(Search.paused_at.is_not(None), ~_HAS_ENDED, Search.state != SearchState.CANCELLED)
#: The state of a search as far as its rows say it; `with_fleet` has the rest.
STATE = case(
    (Search.state == SearchState.CANCELLED, ShownState.CANCELLED),
    (and_(_HAS_ENDED, Search.error.startswith(STOPPED)), ShownState.TIMED_OUT),
    (and_(_HAS_ENDED, or_(Search.error.is_not(None), ~_IS_SCORED)), ShownState.FAILED),
    (IS_PAUSED, ShownState.PAUSED),
    else_=Search.state,
)
#: States in which workers have something to do.
GOES_ON = (ShownState.QUEUED, ShownState.RUNNING)


def has_fleet(connection: Connection) -> bool:
    """Whether a fleet is there that evaluates trials.

    Of an embedded one its lock tells, to the moment; of another, whether a worker was seen in the last `SEEN_S`.
    """
    lock = _lock_beside(connection)
    if lock is not None:
        with suppress(OSError):  # it is not there, or can't be read
            return is_locked(lock)
    seen = was_seen(SEEN_S) & ~IS_OF_HOST & Worker.stopped_reason.is_(None)
    return bool(connection.execute(select(exists().where(seen))).scalar())


def is_of_folder(connection: Connection) -> bool:
    """Whether this is the database of a folder's embedded fleet, which a search starts."""
    lock = _lock_beside(connection)
    with suppress(OSError):
        return lock is not None and lock.exists()
    return False


def with_fleet(connection: Connection, states: list[str]) -> list[ShownState]:
    """Return states as `STATE` gives them, with `ShownState.WAITING` where no fleet is there."""
    shown = [ShownState(state) for state in states]
    if any(state in GOES_ON for state in shown) and not has_fleet(connection):
        return [ShownState.WAITING if state in GOES_ON else state for state in shown]
    return shown


def is_in(connection: Connection, state: str) -> Any:
    """Return the condition that a search is in a state."""
    if state != ShownState.WAITING and state not in GOES_ON:
        return STATE.in_([state])
    wanted = GOES_ON if state == ShownState.WAITING else [state]
    return STATE.in_(wanted if has_fleet(connection) == (state != ShownState.WAITING) else [])


def described(state: str) -> str:
    """Return a state as a terminal shows it."""
    return "waiting (no fleet)" if state == ShownState.WAITING else str(state)


def _lock_beside(connection: Connection) -> Path | None:
    """Return where the lock of an embedded fleet lies: beside its database."""
    url = connection.engine.url
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).with_name(FLEET_LOCK)
