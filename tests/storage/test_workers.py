"""The table of worker processes."""

from __future__ import annotations

from sqlalchemy import Row, event, select, update

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Worker
from tests.storage.conftest import ago
from tests.stored_searches import switch_triggers_off


def rows(database: Database) -> dict[str, Row]:
    with database.read() as connection:
        return {row.id: row for row in connection.execute(select(*Worker.__table__.columns))}


def set_seen(database: Database, worker_id: str, seconds: float) -> None:
    """Let a worker process be seen that long ago for the last time."""
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Worker).where(Worker.id == worker_id).values(last_seen_at=ago(seconds)))


def test_workers_are_registered_and_seen(database: Database) -> None:
    workers.register(database, "node/1", hostname="host", pid=1, n_cores=8, memory_limit_mb=2_000)
    before = rows(database)["node/1"]

    while True:
        workers.note_seen(database, "node", ["node/1"])
        after = rows(database)["node/1"]
        if after.last_seen_at > before.last_seen_at:
            break

    assert (after.hostname, after.pid, after.started_at) == ("host", 1, before.started_at)
    assert (after.n_cores, after.memory_limit_mb, after.draining, after.ended_at) == (8, 2_000, False, None)
    assert after.python_version
    assert after.scikit_learn_version


def test_all_processes_of_a_worker_are_seen_at_once_and_what_is_asked_of_it_is_told(database: Database) -> None:
    for worker_id in ("node/1", "node/2", "node/3", "other/1"):
        workers.register(database, worker_id, hostname="host", pid=1)
        set_seen(database, worker_id, 60)
    workers.note_ended(database, "node", alive=["node/1", "node/2"])
    workers.stop(database, "node/3", "its disk is full")
    statements: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2].split()[0])
    )

    asked = workers.note_seen(database, "node", ["node/1", "node/2"])

    in_one_statement = database.dialect == "postgresql"
    assert [one for one in statements if one != "BEGIN"] == (["WITH"] if in_one_statement else ["UPDATE", "SELECT"])
    assert asked == workers.Asked(False, {"node/3": "its disk is full"}, frozenset({"node/1", "node/2"}))
    seen = {worker_id for worker_id, row in rows(database).items() if row.last_seen_at > ago(30)}
    assert seen == {"node/1", "node/2", "node/3"}  # the last one as it stopped
    workers.drain(database, "node")
    assert workers.note_seen(database, "node", []).is_draining
    assert not workers.note_seen(database, "other", []).is_draining


def test_processes_that_live_are_not_noted_as_ended_nor_are_those_of_others(database: Database) -> None:
    for worker_id in ("node/1", "node/2", "node_1/1", "other/1"):
        workers.register(database, worker_id, hostname="host", pid=1)

    workers.note_ended(database, "node", alive=["node/2"])

    assert {worker_id for worker_id, row in rows(database).items() if row.ended_at is not None} == {"node/1"}
    ended_at = rows(database)["node/1"].ended_at
    workers.note_ended(database, None)
    assert all(row.ended_at is not None for row in rows(database).values())
    assert rows(database)["node/1"].ended_at == ended_at


def test_a_worker_that_is_asked_drains_and_no_other(database: Database) -> None:
    for worker_id in ("node/1", "node/2", "node_1/1", "gone/1", "silent/1"):
        workers.register(database, worker_id, hostname="host", pid=1)
    workers.note_ended(database, "gone")
    set_seen(database, "silent/1", workers.THERE_S + 60)

    assert workers.names_there(database) == ["node", "node_1"]
    assert workers.drain(database, "node") == ["node"]
    # one of its processes is replaced before it looks
    workers.note_ended(database, "node", alive=["node/2"])
    assert workers.is_draining(database, "node")
    assert not workers.is_draining(database, "node_1")
    assert workers.drain(database, "nobody") == []
    assert workers.drain(database) == ["node", "node_1"]
    assert not workers.is_draining(database, "gone")


def test_rows_of_the_long_gone_are_removed(database: Database) -> None:
    for worker_id in ("old/1", "new/1"):
        workers.register(database, worker_id, hostname="host", pid=1)
    set_seen(database, "old/1", workers.KEPT_S + 60)
    set_seen(database, "new/1", workers.KEPT_S - 60)

    assert workers.prune(database) == 1
    assert list(rows(database)) == ["new/1"]
