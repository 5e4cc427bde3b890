"""Worker processes that die, hang or are stopped: their trials are tried again soon, and nothing is written twice."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import select, text

from gridfleet import GridSearchCV, SearchHandle, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.schema import Lease, Trial, Worker
from gridfleet.storage.settings import Settings
from gridfleet.worker.main_process import root, service
from tests.end_to_end.conftest import start_script
from tests.end_to_end.models import Touching
from tests.faults.support import (
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
from tests.running_worker import RunningWorker

#: A main process that takes one of its processes for dead after a second of silence, if the lease is no longer.
SOON = sooner({"gridfleet.worker.main_process.watchdog.MIN_SILENCE_S": 1})


def process_of(fleet: Fleet, worker: RunningWorker) -> int:
    """Return the id of a worker's youngest process."""
    with fleet.database.read() as connection:
        mine = select(Worker.pid).where(Worker.id.startswith(worker.node)).order_by(Worker.started_at.desc()).limit(1)
        return connection.execute(mine).scalar_one()


def seconds_between_files(folder: Path, first: str, second: str) -> float:
    """Return how long after one file another one was made."""
    return (folder / second).stat().st_mtime - (folder / first).stat().st_mtime


def reconcile_until_finished(fleet: Fleet, handle: SearchHandle) -> None:
    """Do what the scheduler does until a search has ended."""

    def is_finished() -> bool:
        fleet.reconciler().once()
        return handle.progress().is_finished

    wait_for(is_finished, f"the end of {handle.name}")


@pytest.mark.parametrize(("end", "backend"), [("kill", "sqlite"), ("segfault", "postgresql")])
def test_a_trial_whose_process_dies_is_tried_again_at_once(
    end: str, fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    handle = submit(search(tmp_path, [1], then=f"{end} once"), X, Y).wait(90)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "worker_lost"), (2, "completed")]
    again_s = seconds_between_files(tmp_path, "began-1-0", "began-1-1")
    assert again_s < configured.lease_s / 2  # it was not the lease that showed it
    note_recovery("W1", again_s)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_process_that_dies_with_another_trial_than_its_messages_is_noticed_as_soon(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit_with_messages_of_the_first_trial(fleet, tmp_path, then="kill once")
    start_worker(configured)

    handle.wait(90)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed"), (1, "worker_lost"), (2, "completed")]
    again_s = seconds_between_files(tmp_path, "began-2-0", "began-2-1")
    assert again_s < configured.lease_s / 2
    note_recovery("W1", again_s)


def submit_with_messages_of_the_first_trial(fleet: Fleet, folder: Path, *, then: str) -> SearchHandle:
    """Submit two trials and send two messages of the first: at the second one, a worker looks for other work."""
    grid = [{"value": [1]}, {"value": [2], "then": [then]}]
    handle = submit(GridSearchCV(Touching(str(folder)), grid, cv=2, refit=False), X, Y)
    redis.Redis.from_url(fleet.settings.broker()).flushdb()
    with fleet.database.read() as connection:
        first = connection.execute(select(Trial.id).where(Trial.number == 0)).scalar_one()
    fleet.publisher.publish([first, first])
    return handle


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_killed_worker_leaves_no_process_and_another_one_ends_its_trial(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    short = configured.replace(lease_s=2.0, heartbeat_s=0.5)
    first = start_worker(short)
    handle = submit(search(tmp_path, [1], then="wait once"), X, Y)
    wait_for_file(tmp_path, "began-1-0")
    processes = psutil.Process(first.pid).children(recursive=True)
    start_worker(short)

    killed_at = time.time()
    first.kill()
    wait_for(lambda: not any(map(is_alive, processes)), "the end of its processes")
    reconcile_until_finished(fleet, handle)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "lease_expired"), (2, "completed")]
    note_recovery("W3", (tmp_path / "began-1-1").stat().st_mtime - killed_at)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_worker_that_was_stopped_for_longer_than_its_lease_changes_nothing_and_goes_on(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    short = configured.replace(lease_s=2.0, heartbeat_s=0.5)
    sleeper = start_worker(short)
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")
    with stopped(sleeper.pid, process_of(fleet, sleeper)):
        other = start_worker(short)
        wait_for(lambda: fleet.reconciler().once().published, "the trial's return after the lease")
        wait_for_file(tmp_path, "began-1-1")
        (tmp_path / "go").touch()
        handle.wait(60)
    other.stop()
    (tmp_path / "next").mkdir()
    marker = submit(search(tmp_path / "next", [9]), X, Y).wait(90)

    assert_one_result_each(fleet, handle)
    assert_one_result_each(fleet, marker)
    assert attempts(fleet) == [(1, "lease_expired"), (2, "completed"), (1, "completed")]
    with fleet.database.read() as connection:
        winners = connection.execute(select(Trial.worker_id).order_by(Trial.id)).scalars().all()
    assert [winner.partition("/")[0] for winner in winners] == [other.node, sleeper.node]
    log = sleeper.log.read_text()
    assert "stale result discarded" in log or "stopped, lease_lost" in log


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes as a debugger or a frozen machine does."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_the_main_process_beats_for_processes_that_fit_without_a_connection_and_they_themselves_if_it_hangs(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    ours = connections(fleet)
    worker = start_worker(configured.replace(lease_s=12.0, heartbeat_s=1.0))
    wait_for_file(tmp_path, "began-1-0")

    wait_for(lambda: len(connections(fleet) - ours) == 1, "the end of the process's connection")
    ends_at = lease_end(fleet)
    wait_for(lambda: lease_end(fleet) > ends_at, "a heartbeat of the main process")
    # a main process that is late has its process beat once, by a connection of its own
    wait_for(lambda: len(connections(fleet) - ours) == 1, "the end of that connection")
    with stopped(worker.pid):
        ends_at = lease_end(fleet)
        wait_for(lambda: lease_end(fleet) > ends_at + timedelta(seconds=1.5), "a heartbeat of the process")
        (tmp_path / "go").touch()
        handle.wait(60)

    assert attempts(fleet) == [(1, "completed")]


def connections(fleet: Fleet) -> set[int]:
    """Return the sessions of the database."""
    with fleet.database.read() as connection:
        sessions = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        return set(connection.execute(sessions).scalars())


def lease_end(fleet: Fleet) -> datetime:
    with fleet.database.read() as connection:
        return connection.execute(select(Lease.expires_at)).scalar_one()


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_process_that_is_stopped_alone_is_replaced(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    worker = start_worker(configured.replace(lease_s=2.0, heartbeat_s=0.5), **SOON)
    handle = submit(search(tmp_path, [1], then="wait once"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    os.kill(process_of(fleet, worker), signal.SIGSTOP)
    handle.wait(90)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "worker_lost"), (2, "completed")]


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_process_that_hangs_with_the_interpreters_lock_is_replaced(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(lease_s=2.0, heartbeat_s=0.5), **SOON)

    handle = submit(search(tmp_path, [1], then="hang with the GIL once"), X, Y).wait(90)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "worker_lost"), (2, "completed")]
    note_recovery("W5", seconds_between_files(tmp_path, "began-1-0", "began-1-1"))


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.parametrize(
    # what Python interrupts twice, as in "deadlock", is in "wait through all" too
    "hang",
    ["hang without the GIL", pytest.param("deadlock", marks=pytest.mark.complete), "wait through all"],
)
def test_a_model_that_does_not_stop_by_itself_is_stopped_at_its_time_limit(
    hang: str, fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(
        configured.replace(lease_s=3.0, heartbeat_s=0.5), **sooner({"gridfleet.worker.trial.interrupter.LEAVE_S": 1})
    )
    submit(search(tmp_path, [0]), X, Y).wait(90)  # so that the time limit is not spent on imports

    handle = submit(search(tmp_path, [1], then=hang, trial_timeout=1), X, Y).wait(90)
    marker = submit(search(tmp_path, [9]), X, Y).wait(90)

    assert handle.progress().failed == 1
    assert_one_result_each(fleet, marker)
    assert attempts(fleet) == [(1, "completed"), (1, "timeout"), (1, "completed")]
    with fleet.database.read() as connection:
        began, ended = connection.execute(
            select(Trial.started_at, Trial.finished_at).where(Trial.search_id == handle.id)
        ).one()
    note_recovery("W7" if hang == "wait through all" else "W6", (ended - began).total_seconds() - 1)


@pytest.mark.parametrize(("who", "backend"), [("main process", "sqlite"), ("all processes", "postgresql")])
def test_sigterm_gives_trials_to_other_workers_at_once_and_counts_no_failure(
    who: str, fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit_with_messages_of_the_first_trial(fleet, tmp_path, then="wait once")
    first = start_worker(configured)
    wait_for_file(tmp_path, "began-2-0")
    start_worker(configured)

    told_at = time.time()
    if who == "main process":
        os.kill(first.pid, signal.SIGTERM)
    else:
        os.killpg(first.pid, signal.SIGTERM)
    first.process.wait(30)
    handle.wait(90)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed"), (1, "released"), (2, "completed")]
    with fleet.database.read() as connection:
        assert connection.execute(select(Trial.failures)).scalars().all() == [0, 0]
    elsewhere_s = (tmp_path / "began-2-1").stat().st_mtime - told_at
    assert elsewhere_s < configured.lease_s / 2
    note_recovery("W8", elsewhere_s)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_sigterm_ends_a_worker_whose_model_hangs(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    worker = start_worker(configured, **sooner({"gridfleet.worker.main_process.service.RELEASE_S": 1}))
    handle = submit(search(tmp_path, [1], then="hang with the GIL once"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    worker.stop(signal.SIGTERM)
    start_worker(configured)
    handle.wait(60)

    assert attempts(fleet) == [(1, "released"), (2, "completed")]


#: What becomes of a trial whose commit was made, or not made, though its process died meanwhile.
CLAIM_MADE = [(1, "worker_lost"), (2, "completed")]
CLAIM_NOT_MADE = RESULT_MADE = [(1, "completed")]
RESULT_NOT_MADE = [(1, "worker_lost"), (2, "completed")]


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.parametrize(
    ("commit", "end", "stories"),
    [
        (("queued", "running"), signal.SIGKILL, [CLAIM_MADE]),
        (("running", "completed"), signal.SIGKILL, [RESULT_MADE]),
        # at this one, the process may cancel what it began: both stories are good, so SIGKILL shows more
        *(
            pytest.param(commit, signal.SIGQUIT, stories, marks=pytest.mark.complete)
            for commit, stories in (
                (("queued", "running"), [CLAIM_MADE, CLAIM_NOT_MADE]),
                (("running", "completed"), [RESULT_MADE, RESULT_NOT_MADE]),
            )
        ),
    ],
)
def test_a_process_that_ends_while_it_commits_leaves_no_doubt(
    commit: tuple[str, str],
    end: signal.Signals,
    stories: list[list[tuple[int, str]]],
    configured: Settings,
    start_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    fleet = Fleet(configured.replace(republish_s=2), is_embedded=False)
    worker = start_worker(configured.replace(heartbeat_s=1.0))
    sleep_in_first_commit(fleet, *commit)
    with ThreadPoolExecutor(1) as submitting:  # what it notes of the message may have to wait for the claim's commit
        submitted = submitting.submit(submit, search(tmp_path, [1]), X, Y)
        wait_for(lambda: is_committing(fleet), "the commit")

        killed_at = time.monotonic()
        os.kill(process_of(fleet, worker), end)
    handle = submitted.result()
    reconcile_until_finished(fleet, handle)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) in stories
    note_recovery("W10", time.monotonic() - killed_at)


def sleep_in_first_commit(fleet: Fleet, before: str, after: str) -> None:
    """Let PostgreSQL take two seconds to commit the first attempt's change of state."""
    with fleet.database.write() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql "
                "AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER sleep_in_commit AFTER UPDATE ON trials DEFERRABLE INITIALLY DEFERRED "
                f"FOR EACH ROW WHEN (OLD.state = '{before}' AND NEW.state = '{after}' AND NEW.attempt = 1) "
                "EXECUTE FUNCTION sleep()"
            )
        )


def is_committing(fleet: Fleet) -> bool:
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    with fleet.database.read() as connection:
        return connection.execute(text(asleep)).scalar_one() > 0


@pytest.mark.parametrize("backend", ["sqlite"])
def test_processes_that_end_one_after_the_other_do_not_keep_the_main_process_busy(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    worker = start_worker(configured.replace(max_failures=1), concurrency=2)
    began = time.monotonic()

    handle = submit(search(tmp_path, list(range(6)), then="exit hard"), X, Y).wait(300)

    assert handle.progress().failed == 6
    assert attempts(fleet) == [(1, "worker_lost")] * 6
    spent = psutil.Process(worker.pid).cpu_times()
    assert spent.user + spent.system < 0.5 * (time.monotonic() - began) + 3  # and its start


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_script_that_used_tensorflow_first_may_speak_tls_to_its_database_and_is_evaluated(
    configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    # TensorFlow exports symbols of its own TLS library, which crashed psycopg's at the first connection
    code = textwrap.dedent("""
        import socket, threading
        import numpy as np
        import tensorflow as tf

        total = tf.reduce_sum(tf.ones((4, 4)))  # TensorFlow's threads run from here on

        from scikeras.wrappers import KerasClassifier
        from gridfleet import GridSearchCV
        from gridfleet.storage.database.connection import Database
        from gridfleet.storage.settings import Settings

        def serve(listener):
            # as much of PostgreSQL's protocol as it takes to begin TLS
            connection, _ = listener.accept()
            connection.recv(8)
            connection.sendall(b"S")
            print("TLS began:", connection.recv(1024)[:2] == bytes([22, 3]), flush=True)
            connection.close()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            url = f"postgresql+psycopg://u@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=require"
            try:
                Database(Settings(database_url=url)).check()
            except ConnectionError as error:
                print("refused:", type(error).__name__)

        def create_model(units):
            model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(units)])
            model.add(tf.keras.layers.Dense(1, activation="sigmoid"))
            model.compile(loss="binary_crossentropy", metrics=["accuracy"])
            return model

        X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
        model = KerasClassifier(create_model, epochs=1, verbose=0)
        search = GridSearchCV(model, {"model__units": [2, 3]}, cv=2, refit=False, n_jobs=1, verbose=0).fit(X, y)
        print(float(total), np.isfinite(search.cv_results_["mean_test_score"]).sum())
    """)

    # an interpreter of its own, for what is imported first is the point
    with start_script(tmp_path, code, PYTHONUNBUFFERED="1") as script:
        output, errors = script.communicate(timeout=240)

    assert output.splitlines() == ["TLS began: True", "refused: DatabaseUnreachableError", "16.0 2"], errors[-2000:]


def test_a_worker_refuses_root_outside_a_container_unless_told(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = make_settings("sqlite")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(root, "CONTAINER_MARKS", (tmp_path / "mark",))
    monkeypatch.delenv("container", raising=False)

    with pytest.raises(SettingsError, match="GRIDFLEET_ALLOW_ROOT=true"):
        service.run_worker(settings, concurrency=1)

    root.refuse_root(settings.replace(allow_root=True))
    (tmp_path / "mark").touch()
    root.refuse_root(settings)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "mark").unlink()
    root.refuse_root(settings)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_workers_log_has_no_warning_of_root(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    log = start_worker(configured).log.read_text()

    assert "is ready" in log
    assert "SecurityWarning" not in log
