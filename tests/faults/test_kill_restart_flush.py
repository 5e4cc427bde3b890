"""Kill, restart or flush anything: every trial ends with exactly one result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from sqlalchemy import select

from scheduler import GridSearchCV, submit
from scheduler.fleet import Fleet
from scheduler.reconciler import Reconciler
from storage.schema import Trial
from storage.settings import Settings
from tests.end_to_end.models import Touching
from tests.faults.support import X, Y, assert_one_result_each, attempts, search, wait_for_file


def test_a_killed_worker_process_loses_no_trial(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    handle = submit(search(tmp_path, [1, 2], then="kill once"), X, Y).wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "worker_lost"), (2, "completed")] * 2


def test_sigterm_lets_go_of_trials_and_another_worker_takes_them_at_once(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    first = start_worker(configured)
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    first.stop(signal.SIGTERM)
    start_worker(configured)
    wait_for_file(tmp_path, "began-1-1")
    (tmp_path / "go").touch()
    handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "released"), (2, "completed")]
    with fleet.database.read() as connection:
        assert connection.execute(select(Trial.failures)).scalar_one() == 0


def test_a_killed_worker_leaves_no_process_and_its_trial_is_taken_back_after_the_lease(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    short = configured.replace(lease_s=1.0, heartbeat_s=0.2)
    first = start_worker(short)
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")
    children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    assert children

    first.kill()
    until = time.monotonic() + 30
    while any(is_alive(int(child)) for child in children):
        assert time.monotonic() < until, "a worker process outlived its parent"
        time.sleep(0.05)
    start_worker(short)
    (tmp_path / "go").touch()
    until = time.monotonic() + 60
    while not handle.progress().is_finished:
        assert time.monotonic() < until
        Reconciler(fleet).once()

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "lease_expired"), (2, "completed")]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_broker_that_forgets_everything_changes_nothing_but_time(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1, 2, 3]), X, Y)
    redis.Redis.from_url(configured.broker()).flushdb()
    start_worker(configured)
    with fleet.database.write() as connection:  # as if the time after which messages are sent again was over
        connection.execute(Trial.__table__.update().values(published_at=None))

    assert Reconciler(fleet).once().published == 3
    handle.wait(60)

    assert_one_result_each(fleet, handle)


def test_repeated_messages_start_a_trial_once(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1, 2]), X, Y)
    with fleet.database.read() as connection:
        ids = list(connection.execute(select(Trial.id)).scalars())
    for _ in range(3):
        fleet.publisher.publish(ids)
    start_worker(configured, concurrency=2)
    handle.wait(60)

    fleet.publisher.publish(ids)  # and late ones
    marker = submit(search(tmp_path, [9]), X, Y).wait(60)

    assert_one_result_each(fleet, handle)
    assert_one_result_each(fleet, marker)
    assert attempts(fleet) == [(1, "completed")] * 3


def test_a_script_killed_between_storing_and_enqueuing_loses_nothing(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from scheduler import submit
from scheduler.fleet import Fleet
from tests.faults.support import X, Y, search
Fleet.publish = lambda *_: os.kill(os.getpid(), 9)
submit(search({str(tmp_path)!r}, [1, 2, 3]), X, Y, name="killed")
"""
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **configured.as_variables()}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert fleet.publisher.queue_length() == 0
    start_worker(configured)

    Reconciler(fleet).once()

    from scheduler import open_search

    assert_one_result_each(fleet, open_search("killed").wait(60))


def test_a_trial_that_kills_every_worker_fails_after_its_budget(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(max_failures=1))

    handle = submit(search(tmp_path, [1, 2], then="kill once"), X, Y).wait(60)

    assert handle.progress().failed == 2
    assert attempts(fleet) == [(1, "worker_lost")] * 2
    assert np.isnan(handle.cv_results_["mean_test_score"]).all()


def test_a_running_trial_stops_when_its_search_is_cancelled(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(heartbeat_s=0.2))
    handle = submit(search(tmp_path, [1, 2], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-*")

    assert handle.cancel()
    handle.wait(60)

    assert handle.state == "cancelled"
    assert handle.progress().cancelled == 2
    assert not handle.cancel()


def test_a_trial_that_takes_too_long_is_stopped_and_fails_after_its_budget(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(heartbeat_s=0.2, max_runtime_s=1, max_failures=1))

    handle = submit(search(tmp_path, [1], then="wait"), X, Y).wait(60)

    assert attempts(fleet) == [(1, "timeout")]
    assert handle.progress().failed == 1


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_failing_fit_counts_with_error_score_and_the_search_goes_on(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    grid = GridSearchCV(
        Touching(str(tmp_path)),
        [{"value": [1]}, {"value": [2], "then": ["raise"]}, {"value": [3], "then": ["nan"]}],
        cv=2,
        error_score=-1.0,
        refit=False,
    )
    handle = submit(grid, X, Y).wait(60)

    with pytest.warns(UserWarning, match="non-finite"):
        results = handle.cv_results_
    np.testing.assert_array_equal(results["mean_test_score"], [1.0, -1.0, np.nan])
    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial.state, Trial.error_type, Trial.error).order_by(Trial.number)).all()
    assert [row.state for row in rows] == ["completed", "failed", "failed"]
    assert [row.error_type for row in rows] == [None, "ValueError", "non_finite_score"]
    assert "value=2 does not suit me" in rows[1].error
    assert "Traceback" in rows[1].error


@pytest.mark.parametrize("backend", ["sqlite"])
def test_error_score_raise_raises_the_models_own_error(
    configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    with pytest.raises(ValueError, match="value=7 does not suit me"):
        search(tmp_path, [7], then="raise", error_score="raise", verbose=0).fit(X, Y)


def test_a_script_that_imported_keras_first_may_speak_tls_to_its_database(tmp_path: Path) -> None:
    # TensorFlow exports symbols of its own TLS library, which crashed psycopg's at the first connection
    code = """
import socket, threading
import keras
from storage.database import Database
from storage.settings import Settings

def serve(listener):
    # as much of PostgreSQL's protocol as it takes to begin TLS
    connection, _ = listener.accept()
    connection.recv(8)
    connection.sendall(b"S")
    print("TLS began:", connection.recv(1024)[:2] == bytes([22, 3]), flush=True)
    connection.close()

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
url = f"postgresql+psycopg://u@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=require"
try:
    Database(Settings(database_url=url)).check()
except ConnectionError as error:
    print("refused:", type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)

    assert done.returncode == 0, done.stderr[-2000:]
    assert "TLS began: True" in done.stdout
    assert "refused: DatabaseUnreachableError" in done.stdout
