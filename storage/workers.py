"""The table of worker processes: who is there, since when, last seen when."""

from __future__ import annotations

from sqlalchemy import insert, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Worker
from gridfleet.storage.versions import installed_versions


def register(database: Database, worker_id: str, *, hostname: str, pid: int) -> None:
    """Note a new worker process."""
    with database.write() as connection:
        connection.execute(insert(Worker).values(id=worker_id, hostname=hostname, pid=pid, **installed_versions()))


def seen(database: Database, worker_id: str) -> None:
    """Note that a worker process is alive."""
    with database.write() as connection:
        connection.execute(update(Worker).where(Worker.id == worker_id).values(last_seen_at=now()))
