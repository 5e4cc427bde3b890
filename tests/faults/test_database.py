"""Stop, cut off, fill or lock the database: no result is lost, none counts twice, and training goes on."""

from __future__ import annotations

import os
import random
import secrets
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import Row, func, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from gridfleet import submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.database import sqlite
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import patiently
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Attempt, Lease, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import queue
from tests.conftest import PostgresqlServer
from tests.faults import database_faults
from tests.faults.database_faults import Proxy, StoppablePostgresql
from tests.faults.support import (
    PATIENCE_S,
    X,
    Y,
    assert_one_result_each,
    attempts,
    note_recovery,
    search,
    sooner,
    wait_for,
    wait_for_file,
)
from tests.forked import forked
from tests.running_worker import RunningWorker
from tests.storage.conftest import race, store_search

SILENCE = "gridfleet.storage.database.silence"
#: What a worker logs when it begins to wait for its database.
WAITS = "the database fails, trying again"
N_WRITERS = 4
WRITES = 30
N_RECONCILERS = 4
LOST = 100
#: Trials of a search that is killed while it is stored, and how often.
LARGE = 600
KILLS = 3


@pytest.fixture(scope="module")
def stoppable() -> Iterator[StoppablePostgresql]:
    with database_faults.stoppable_postgresql() as postgresql:
        yield postgresql


@pytest.fixture
def stoppable_settings(
    stoppable: StoppablePostgresql,
    make_settings: Callable[..., Settings],
    use_fleet: Callable[[Settings], None],
) -> Settings:
    name = f"test_{secrets.token_hex(8)}"
    stoppable.create(name, stoppable.template)
    settings = make_settings("sqlite", migrated=False, database_url=stoppable.url(name), heartbeat_s=0.3, lease_s=1.0)
    use_fleet(settings)
    return settings


@pytest.fixture
def proxy(postgresql_server: PostgresqlServer) -> Iterator[Proxy]:
    with closing(Proxy(postgresql_server.folder)) as opened:
        yield opened


@pytest.fixture
def behind_proxy(proxy: Proxy, make_settings: Callable[..., Settings], use_fleet: Callable[[Settings], None]) -> Any:
    """Return the settings of a worker behind the proxy; the test itself talks to the database directly."""
    settings = make_settings("postgresql", heartbeat_s=0.5)
    use_fleet(settings)
    return settings.replace(database_url=proxy.url(settings.database_url))


def wait_for_log(worker: RunningWorker, words: str) -> None:
    wait_for(lambda: words in worker.log.read_text(errors="replace"), f"{words!r} in the worker's log")


def trial_row(fleet: Fleet) -> Row[Any]:
    with fleet.database.read() as connection:
        return connection.execute(select(Trial.__table__)).one()


def lease_end(fleet: Fleet) -> datetime:
    with fleet.database.read() as connection:
        return connection.execute(select(Lease.expires_at)).scalar_one()


# PostgreSQL goes away


def test_training_goes_on_while_postgresql_is_away_and_all_results_land(
    stoppable: StoppablePostgresql,
    stoppable_settings: Settings,
    start_worker: Callable[..., RunningWorker],
    tmp_path: Path,
) -> None:
    """It is down for longer than the lease, but nobody took the trials meanwhile."""
    worker = start_worker(stoppable_settings, concurrency=2)
    fleet = fleets.connect()
    before = submit(search(tmp_path, [1, 2]), X, Y).wait(PATIENCE_S)
    handle = submit(search(tmp_path, [5, 6, 7], then="wait"), X, Y)
    wait_for(lambda: len(list(tmp_path.glob("began-[567]-0"))) == 2, "two of three trials run")

    stoppable.stop()
    stopped = time.monotonic()
    (tmp_path / "go").touch()
    wait_for_log(worker, WAITS)
    wait_for(lambda: time.monotonic() - stopped > 2 * stoppable_settings.lease_s, "the lease is over")
    stoppable.start()
    started = time.monotonic()
    handle.wait(PATIENCE_S)

    note_recovery("D1", time.monotonic() - started)
    assert_one_result_each(fleet, before)
    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 5


def test_a_message_that_comes_while_postgresql_is_away_is_not_used_up(
    stoppable: StoppablePostgresql,
    stoppable_settings: Settings,
    start_worker: Callable[..., RunningWorker],
    tmp_path: Path,
) -> None:
    fleet = fleets.connect()
    handle = submit(search(tmp_path, [1]), X, Y)
    trial_id = trial_row(fleet).id
    redis.Redis.from_url(stoppable_settings.broker()).flushdb()
    worker = start_worker(stoppable_settings)

    stoppable.stop()
    fleet.publisher.publish([trial_id])
    wait_for_log(worker, WAITS)
    stoppable.start()
    started = time.monotonic()
    handle.wait(PATIENCE_S)

    note_recovery("D1", time.monotonic() - started)
    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]


def test_a_worker_that_was_cut_off_for_longer_than_its_lease_loses_its_trial_and_goes_on(
    proxy: Proxy, behind_proxy: Settings, start_worker: Callable[..., RunningWorker], tmp_path: Path
) -> None:
    fleet = fleets.connect()
    cut_off = start_worker(behind_proxy.replace(lease_s=2.0))
    first = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    proxy.shut()
    wait_for(lambda: fleet.reconciler().once().taken_back, "the lease is over")
    other = start_worker(fleet.settings)
    wait_for_file(tmp_path, "began-1-1")
    (tmp_path / "go").touch()
    first.wait(PATIENCE_S)
    wait_for_log(cut_off, WAITS)
    other.stop()
    proxy.open()
    wait_for_log(cut_off, "stale result discarded")
    second = submit(search(tmp_path, [2]), X, Y).wait(PATIENCE_S)

    assert_one_result_each(fleet, first)
    assert_one_result_each(fleet, second)
    assert attempts(fleet) == [(1, "lease_expired"), (2, "completed"), (1, "completed")]


def test_a_commit_whose_answer_is_lost_counts_once(
    proxy: Proxy, behind_proxy: Settings, start_worker: Callable[..., RunningWorker], tmp_path: Path
) -> None:
    fleet = fleets.connect()
    worker = start_worker(behind_proxy)

    proxy.lose_answer_to_commit_of(b"INSERT INTO attempts")
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    assert proxy.has_cut.wait(PATIENCE_S), "the claim's answer was not lost"
    cut = time.monotonic()
    wait_for_file(tmp_path, "began-1-0")
    note_recovery("D3", time.monotonic() - cut)
    proxy.lose_answer_to_commit_of(b"INSERT INTO split_scores")
    (tmp_path / "go").touch()
    assert proxy.has_cut.wait(PATIENCE_S), "the result's answer was not lost"
    cut = time.monotonic()
    handle.wait(PATIENCE_S)

    note_recovery("D3", time.monotonic() - cut)
    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]
    wait_for_log(worker, "the database answers again")
    assert "discarded" not in worker.log.read_text()


def test_a_connection_that_is_open_on_one_side_only_is_noticed(
    proxy: Proxy, behind_proxy: Settings, start_worker: Callable[..., RunningWorker], tmp_path: Path
) -> None:
    """The proxy acknowledges what it swallows, so TCP itself notices nothing."""
    fleet = fleets.connect()
    start_worker(behind_proxy, **sooner({f"{SILENCE}.SILENCE_S": 2, f"{SILENCE}.ASK_S": 2}))
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")
    prolonged = lease_end(fleet)
    wait_for(lambda: lease_end(fleet) > prolonged, "a heartbeat")

    proxy.swallow()
    swallowed = time.monotonic()
    with fleet.database.read() as connection:
        ended = connection.execute(select(now(1 + behind_proxy.lease_s))).scalar_one()
    wait_for(lambda: lease_end(fleet) > ended, "a heartbeat on another connection")
    note_recovery("D4", time.monotonic() - swallowed)
    (tmp_path / "go").touch()
    handle.wait(PATIENCE_S)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]


def test_a_statement_that_takes_long_is_not_taken_for_a_silent_connection(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SILENCE}.SILENCE_S", 0.2)
    with closing(Database(make_settings("postgresql"))) as database:
        assert scalar(database, text("SELECT 7 FROM pg_sleep(1)")) == 7


def test_a_server_that_became_a_standby_is_left_for_the_new_one(
    make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    def reads_only(answer: str) -> None:
        with database.write() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(
                text(f"ALTER DATABASE {database.url.database} SET default_transaction_read_only = {answer}")
            )

    with closing(Database(make_settings("postgresql"))) as database, ThreadPoolExecutor() as threads:
        stored = store_search(database)
        reads_only("on")
        database.close()
        written = threads.submit(
            patiently, lambda: queue.mark_published(database, stored.trial_ids), patience_s=PATIENCE_S
        )
        wait_for(lambda: "read-only transaction" in caplog.text, "a write that is refused")
        reads_only("off")  # as the name of the server leads to another one after a failover
        written.result(PATIENCE_S)

        assert stored.trial().publish_count == 1


def test_an_error_of_the_statement_itself_is_not_tried_again(database: Database) -> None:
    tried: list[None] = []

    def ask_nonsense() -> None:
        tried.append(None)
        scalar(database, text("SELECT nonsense"))

    with pytest.raises(DBAPIError, match="nonsense"):
        patiently(ask_nonsense, patience_s=PATIENCE_S)
    assert len(tried) == 1


def test_patience_with_a_database_that_never_comes_back_ends() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        url = f"postgresql+psycopg://user@127.0.0.1:{unused.getsockname()[1]}/name"
        with closing(Database(Settings(database_url=url))) as database, pytest.raises(OperationalError):
            patiently(lambda: scalar(database, text("SELECT 1")), patience_s=0.5)


# SQLite: no space, many writers, long readers


@contextmanager
def _fault_of_the_disk(kind: str, worker: RunningWorker, folder: Path) -> Iterator[None]:
    if kind == "no space":
        with database_faults.full_disk(folder):
            yield
    else:
        limit = 32_768
        assert limit < (folder / "fleet.db-wal").stat().st_size
        with database_faults.no_larger_files(worker, limit):
            yield


@pytest.mark.parametrize("kind", ["file size limit", *(["no space"] if os.geteuid() == 0 else [])])
def test_a_full_disk_delays_a_result_and_loses_nothing(
    kind: str,
    make_settings: Callable[..., Settings],
    use_fleet: Callable[[Settings], None],
    start_worker: Callable[..., RunningWorker],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    file = disk / "fleet.db"
    settings = make_settings("sqlite", migrated=False, database_url=f"sqlite:///{file}", heartbeat_s=0.5)
    use_fleet(settings)
    with database_faults.small_file_system(disk) if kind == "no space" else nullcontext():
        fleet = fleets.connect()
        worker = start_worker(settings)
        handle = submit(search(tmp_path, [1], then="wait"), X, Y)
        wait_for_file(tmp_path, "began-1-0")

        with _fault_of_the_disk(kind, worker, disk):
            (tmp_path / "go").touch()
            wait_for_log(worker, WAITS)
            assert trial_row(fleet).state == "running"
        healed = time.monotonic()
        handle.wait(PATIENCE_S)

        note_recovery("D5", time.monotonic() - healed)
        assert_one_result_each(fleet, handle)
        assert attempts(fleet) == [(1, "completed")]
        worker.stop()
        fleet.database.close()
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_long_reader_delays_no_writer_and_what_it_costs_on_disk_is_given_back(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("sqlite")
    wal = Path(f"{settings.database().database}-wal")
    monkeypatch.setattr(sqlite, "SQLITE_WAL_BYTES", 1_000_000)  # the racing processes keep to the real one
    with closing(Database(settings)) as database:
        stored = store_search(database, N_WRITERS * WRITES)
        parts = [stored.trial_ids[writer::N_WRITERS] for writer in range(N_WRITERS)]
        with database.read() as reader:
            assert reader.execute(select(func.count()).select_from(Attempt)).scalar() == 0
            finished = race(settings, database_faults.evaluate_all, parts)
            assert reader.execute(select(func.count()).select_from(Attempt)).scalar() == 0
        grown = wal.stat().st_size
        for _ in range(2):  # the first write finds nobody who needs the old part, the second begins anew
            with database.write() as connection:
                connection.execute(update(Trial).values(publish_count=Trial.publish_count + 1))

        assert sum(finished) == N_WRITERS * WRITES
        assert stored.row().state == "completed"
        assert wal.stat().st_size <= 1_000_000 < grown


# killed while it stores, several at once


def test_a_search_that_was_killed_while_it_was_stored_is_there_as_a_whole_or_not_at_all(
    fleet: Fleet, configured: Settings, tmp_path: Path
) -> None:
    context = forked()

    def store(name: str) -> tuple[Any, Any]:
        inserts = context.Event()
        storing = context.Process(
            target=database_faults.store_and_tell, args=(configured.as_variables(), tmp_path, name, LARGE, inserts)
        )
        storing.start()
        assert inserts.wait(PATIENCE_S), "the search did not begin to be stored"
        return storing, time.monotonic()

    storing, began = store("whole")
    wait_for(lambda: "whole" in stored_trials(fleet), "a search that nobody kills")
    took = time.monotonic() - began
    storing.join(PATIENCE_S)
    assert storing.exitcode == 0
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    number = 0
    for _ in range(KILLS):
        name = f"killed {number}"
        storing, began = store(name)
        time.sleep(moments.uniform(0, 1.2 * took))
        storing.kill()
        storing.join(PATIENCE_S)
        if name in stored_trials(fleet):
            number += 1  # otherwise the same once more, which must work

    found = stored_trials(fleet)
    assert set(found.values()) == {LARGE}, f"seed {seed}"
    assert {"whole", *(f"killed {n}" for n in range(number))} == set(found)
    assert set(found) <= set(inspect(fleet.database.engine).get_view_names())


def stored_trials(fleet: Fleet) -> dict[str, int]:
    """Count the trials of each search that is there."""
    statement = select(Search.name, func.count(Trial.id)).outerjoin(Trial, Trial.search_id == Search.id)
    with fleet.database.read() as connection:
        return dict(connection.execute(statement.group_by(Search.name)).all())


def test_reconcilers_that_work_at_once_take_each_lost_trial_back_once(fleet: Fleet, configured: Settings) -> None:
    stored = store_search(fleet.database, LOST)
    for number in range(LOST):
        stored.held(number, lease_s=-1)

    passes = race(configured, database_faults.reconcile, [configured] * N_RECONCILERS)

    assert sum(taken_back for taken_back, _ in passes) == LOST
    assert attempts(fleet) == [(1, "lease_expired")] * LOST
    with fleet.database.read() as connection:
        found = connection.execute(select(Trial.state, Trial.failures).distinct()).all()
    assert found == [("queued", 1)]
    # SQLite has no lock that tells which one acts, so each may send a message for each trial, which harms nothing
    published = sum(sent for _, sent in passes)
    assert LOST <= published <= LOST * (N_RECONCILERS if fleet.database.dialect == "sqlite" else 1)
    assert fleet.publisher.queue_length() == published
    assert fleet.reconciler().once().published == 0


# others hold what is needed


def test_a_row_that_others_hold_for_longer_than_the_lock_timeout_delays_a_result(
    make_settings: Callable[..., Settings],
    use_fleet: Callable[[Settings], None],
    start_worker: Callable[..., RunningWorker],
    tmp_path: Path,
) -> None:
    settings = make_settings("postgresql", heartbeat_s=0.5)
    use_fleet(settings)
    fleet = fleets.connect()
    impatient = {"gridfleet.storage.database.postgresql._LIMIT_OPTIONS": "-c lock_timeout=1s"}
    worker = start_worker(settings, **sooner(impatient))
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    with fleet.database.read() as connection:
        connection.execute(select(Trial.id).with_for_update())
        (tmp_path / "go").touch()
        wait_for_log(worker, f"{WAITS}: canceling statement due to lock timeout")
    released = time.monotonic()
    handle.wait(PATIENCE_S)

    note_recovery("D9", time.monotonic() - released)
    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]


def test_a_postgresql_without_free_connections_delays_a_result(
    stoppable: StoppablePostgresql,
    stoppable_settings: Settings,
    start_worker: Callable[..., RunningWorker],
    tmp_path: Path,
) -> None:
    fleet = fleets.connect()
    worker = start_worker(stoppable_settings.replace(lease_s=60.0))
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")
    taken: list[psycopg.Connection] = []

    def take_all() -> bool:
        """Take each connection that is free, and end those of gridfleet; returns whether it had none."""
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(stoppable.connect())
        ended = taken[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gridfleet'"
        )
        return ended.rowcount == 0

    taken.append(stoppable.connect())
    wait_for(take_all, "no connection is left to gridfleet")
    (tmp_path / "go").touch()
    wait_for_log(worker, WAITS)
    for connection in taken:
        connection.close()
    freed = time.monotonic()
    handle.wait(PATIENCE_S)

    note_recovery("D9", time.monotonic() - freed)
    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]


def test_a_transaction_that_is_ended_because_of_a_deadlock_is_tried_again(
    make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Database(make_settings("postgresql"))) as database:
        stored = store_search(database, 2)
        first, last = stored.trial_ids
        with ThreadPoolExecutor() as threads, database.read() as connection:
            connection.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # the other one is to notice it
            connection.execute(select(Trial.id).where(Trial.id == last).with_for_update())
            written = threads.submit(queue.mark_published, database, stored.trial_ids)
            waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            wait_for(lambda: scalar(database, waits), "a transaction that wants both trials")
            connection.execute(select(Trial.id).where(Trial.id == first).with_for_update())
            connection.rollback()
            written.result(PATIENCE_S)

        assert "trying again" in caplog.text
        assert [stored.trial(number).publish_count for number in range(2)] == [1, 1]


def test_a_stricter_isolation_of_the_server_does_not_make_transactions_fail(
    make_settings: Callable[..., Settings],
) -> None:
    with closing(Database(make_settings("postgresql"))) as database:
        name = database.url.database
        with database.write() as connection:
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"))
        database.close()

        assert scalar(database, text("SHOW default_transaction_isolation")) == "serializable"
        assert scalar(database, text("SHOW transaction_isolation")) == "read committed"


def scalar(database: Database, statement: Any) -> Any:
    with database.read() as connection:
        return connection.execute(statement).scalar()
