"""Which searches have changed between two looks at the tables; a look costs the same however many trials they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select, true

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Attempt, Lease, Search, Tag, Trial, Worker
from gridfleet.storage.search_states import has_fleet
from gridfleet.storage.workers import IS_OF_HOST

#: Seconds for which what has just ended is looked at again: its transaction may be committed later than it says.
RECENT_S = 5
#: The newest searches of which it is seen, ended or not, that they get another name or other tags.
MOST_NAMED = 500
#: What stands for the workers among the searches' ids.
FLEET = 0

#: What is seen of each search, and of the fleet. Equal: nothing has changed.
Seen = dict[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Look:
    """One look at what goes on; the refit of a search belongs to it.

    Parameters
    ----------
    seen : Seen
        By the searches' ids, and `FLEET`.
    recent : set of int
        The searches of which something has ended in the last `RECENT_S`.
    """

    seen: Seen
    recent: set[int]

    def changed_since(self, before: Look | None) -> set[int]:
        """Return the ids of what has changed since another look; without one, of what has changed just now."""
        if before is None:
            return self.recent
        ids = before.seen.keys() | self.seen.keys()
        return {search_id for search_id in ids if before.seen.get(search_id) != self.seen.get(search_id)}


def look(database: Database) -> Look:
    """Look at the searches that have not ended, or just have, their trials that run, and names, tags and workers."""
    with database.read() as connection:
        seen, ended = _searches(connection), _ended(connection)
        for search_id, *facts in (*_running(connection), *ended, *_named(connection)):
            seen[search_id] = (*seen.get(search_id, ()), *facts)
        seen[FLEET] = _fleet(connection)
    return Look(seen, {search_id for search_id, *_ in ended})


def _searches(connection: Connection) -> Seen:
    # of one that has ended, the last look sees that; nothing of it is asked afterwards
    goes_on = or_(Search.finished_at.is_(None), Search.finished_at > now(-RECENT_S))
    columns = (Search.name, Search.state, Search.started_at, Search.finished_at, Search.paused_at, Search.priority)
    query = select(Search.id, Search.refit_of, *columns).where(goes_on, Search.deleted_at.is_(None)).order_by(Search.id)
    seen: Seen = {}
    for search_id, refit_of, *facts in connection.execute(query):
        of = refit_of or search_id
        seen[of] = (*seen.get(of, ()), *facts)
    return seen


def _named(connection: Connection) -> list[Any]:
    newest = (
        select(Search.id, Search.name)
        .where(Search.deleted_at.is_(None), Search.refit_of.is_(None))
        .order_by(Search.id.desc())
        .limit(MOST_NAMED)
        .subquery()
    )
    query = (
        select(newest.c.id, newest.c.name, Tag.key, Tag.value)
        .outerjoin(Tag, Tag.search_id == newest.c.id)
        .order_by(newest.c.id, Tag.key)
    )
    return list(connection.execute(query))


def _running(connection: Connection) -> list[Any]:
    of = func.coalesce(Search.refit_of, Search.id)
    facts = (func.count(), func.max(Lease.trial_id), func.min(Lease.trial_id))
    query = select(of, *facts).join(Search, Search.id == Lease.search_id).group_by(of)
    return list(connection.execute(query))


def _ended(connection: Connection) -> list[Any]:
    of = func.coalesce(Search.refit_of, Search.id)
    facts = (func.count(), func.max(Attempt.ended_at), func.max(Attempt.trial_id))
    query = (
        select(of, *facts)
        .select_from(Attempt)
        .join(Trial, Trial.id == Attempt.trial_id)
        .join(Search, Search.id == Trial.search_id)
        .where(Attempt.ended_at.is_not(None), Attempt.ended_at > now(-RECENT_S))
        .group_by(of)
    )
    return list(connection.execute(query))


def _fleet(connection: Connection) -> tuple[Any, ...]:
    facts = (func.count(), func.max(Worker.started_at), func.max(Worker.ended_at), func.count(Worker.stopped_reason))
    of_draining = select(func.count()).where(Worker.draining.is_(true())).scalar_subquery()
    n_searches = select(func.count()).where(Search.deleted_at.is_(None)).scalar_subquery()
    row = connection.execute(select(*facts, of_draining, n_searches).where(~IS_OF_HOST)).one()
    return (*row, has_fleet(connection))
