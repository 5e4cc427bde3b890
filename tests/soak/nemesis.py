"""Breaks a fleet every few seconds: which fault, when and where is drawn from a seed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import psutil
import psycopg
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import searches
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.schema import Search, Trial
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.trial.task import PROCESS_NAME
from tests.malformed_messages import malformed_messages
from tests.soak.system import Service, System

T = TypeVar("T")

#: Seconds between two faults.
GAP_S = (5.0, 15.0)
#: Seconds for which a process stands still: longer than a lease.
FROZEN_S = 13.0
#: A worker that takes itself for one of another Python.
ANOTHER_PYTHON = (
    sys.executable,
    "-P",
    "-c",
    """
import runpy
import gridfleet.storage.versions as versions
versions.THIS_PYTHON = "3.99"
runpy.run_module("gridfleet.worker", run_name="__main__")
""",
    "1",
    "--without-tensorflow",
)
#: The user that nothing of this runs as.
NOBODY = 65534
#: Seconds between tries to put something right that another fault is in the way of.
AGAIN_S = 1.0
#: Tries after which that is given up.
TRIES = 120
#: What a fault may raise that meets another one: the part that it is for does not answer or is gone.
IN_THE_WAY = (
    SQLAlchemyError,
    psycopg.Error,
    RedisError,
    OSError,
    psutil.Error,
    sqlite3.Error,
    subprocess.SubprocessError,
)


class NothingToBreakError(Exception):
    """What a fault is for is not there at the moment."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that happened."""

    kind: str
    at: datetime


class Nemesis:
    """Draws a fault every 5 to 15 seconds.

    Parameters
    ----------
    system : System
        What to break.
    fleet : Fleet
        A client of it.
    seed : int
        The same seed draws the same faults, pauses and places.
    kinds : sequence of str, default=None
        Only these faults; None: all that the system has parts for.
    """

    def __init__(self, system: System, fleet: Fleet, seed: int, kinds: Sequence[str] | None = None) -> None:
        self._system = system
        self._fleet = fleet
        self._random = random.Random(f"{seed}: faults")
        self.kinds = list(kinds or faults_of(system))
        self.injected: list[Injected] = []
        self.skipped = 0
        self._next_at = time.monotonic() + self._gap()

    def tick(self) -> None:
        """Break something if it is time."""
        if time.monotonic() < self._next_at:
            return
        kind = self._random.choice(self.kinds)
        # a generator of its own for each fault, so that what it draws does not shift those that follow
        chance = random.Random(self._random.random())
        try:
            FAULTS[kind](self, chance)
        except (NothingToBreakError, *IN_THE_WAY):
            self.skipped += 1
        else:
            self.injected.append(Injected(kind, datetime.now(UTC)))
        self._next_at = time.monotonic() + self._gap()

    def kill_child(self, chance: random.Random) -> None:
        _one_of(chance, [child for worker in self._system.workers for child in _evaluators(worker)]).kill()

    def kill_worker(self, chance: random.Random) -> None:
        _alive(chance, self._system.workers).send(signal.SIGKILL)

    def terminate_worker(self, chance: random.Random) -> None:
        _alive(chance, self._system.workers).send(signal.SIGTERM)

    def terminate_all_processes_of_a_worker(self, chance: random.Random) -> None:
        worker = _alive(chance, self._system.workers)
        children = worker.children()
        worker.send(signal.SIGTERM)
        for child in children:
            child.terminate()

    def freeze_child(self, chance: random.Random) -> None:
        child = _one_of(chance, [child for worker in self._system.workers for child in _evaluators(worker)])
        child.suspend()
        self._system.later(FROZEN_S, lambda: _resume(child))

    def freeze_worker(self, chance: random.Random) -> None:
        self._freeze(_alive(chance, self._system.workers))

    def freeze_scheduler(self, chance: random.Random) -> None:
        self._freeze(_alive(chance, self._system.schedulers))

    def kill_scheduler(self, chance: random.Random) -> None:
        _alive(chance, self._system.schedulers).send(signal.SIGKILL)

    def flush_broker(self, chance: random.Random) -> None:
        self._system.redis.flushall()

    def kill_broker(self, chance: random.Random) -> None:
        broker = self._system.broker
        broker.hold_down(True)
        broker.send(signal.SIGKILL)
        self._system.later(chance.uniform(0, 5), lambda: broker.hold_down(False))

    def freeze_broker(self, chance: random.Random) -> None:
        self._freeze(self._system.broker, 10.0)

    def cut_connections_to_broker(self, chance: random.Random) -> None:
        self._system.redis.client_kill_filter(_type="normal", skipme=False)

    def send_garbage(self, chance: random.Random) -> None:
        queue = Keys(fleet_id(self._system.database)).queue
        malformed = malformed_messages(self._newest_trial(), queue, self._system.proof)
        element, _ = _one_of(chance, list(malformed.values()))
        self._system.redis.rpush(queue, element)  # to the end that workers take from

    def repeat_messages(self, chance: random.Random) -> None:
        newest = self._newest_trial()
        ids = [chance.randint(max(1, newest - 60), newest) for _ in range(10)]
        self._fleet.publisher.publish(ids * 3)

    def break_cache(self, chance: random.Random) -> None:
        """Give the cache of one worker to another user for a while; who is not root can't, and takes the rights."""
        cache = self._system.own_cache
        if os.geteuid() == 0:
            os.chown(cache, NOBODY, NOBODY)
            self._system.later(chance.uniform(5, 20), lambda: os.chown(cache, 0, 0))
        else:
            cache.chmod(0o500)
            self._system.later(chance.uniform(5, 20), lambda: cache.chmod(0o700))

    def fill_disk(self, chance: random.Random) -> None:
        filler = self._system.own_cache / "filler"
        # a payload that is there already needs no room
        for file in self._system.own_cache.glob("[0-9a-f]*"):
            file.unlink()
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1_000_000))
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1_000))
        self._system.later(chance.uniform(5, 20), lambda: filler.unlink(missing_ok=True))

    def add_worker_of_another_python(self, chance: random.Random) -> None:
        guest = self._system.start_guest("worker of another Python", ANOTHER_PYTHON)
        self._system.later(chance.uniform(10, 30), guest.stop)

    def sleep_all(self, chance: random.Random) -> None:
        """Let schedulers and workers stand still for longer than a lease; schedulers wake up first."""
        services = [*self._system.schedulers, *self._system.workers]
        processes = [psutil.Process(service.process.pid) for service in services if service.process.poll() is None]
        processes += [child for worker in self._system.workers for child in worker.children()]
        for process in processes:
            with suppress(psutil.Error):
                process.suspend()

        def wake_up() -> None:
            for process in processes:
                with suppress(psutil.Error):
                    process.resume()

        self._system.later(FROZEN_S, wake_up)

    def crash_database(self, chance: random.Random) -> None:
        postgresql = self._system.postgresql
        assert postgresql is not None
        postgresql.stop()
        self._system.later(chance.uniform(0, 5), postgresql.start)

    def cut_connections_to_database(self, chance: random.Random) -> None:
        assert self._system.postgresql is not None
        with self._system.postgresql.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gridfleet'"
            )

    def lock_database(self, chance: random.Random) -> None:
        holder = sqlite3.connect(self._system.database.url.database, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        # not on the agenda: the soak itself may wait for the lock meanwhile
        threading.Timer(5, holder.close).start()

    def cancel_search(self, chance: random.Random) -> None:
        searches.cancel_search(self._system.database, self._open_search(chance))

    def pause_search(self, chance: random.Random) -> None:
        search_id = self._open_search(chance)
        searches.pause_search(self._system.database, search_id)
        self._persistently(chance.uniform(3, 12), lambda: searches.resume_search(self._system.database, search_id))

    def _gap(self) -> float:
        return self._random.uniform(*GAP_S)

    def _freeze(self, service: Service, seconds: float = FROZEN_S) -> None:
        process = service.process
        process.send_signal(signal.SIGSTOP)
        self._system.later(seconds, lambda: process.send_signal(signal.SIGCONT))

    def _newest_trial(self) -> int:
        with self._system.database.read() as connection:
            newest = connection.execute(select(func.max(Trial.id))).scalar()
        if newest is None:
            raise NothingToBreakError
        return newest

    def _open_search(self, chance: random.Random) -> int:
        with self._system.database.read() as connection:
            open_ids = connection.execute(
                select(Search.id).where(Search.finished_at.is_(None), Search.refit_of.is_(None)).order_by(Search.id)
            )
            return _one_of(chance, list(open_ids.scalars()))

    def _persistently(self, seconds: float, action: Callable[[], object], tries: int = TRIES) -> None:
        """Put something right later, and if another fault is in the way, later still."""

        def act() -> None:
            try:
                action()
            except SQLAlchemyError:
                if tries:
                    self._persistently(AGAIN_S, action, tries - 1)

        self._system.later(seconds, act)


#: Every fault by its name in the report.
FAULTS: dict[str, Callable[[Nemesis, random.Random], None]] = {
    "worker process killed": Nemesis.kill_child,
    "worker killed": Nemesis.kill_worker,
    "worker whose cache can't be written": Nemesis.break_cache,
    "worker with a full disk": Nemesis.fill_disk,
    "worker of another Python": Nemesis.add_worker_of_another_python,
    "schedulers and workers asleep beyond a lease": Nemesis.sleep_all,
    "worker terminated": Nemesis.terminate_worker,
    "all processes of a worker terminated": Nemesis.terminate_all_processes_of_a_worker,
    "worker process frozen beyond its lease": Nemesis.freeze_child,
    "worker frozen beyond its lease": Nemesis.freeze_worker,
    "scheduler killed": Nemesis.kill_scheduler,
    "scheduler frozen": Nemesis.freeze_scheduler,
    "broker flushed": Nemesis.flush_broker,
    "broker killed and started": Nemesis.kill_broker,
    "broker frozen for 10 s": Nemesis.freeze_broker,
    "connections to the broker cut": Nemesis.cut_connections_to_broker,
    "garbage on the queue": Nemesis.send_garbage,
    "messages repeated": Nemesis.repeat_messages,
    "search cancelled": Nemesis.cancel_search,
    "search paused and resumed": Nemesis.pause_search,
    "database stopped at once and started": Nemesis.crash_database,
    "connections to the database cut": Nemesis.cut_connections_to_database,
    "database locked for 5 s": Nemesis.lock_database,
}
#: What only the one or the other database can be done.
ONLY_POSTGRESQL = ("database stopped at once and started", "connections to the database cut")
ONLY_SQLITE = ("database locked for 5 s",)


def faults_of(system: System) -> list[str]:
    """Name the faults that a system has parts for."""
    impossible = ONLY_SQLITE if system.postgresql else ONLY_POSTGRESQL
    if not system.has_small_disk:
        impossible = (*impossible, "worker with a full disk")
    return [kind for kind in FAULTS if kind not in impossible]


def _alive(chance: random.Random, services: Sequence[Service]) -> Service:
    return _one_of(chance, [service for service in services if service.process.poll() is None])


def _one_of(chance: random.Random, candidates: Sequence[T]) -> T:
    if not candidates:
        raise NothingToBreakError
    return candidates[int(chance.random() * len(candidates))]


def _evaluators(worker: Service) -> list[psutil.Process]:
    """List the processes of a worker that evaluate trials, and not those that fork them or look after semaphores."""
    return [child for child in worker.children() if child.name() == PROCESS_NAME]


def _resume(process: psutil.Process) -> None:
    if process.is_running():
        process.resume()
