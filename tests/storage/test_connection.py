"""The door to both databases: transactions, the clock, and what is said when it stays shut."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import insert, select, text

from gridfleet.storage import workers
from gridfleet.storage.database import silence
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import DatabaseUnreachableError, SettingsError
from gridfleet.storage.schema import Trial, Worker
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from tests.conftest import PostgresqlServer
from tests.storage.conftest import race, result_of, store_search

PASSWORD = "correct-horse"
N_WRITERS = 8
WRITES = 25


# when it stays shut


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            closing(Database(Settings(database_url=f"postgresql://user:{PASSWORD}@{address}/name"))) as database,
            pytest.raises(DatabaseUnreachableError) as refused,
        ):
            database.check()

    sentence = str(refused.value)
    assert address in sentence
    assert "GRIDFLEET_DATABASE_URL" in sentence
    assert PASSWORD not in sentence
    assert "\n" not in sentence


def test_a_database_of_another_name_is_named(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("postgresql")
    url = settings.database().set(database="nowhere").render_as_string(hide_password=False)

    with (
        closing(Database(settings.replace(database_url=url))) as database,
        pytest.raises(DatabaseUnreachableError, match='database "nowhere" does not exist'),
    ):
        database.check()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "not.db"
    file.write_text("this is a text of some length, and no database\n" * 50)

    with (
        closing(Database(Settings(database_url=f"sqlite:///{file}"))) as database,
        pytest.raises(
            DatabaseUnreachableError, match=r"not\.db can't be used \(file is not a database\); check the file"
        ),
    ):
        database.check()


def test_a_database_that_answers_passes(database: Database) -> None:
    database.check()


def test_a_database_without_an_encoding_is_refused(
    make_settings: Callable[..., Settings], postgresql_server: PostgresqlServer
) -> None:
    name = "of_no_encoding"
    with postgresql_server._connected() as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    settings = make_settings("postgresql").replace(database_url=postgresql_server.url(name))
    try:
        with (
            closing(Database(settings)) as database,
            pytest.raises(SettingsError, match=f"{name}' has the encoding SQL_ASCII.*--encoding=UTF8"),
        ):
            database.check()
    finally:
        postgresql_server.drop(name)


# what its URL says


def test_what_the_url_asks_for_counts(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("postgresql")
    asked = {"options": "-csearch_path=ml -c lock_timeout=3s", "application_name": "nightly", "connect_timeout": "9"}
    url = settings.database().update_query_dict(asked).render_as_string(hide_password=False)

    with closing(Database(settings.replace(database_url=url))) as database, database.read() as connection:
        shown = {
            name: connection.execute(text(f"SHOW {name}")).scalar()
            for name in ("search_path", "lock_timeout", "application_name", "statement_timeout")
        }

    assert shown == {
        "search_path": "ml",
        "lock_timeout": "3s",
        "application_name": "nightly",
        "statement_timeout": "1min",  # what nobody asked to be otherwise
    }


# transactions


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
def test_an_exit_amid_a_statement_is_no_error_of_the_database(
    database: Database, leaving: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = database.engine.raw_connection()
    signals = [leaving]

    def now() -> float:
        if signals and connection.driver_connection.info.transaction_status == TransactionStatus.ACTIVE:
            raise signals.pop()  # as a handler does whose signal comes at this line
        return 0.0

    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(database.engine.dialect, "_dialect_specific_select_one", "SELECT pg_sleep(60)")
    with pytest.raises(leaving):
        database.engine.dialect.do_ping(connection.driver_connection)
    connection.invalidate()


def test_a_transaction_that_fails_writes_nothing(database: Database) -> None:
    search = store_search(database, 1)

    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE trials SET priority_of_nobody = 1"))

    def write_then_divide() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE trials SET attempt = 7"))
            raise ZeroDivisionError

    with pytest.raises(Exception, match="priority_of_nobody"):
        write_and_fail()
    with pytest.raises(ZeroDivisionError):
        write_then_divide()
    assert search.trial().attempt == 0


def test_rows_need_what_they_refer_to(database: Database) -> None:
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(Trial).values(search_id=10**6, number=0, params={}, params_digest="0" * 64))


def _write_much(database: Database, writer: int) -> int:
    """Do what a worker does, many times: claims, results, heartbeats of its process."""
    workers.register(database, f"node/{writer}", hostname="host", pid=writer)
    finished = 0
    for trial_id in _trial_ids(database)[writer::N_WRITERS]:
        claim = claims.claim(database, trial_id, f"node/{writer}", lease_s=60, max_runtime_s=60)
        workers.note_seen(database, "node", [f"node/{writer}"])
        finished += transitions.record(database, Held(trial_id, claim.token), result_of(0.5))
    return finished


def _trial_ids(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(select(Trial.id).order_by(Trial.id)).scalars())


def test_processes_that_write_at_once_do_not_lock_each_other_out(
    database: Database, database_settings: Settings
) -> None:
    """SQLite says "database is locked" where a transaction reads and then writes."""
    search = store_search(database, N_WRITERS * WRITES)

    finished = race(database_settings, _write_much, list(range(N_WRITERS)))

    assert finished == [WRITES] * N_WRITERS
    assert search.row().state == "completed"
    with database.read() as connection:
        assert len(connection.execute(select(Worker.id)).all()) == N_WRITERS
