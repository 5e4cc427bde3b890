"""The table of worker processes: who is there, since when, last seen when, which drain or left.

A worker is called as its node; its processes are ``node/process id``, and each has a row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Worker
from gridfleet.storage.trial_results import shorten
from gridfleet.storage.versions import installed_versions

#: Seconds for which a worker process counts as there that says nothing: its database may be away, or its machine.
THERE_S = 3_600
#: Seconds after which the rows of worker processes that are gone are removed; migration 0013 has a trigger for it.
KEPT_S = 7 * 24 * 3_600


def was_seen(within_s: float) -> Any:
    """Return the condition that a worker process was seen in the last seconds, and has not ended."""
    return Worker.ended_at.is_(None) & (Worker.last_seen_at > now(-within_s))


#: Whether a row is of a host on which no worker started (`note_unfit`), and of no process.
IS_OF_HOST = Worker.id.like("%/0")
#: Whether a worker process is there, as far as anybody knows.
IS_THERE = was_seen(THERE_S) & ~IS_OF_HOST


def node_of(worker_id: str) -> str:
    """Return the name of the worker whose process this is."""
    return worker_id.rpartition("/")[0] or worker_id


def register(
    database: Database,
    worker_id: str,
    *,
    hostname: str,
    pid: int,
    n_cores: int | None = None,
    memory_limit_mb: int | None = None,
) -> None:
    """Note a new worker process."""
    row = {
        "id": worker_id,
        "hostname": hostname,
        "pid": pid,
        "n_cores": n_cores,
        "memory_limit_mb": memory_limit_mb,
        **installed_versions(),
    }
    with database.write() as connection:
        connection.execute(insert(Worker).values(row))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rows of a worker say: whether it is to drain, which processes took it out, which are not ended yet."""

    is_draining: bool
    stopped: dict[str, str]
    present: frozenset[str]


def note_seen(database: Database, node: str, alive: Collection[str]) -> Asked:
    """Note that processes of a worker are alive, all in one statement; return what is asked of it.

    Processes that took the place of others which were asked to drain count as asked too.
    """
    rows = select(Worker.id, Worker.draining, Worker.stopped_reason, Worker.ended_at).where(
        _is_of(node),
        ~IS_OF_HOST,
        or_(Worker.ended_at.is_(None), Worker.draining, Worker.stopped_reason.is_not(None)),
    )
    # what another transaction changes right now, as a drain of all workers, is seen next time
    free = select(Worker.id).where(Worker.id.in_(alive)).with_for_update(skip_locked=True)
    seen = update(Worker).where(Worker.id.in_(free)).values(last_seen_at=now())
    with database.write() as connection:
        if database.dialect == "sqlite":
            connection.execute(seen)
        else:  # in one statement
            rows = rows.add_cte(seen.cte("seen"))
        found = connection.execute(rows).all()
    return Asked(
        is_draining=any(row.draining for row in found),
        stopped={row.id: row.stopped_reason for row in found if row.stopped_reason is not None},
        present=frozenset(row.id for row in found if row.ended_at is None),
    )


def note_ended(database: Database, node: str | None, *, alive: Collection[str] = ()) -> None:
    """Note that the processes of a worker have ended, but for those that live; None: those of all workers."""
    ended = Worker.ended_at.is_(None) & ~IS_OF_HOST
    if node is not None:
        ended &= _is_of(node)
    with database.read() as connection:
        gone = set(connection.execute(select(Worker.id).where(ended)).scalars()) - set(alive)
    if not gone:  # nearly always: no transaction that writes
        return
    with database.write() as connection:
        connection.execute(update(Worker).where(Worker.id.in_(gone), ended).values(ended_at=now()))


def drain(database: Database, node: str | None = None) -> list[str]:
    """Let a worker, or all that are there, take nothing new, finish what they evaluate, and end.

    Parameters
    ----------
    database : Database
        The fleet's; workers' own role may not do it.
    node : str, default=None
        The worker's name; None: all.

    Returns
    -------
    list of str
        The names of the workers that are asked to.
    """
    there = IS_THERE if node is None else IS_THERE & _is_of(node)
    with database.write() as connection:
        asked = connection.execute(update(Worker).where(there).values(draining=True).returning(Worker.id)).scalars()
        return sorted({node_of(worker_id) for worker_id in asked})


def is_draining(database: Database, node: str) -> bool:
    """Whether a worker was asked to drain; processes that took the place of others since count as asked too."""
    with database.read() as connection:
        return connection.execute(select(Worker.id).where(_is_of(node), Worker.draining).limit(1)).first() is not None


def names_there(database: Database, *, within_s: float = THERE_S) -> list[str]:
    """List the names of the workers that are there, of which something was heard in the last seconds."""
    there = was_seen(within_s) & ~IS_OF_HOST
    with database.read() as connection:
        return sorted(
            {node_of(worker_id) for worker_id in connection.execute(select(Worker.id).where(there)).scalars()}
        )


def prune(database: Database) -> int:
    """Remove the rows of worker processes that were not seen for `KEPT_S`; attempts keep their names.

    Returns
    -------
    int
        How many; 0 for a role that may not.
    """
    if database.dialect == "postgresql":
        with database.read() as connection:
            if not connection.execute(text("SELECT has_table_privilege('workers', 'DELETE')")).scalar_one():
                return 0
    with database.write() as connection:
        # the trigger's limit is the same, by the same clock, and later
        return connection.execute(delete(Worker).where(Worker.last_seen_at < now(-KEPT_S))).rowcount


def _is_of(node: str) -> Any:
    return Worker.id.startswith(node + "/", autoescape=True)


def stop(database: Database, worker_id: str, reason: str) -> None:
    """Note at one of its processes that a worker takes itself out, and why."""
    with database.write() as connection:
        connection.execute(
            update(Worker).where(Worker.id == worker_id).values(last_seen_at=now(), stopped_reason=shorten(reason))
        )


def note_unfit(database: Database, *, hostname: str, pid: int, reason: str) -> None:
    """Note that a worker of a host does not even start: one row a host, however often it tries."""
    insert_once: Any = (sqlite if database.dialect == "sqlite" else postgresql).insert(Worker)
    stopped = {"stopped_reason": shorten(reason), "last_seen_at": now()}
    row = {"id": f"{hostname}/0", "hostname": hostname, "pid": pid, **installed_versions(), **stopped}
    with database.write() as connection:
        connection.execute(insert_once.values(row).on_conflict_do_update(index_elements=["id"], set_=stopped))


def note_fit(database: Database, *, hostname: str) -> None:
    """Forget that a worker of a host did not start, for one does."""
    with database.write() as connection:
        connection.execute(update(Worker).where(Worker.id == f"{hostname}/0").values(stopped_reason=None))


def stopped_processes(database: Database, node: str) -> dict[str, str]:
    """Return the processes of a worker at which it is noted that it takes itself out, and why."""
    with database.read() as connection:
        rows = connection.execute(
            select(Worker.id, Worker.stopped_reason).where(_is_of(node), Worker.stopped_reason.is_not(None))
        )
        return {row.id: row.stopped_reason for row in rows}
