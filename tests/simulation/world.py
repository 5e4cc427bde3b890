"""What all simulations share: one migrated database, and production code that lives by its clock."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

import gridfleet.scheduler.fleet.connection
import gridfleet.scheduler.fleet.reconciler
import gridfleet.scheduler.submission.publish
import gridfleet.scheduler.submission.store
import gridfleet.storage.database.retries
import gridfleet.worker.main_process.service
import gridfleet.worker.main_process.watchdog
import gridfleet.worker.trial.cross_validation
import gridfleet.worker.trial.task
from gridfleet import GridSearchCV
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.storage import migrations
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.sources.collect import Sources
from gridfleet.storage.trial_results import TrialResult
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.versions import THIS_PYTHON
from gridfleet.worker.guards.sign_of_life import Answer
from gridfleet.worker.trial import heartbeat, interrupter
from gridfleet.worker.trial import process as process_module
from gridfleet.worker.trial.process import NODE_VARIABLE, WorkerProcess
from tests.simulation.faulty_broker import FaultyBroker
from tests.simulation.faulty_database import FaultyDatabase
from tests.simulation.turns import Life

#: Modules that read the clock or sleep.
_TIMED = (
    heartbeat,
    interrupter,
    process_module,
    gridfleet.worker.trial.task,
    gridfleet.worker.main_process.watchdog,
    gridfleet.storage.database.retries,
    gridfleet.scheduler.fleet.reconciler,
)

#: Seconds for which one message leads from trial to trial: most fits of a simulation are shorter.
GO_ON_S = 100


class World:
    """One database for simulation after simulation.

    Parameters
    ----------
    folder : Path
        Where payloads are cached.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            database_url="sqlite://",
            broker_url="redis://nowhere",
            secret_key="0" * 64,
            cache_dir=folder,
            lease_s=40,
            heartbeat_s=15,
            republish_s=60,
            max_failures=3,
            max_runtime_s=240,
        )
        self.signer = Signer(self.settings.key())
        self.database = FaultyDatabase()
        migrations.upgrade(self.database)
        self._request = _request()
        #: whose search is submitted next
        self.session = ""
        #: set by a simulation: what a trial's evaluation comes to
        self.evaluate: Callable[[WorkerProcess], TrialResult]

    def request(self, n_candidates: int) -> SearchRequest:
        """Return a search as scikit-learn asks for it."""
        return replace(self._request, candidates=self._request.candidates[:n_candidates])

    def fleet(self, broker: FaultyBroker) -> gridfleet.scheduler.fleet.connection.Fleet:
        """Return the real fleet of clients and reconcilers, on this database and a simulated broker."""
        kind = gridfleet.scheduler.fleet.connection.Fleet
        fleet = kind.__new__(kind)  # its own way to the database would open another one
        fleet.settings, fleet.is_embedded, fleet.database = self.settings, False, self.database
        fleet.__dict__["publisher"] = broker
        return fleet

    def worker_process(self, node: str, number: int, *, python: str = THIS_PYTHON) -> WorkerProcess:
        """Start a real worker process, as the present actor."""
        with pytest.MonkeyPatch.context() as patch:
            system = types.SimpleNamespace(environ={NODE_VARIABLE: node}, getpid=lambda: number)
            patch.setattr(process_module, "os", system)
            patch.setattr(process_module, "SignOfLife", lambda _: _Sign(self.database, self.database.turns.me.life))
            process = WorkerProcess(self.settings)
        process.payloads = _Payloads(process)
        process.python = python
        return process

    def _is_ending(self) -> bool:
        turns = self.database.turns
        return turns.is_over or turns.me.life.is_dead

    @contextmanager
    def installed(self) -> Iterator[World]:
        """Let production code live in this world."""
        with pytest.MonkeyPatch.context() as patch, _on_one_core():
            for module in _TIMED:
                patch.setattr(module, "time", _Time(self.database), raising=False)
            patch.setattr(
                gridfleet.storage.database.retries, "random", types.SimpleNamespace(uniform=lambda low, high: high)
            )
            patch.setattr(heartbeat, "threading", _Threading(self.database))
            patch.setattr(process_module, "PeakMemory", lambda: _Memory(self.database))
            patch.setattr(gridfleet.worker.trial.task, "memory_mb", lambda: None)
            # as if functions of the script were in each search
            patch.setattr(gridfleet.scheduler.submission.store, "_needs_python", lambda _: THIS_PYTHON)
            patch.setattr(gridfleet.worker.trial.task, "workers", _Workers(self.database))
            patch.setattr(interrupter, "threading", _Threading(self.database))
            patch.setattr(interrupter, "signal", _Signal(self.database))
            patch.setattr(process_module, "Database", lambda _: self.database)
            patch.setattr(process_module, "PayloadStore", lambda *_: None)
            patch.setattr(process_module, "quiet_tensorflow", lambda: None)
            patch.setattr(process_module, "workers", _Workers(self.database))
            patch.setattr(heartbeat, "transitions", _Heartbeats(self.database))
            patch.setattr(
                gridfleet.worker.trial.cross_validation,
                "cross_validate_trial",
                lambda evaluation, *_, **__: self.evaluate(evaluation.process),
            )
            patch.setattr(WorkerProcess, "remember", _remember)
            patch.setattr(gridfleet.scheduler.submission.store, "this_session", lambda: self.session)
            patch.setattr(gridfleet.worker.trial.task, "GO_ON_S", GO_ON_S)
            # the tests' own modules need not travel, nor does a trial of here change its process
            patch.setattr(gridfleet.scheduler.submission.store, "collect_sources", lambda: Sources({}, set(), {}))
            patch.setattr(gridfleet.worker.trial.task, "unchanged_process", nullcontext)
            patch.setattr(gridfleet.worker.trial.task, "bounded_output", nullcontext)
            patch.setattr(gridfleet.worker.trial.task, "terminate_handler_fired", self._is_ending)
            patch.setattr(gridfleet.scheduler.submission.publish, "print", lambda *_, **__: None, raising=False)
            yield self


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process on one core: a turn is handed from thread to thread in a fifth less time."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class _Time:
    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def monotonic(self) -> float:
        return self._database.turns.now_s

    def clock_gettime(self, _clock: int) -> float:
        return self._database.turns.now_s

    def sleep(self, seconds: float) -> None:
        turns = self._database.turns
        life = turns.me.life
        if life.is_idle and life.main not in (None, turns.me):  # what beats without a trial to hold only takes time
            life.idle.append(turns.me)
            turns.park()
        turns.pause(seconds)


class _Sign:
    """The sign of life of a process: wakes what sleeps while no trial is held."""

    def __init__(self, database: FaultyDatabase, life: Life) -> None:
        self._database = database
        self._life = life
        self.held: Held | None = None
        self.memory_mb = self.n_beats = 0
        self.answered: Answer | None = None
        life.sign = self

    def begin(self, _until: float, held: Held, memory_mb: int) -> None:
        self.held, self._life.is_idle = held, False
        self.beat(memory_mb)
        while self._life.idle:
            self._database.turns.wake(self._life.idle.pop(0))
        self._life.on_begin()

    def beat(self, memory_mb: int) -> None:
        self.n_beats += 1
        self.memory_mb = memory_mb

    def take_longer(self) -> None:
        pass

    def answer(self) -> Answer | None:
        return self.answered

    def end(self) -> None:
        self.held, self._life.is_idle = None, True


class _Threading:
    """Threads of a worker process are actors of the same life."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def Thread(self, *, target: Any, name: str, daemon: bool) -> Any:  # noqa: N802 - the class that it stands for
        turns = self._database.turns
        me = turns.me
        start = types.SimpleNamespace()

        def begin() -> None:
            actor = turns.start(f"{me.name} {name}", target, role="worker", life=me.life)
            actor.speaks_for = me.speaks_for

        start.start = begin
        return start

    def main_thread(self) -> Any:
        return types.SimpleNamespace(ident=None)

    def Event(self) -> Any:  # noqa: N802 - the class that it stands for
        def wait(seconds: float) -> bool:
            _Time(self._database).sleep(seconds)
            return False

        return types.SimpleNamespace(wait=wait, set=lambda: None, clear=lambda: None)


class _Memory:
    """What a process takes: another amount in each of its trials, of a few that may be equal."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database
        self._mb = 0

    def begin(self) -> None:
        self._mb = 100 + 50 * (int(self._database.turns.now_s) % 4)

    def mb(self) -> int:
        return self._mb


class _Signal:
    """A signal reaches the main thread of the process that sends it, at that thread's next step."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def signal(self, number: int, handler: Any) -> None:
        life = self._database.turns.me.life
        life.main, life.on_signal = self._database.turns.me, lambda: handler(number, None)

    def pthread_kill(self, _ident: Any, _number: int) -> None:
        life = self._database.turns.me.life
        life.main.interrupt = life.on_signal


class _Workers:
    """The table of workers, which nobody asks."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def register(self, *_: Any, **__: Any) -> None:
        pass

    def stop(self, *_: Any) -> None:
        pass


class _Heartbeats:
    """Heartbeats, each of which may go wrong."""

    def __init__(self, database: FaultyDatabase) -> None:
        self._database = database

    def heartbeat(self, *arguments: Any, **options: Any) -> bool | None:
        self._database.faults.begin_operation()
        return transitions.heartbeat(*arguments, **options)


class _Payloads:
    """What a process needs for an evaluation: to know itself."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        #: the worker that it is of
        self.node: Any = None

    def check_key(self) -> None:
        pass

    def get(self, kind: str, digest: str) -> Any:
        if kind == "candidates":
            return types.SimpleNamespace(params={number: {} for number in range(9)})
        return types.SimpleNamespace(process=self._process, params=None, keras_objects=None, arguments={})


def _remember(process: WorkerProcess, structure: str | None) -> None:
    # as with TensorFlow loaded, whether another test has loaded it or not
    if structure and structure not in process.structures:
        process.structures.append(structure)


class _Taken(BaseException):
    pass


def _request() -> SearchRequest:
    requests: list[SearchRequest] = []

    def take(request: SearchRequest) -> Any:
        requests.append(request)
        raise _Taken

    search = GridSearchCV(
        DummyClassifier(strategy="constant"), {"constant": [0, 1], "random_state": [0, 1]}, cv=2, verbose=0
    )
    with suppress(_Taken):
        fit_with(FleetBackend(take), search, np.zeros((8, 1)), np.arange(8) % 2)
    return requests[0]
