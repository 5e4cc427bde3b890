"""The state of one worker process: its connections, its name, what it keeps from trial to trial."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import joblib

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.references.host_data import HostData
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.storage.trials.held import Held
from gridfleet.storage.versions import THIS_PYTHON
from gridfleet.worker.compiled_fit.sharing.cache import MAX_PROGRAMS
from gridfleet.worker.guards.memory import make_room
from gridfleet.worker.guards.neighbours import Neighbours
from gridfleet.worker.guards.peak_memory import PeakMemory
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
from gridfleet.worker.guards.sign_of_life import FOLDER_VARIABLE, SignOfLife
from gridfleet.worker.trial.heartbeat import Heartbeat
from gridfleet.worker.trial.interrupter import Interrupter
from gridfleet.worker.trial.sources import ScriptModules

#: Variable through which a worker's main process gives its children its name.
NODE_VARIABLE = "GRIDFLEET_NODE"


class WorkerProcess:
    """One child of a worker: what it keeps between trials.

    Parameters
    ----------
    settings : Settings
        Where database and cache are, the public key, and the lease's times.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.payloads = PayloadStore(self.database, settings, make_room)
        self.data = HostData(settings)
        self.verifier = settings.verifier()
        self.modules = ScriptModules(self.payloads, settings)
        node = os.environ.get(NODE_VARIABLE) or socket.gethostname()
        self.id = f"{node}/{os.getpid()}"
        #: ``structure_digest`` of the trials evaluated here last: their programs are at hand
        self.structures: deque[str] = deque(maxlen=MAX_PROGRAMS)
        #: ``searches.session`` of the trials evaluated here: all of one; None: none yet, or processes are shared
        self.session: str | None = None
        self._kept: list[AbstractContextManager[None]] = []
        folder = os.environ.get(FOLDER_VARIABLE)
        sign = SignOfLife(None if folder is None else Path(folder))
        self.neighbours = Neighbours(None if folder is None else Path(folder))
        #: the minor version of Python whose searches are evaluated here
        self.python = THIS_PYTHON
        self.memory = PeakMemory()
        self._interrupter = Interrupter()
        self._heartbeat = Heartbeat(settings, self.database, self._interrupter, sign, self.memory)
        workers.register(
            self.database,
            self.id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            n_cores=joblib.cpu_count(),
            memory_limit_mb=settings.memory_limit_mb,
        )
        quiet_tensorflow()
        # a search makes many models, each traced once: TensorFlow warns of every one
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        self._heartbeat.start()

    @contextmanager
    def holding(self, held: Held, *, limit_s: float | None) -> Iterator[None]:
        """Keep the lease of a trial alive.

        Parameters
        ----------
        held : Held
            The trial.
        limit_s : float or None
            Seconds that its evaluation may take, if that is less than the settings say.
        """
        self.memory.begin()
        self._heartbeat.begin(time.monotonic() + min(limit_s or math.inf, self.settings.max_runtime_s), held)
        try:
            with self._interrupter.holding(held):
                yield
        finally:
            self._heartbeat.end()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Do what `TrialInterrupted` ends when the trial that is held has to stop: evaluate it, but not record it."""
        with self._interrupter.interruptible():
            yield
        # it was in time; recording it may take as long as a database that restarts
        self._heartbeat.take_longer()

    def keep_kernels(self) -> None:
        """Keep what TensorFlow prepared of its functions from trial to trial: trials are all that runs here."""
        if "tensorflow" in sys.modules and not self._kept:
            from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels  # imports TensorFlow

            self._kept.append(kept_kernels())
            self._kept[0].__enter__()

    def remember(self, structure: str | None) -> None:
        """Note that this process has programs for a structure, if it has any: without TensorFlow there are none."""
        if structure and structure not in self.structures and "tensorflow" in sys.modules:
            self.structures.append(structure)


_process: WorkerProcess | None = None


def this_process() -> WorkerProcess:
    """Return this process's state, created at its first trial."""
    global _process
    if _process is None:
        _process = WorkerProcess(load_settings())
    return _process


def is_worker_process() -> bool:
    """Whether this process evaluates trials: a search inside a trial must not wait for the fleet."""
    return _process is not None
