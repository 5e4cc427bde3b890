"""What a fleet that has nothing to do asks of its database, and what it keeps of it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import event, text

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NoConnectionLeftError
from gridfleet.storage.settings import Settings
from gridfleet.worker.main_process import service
from gridfleet.worker.main_process.watchdog import Watchdog
from tests.conftest import PostgresqlServer
from tests.running_worker import RunningWorker

#: Seconds in which something has to happen on a busy machine.
PATIENCE_S = 60


def test_a_worker_that_idles_asks_one_thing_at_a_heartbeat_for_all_its_processes(
    database: Database, database_settings: Settings, tmp_path: Path
) -> None:
    pids = range(1, 9)
    for pid in pids:
        workers.register(database, f"node/{pid}", hostname="host", pid=pid)
    watchdog = Watchdog(
        database_settings,
        database,
        tmp_path,
        node="node",
        processes=lambda: pids,
        publish_again=pytest.fail,
        top_up=pytest.fail,
        drain=pytest.fail,
        take_out=pytest.fail,
    )
    watchdog._alive_before = frozenset(pids)  # none has died lately
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    assert not watchdog._look()

    asked = [one for one in statements if not one.startswith("BEGIN")]
    assert len(asked) == (1 if database.dialect == "postgresql" else 2), asked
    per_s = len(asked) / database_settings.heartbeat_s
    assert per_s <= 0.1 or database.dialect == "sqlite"  # even of a worker of one process


def test_processes_that_wait_for_work_keep_no_connection(
    make_settings: Callable[..., Settings], start_worker: Callable[..., RunningWorker]
) -> None:
    settings = make_settings("postgresql", heartbeat_s=0.3)
    start_worker(settings, concurrency=3)
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND application_name = 'gridfleet'"
    )
    until = time.monotonic() + PATIENCE_S
    with closing(Database(settings)) as database:
        while True:
            with database.read() as connection:
                n_registered = connection.execute(text("SELECT count(*) FROM workers")).scalar_one()
                n_connections = connection.execute(others).scalar_one()
            if n_registered == 3 and n_connections <= 2:  # the main process's
                return
            assert time.monotonic() < until, (n_registered, n_connections)
            time.sleep(0.1)


def test_a_worker_waits_while_others_have_all_connections_and_says_so_once(
    postgresql_server: PostgresqlServer,
    make_settings: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, role = make_settings("postgresql").database_url, f"role_{secrets.token_hex(4)}"
    with psycopg.connect(host=str(postgresql_server.folder), user="postgres", autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 1").format(sql.Identifier(role)))
        settings = make_settings("postgresql").replace(database_url=str(url).replace("postgres@", f"{role}@"))
        with closing(Database(settings)) as first, closing(Database(settings)) as second:
            first.check()
            with pytest.raises(NoConnectionLeftError, match=r"has no connection left .*; run fewer processes"):
                second.check()
            tries = []

            def free_one_at_last(_seconds: float) -> None:
                tries.append(None)
                if len(tries) == 3:
                    first.close()

            monkeypatch.setattr(service.time, "sleep", free_one_at_last)
            with caplog.at_level(logging.WARNING):
                service.wait_for_connection(second)

        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert len(tries) >= 3
    said = [record.message.partition(": ")[0] for record in caplog.records if record.name == service.logger.name]
    assert said == ["this worker waits"]
