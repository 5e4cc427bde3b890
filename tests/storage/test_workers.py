"""The table of worker processes."""

from __future__ import annotations

from sqlalchemy import select

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Worker


def test_workers_are_registered_and_seen(database: Database) -> None:
    workers.register(database, "node/1", hostname="host", pid=1)
    with database.read() as connection:
        before = connection.execute(select(Worker.__table__)).one()

    while True:
        workers.seen(database, "node/1")
        with database.read() as connection:
            after = connection.execute(select(Worker.__table__)).one()
        if after.last_seen_at > before.last_seen_at:
            break

    assert (after.hostname, after.pid, after.started_at) == ("host", 1, before.started_at)
    assert after.python_version
    assert after.scikit_learn_version
