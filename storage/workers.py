"""The table of worker processes: who is there, since when, last seen when, and which took themselves out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Worker
from gridfleet.storage.trial_results import shorten
from gridfleet.storage.versions import installed_versions


def register(database: Database, worker_id: str, *, hostname: str, pid: int) -> None:
    """Note a new worker process."""
    with database.write() as connection:
        connection.execute(insert(Worker).values(id=worker_id, hostname=hostname, pid=pid, **installed_versions()))


def seen(database: Database, worker_id: str) -> None:
    """Note that a worker process is alive."""
    with database.write() as connection:
        connection.execute(update(Worker).where(Worker.id == worker_id).values(last_seen_at=now()))


def node_of(worker_id: str) -> str:
    """Return the name of the worker that a process belongs to: its id begins with it."""
    return worker_id.rpartition("/")[0] or worker_id


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
            select(Worker.id, Worker.stopped_reason).where(
                Worker.id.startswith(node + "/", autoescape=True), Worker.stopped_reason.is_not(None)
            )
        )
        return {row.id: row.stopped_reason for row in rows}
