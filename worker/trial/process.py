"""The state of one worker process: its connections, its name, the heartbeat of the trial it holds."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.transitions import Held
from gridfleet.worker.compiled_fit.sharing.cache import MAX_PROGRAMS
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
from gridfleet.worker.guards.sign_of_life import FOLDER_VARIABLE, SignOfLife

logger = logging.getLogger(__name__)

#: Variable through which a worker's main process gives its children its name.
NODE_VARIABLE = "GRIDFLEET_NODE"
#: Raised in the process itself to stop a fit; no library of ours uses it.
INTERRUPT = signal.SIGUSR2
#: Seconds between looks at the time that a trial has left, if heartbeats are rarer.
LOOK_S = 1
#: Seconds that an interrupted fit gets to leave before it is interrupted once more.
LEAVE_S = 5


class TrialInterrupted(BaseException):
    """The running trial is to stop: its lease is lost, its time is over, or it was cancelled.

    Not an ``Exception``, for scikit-learn and users' code catch those and would go on.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerProcess:
    """One child of a worker: what it keeps between trials.

    Parameters
    ----------
    settings : Settings
        Where database and cache are, and the lease's times.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.payloads = PayloadStore(self.database, settings)
        node = os.environ.get(NODE_VARIABLE) or socket.gethostname()
        self.id = f"{node}/{os.getpid()}"
        #: ``structure_digest`` of the trials evaluated here last: their programs are at hand
        self.structures: deque[str] = deque(maxlen=MAX_PROGRAMS)
        self._kept: list[AbstractContextManager[None]] = []
        folder = os.environ.get(FOLDER_VARIABLE)
        self._sign = SignOfLife(None if folder is None else Path(folder))
        self._held: Held | None = None
        self._until = math.inf
        self._is_interruptible = False
        self._interrupt: tuple[Held, str] | None = None
        self._interrupted_at = -math.inf
        workers.register(self.database, self.id, hostname=socket.gethostname(), pid=os.getpid())
        quiet_tensorflow()
        # a search makes many models, each traced once: TensorFlow warns of every one
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        signal.signal(INTERRUPT, self._on_interrupt)
        # two threads: the database of one may be slow or down, which must not make this process look dead
        threading.Thread(target=self._beat_for_ever, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._live_for_ever, name="life", daemon=True).start()

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
        self._interrupt = None
        self._interrupted_at = -math.inf
        self._is_interruptible = False
        self._until = time.monotonic() + min(limit_s or math.inf, self.settings.max_runtime_s)
        self._sign.begin(self._until)
        self._held = held
        try:
            yield
        finally:
            self._held = None
            self._sign.end()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Do what `TrialInterrupted` ends when the trial that is held has to stop: evaluate it, but not record it."""
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False
        if self._interrupt is not None:  # users' code caught it and went on
            raise TrialInterrupted(self._interrupt[1])
        # it was in time; recording it may take as long as a database that restarts
        self._until = math.inf
        self._sign.begin(self._until)

    def keep_kernels(self) -> None:
        """Keep what TensorFlow prepared of its functions from trial to trial: trials are all that runs here."""
        if "tensorflow" in sys.modules and not self._kept:
            from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels

            self._kept.append(kept_kernels())
            self._kept[0].__enter__()

    def remember(self, structure: str | None) -> None:
        """Note that this process has programs for a structure, if it has any: without TensorFlow there are none."""
        if structure and structure not in self.structures and "tensorflow" in sys.modules:
            self.structures.append(structure)

    def _beat_for_ever(self) -> None:
        pause_s = self.settings.heartbeat_s
        while True:
            time.sleep(pause_s)
            pause_s = self.settings.heartbeat_s
            held = self._held
            try:
                workers.seen(self.database, self.id)
                if held is not None:
                    self._beat(held)
            # tried again soon, and not by all workers at once; memory may be what a model took
            except (SQLAlchemyError, MemoryError) as error:
                logger.warning("heartbeat failed: %s", type(error).__name__)
                pause_s *= random.uniform(0.1, 0.3)  # noqa: S311 - no secret

    def _beat(self, held: Held) -> None:
        cancel = transitions.heartbeat(self.database, held, lease_s=self.settings.lease_s)
        if cancel is None:
            self._stop(held, "lease_lost")
        elif cancel:
            self._stop(held, "cancelled")

    def _live_for_ever(self) -> None:
        while True:
            time.sleep(min(self.settings.heartbeat_s, LOOK_S))
            held = self._held
            with suppress(MemoryError):  # a model took it all
                if held is not None and time.monotonic() > self._until:
                    self._stop(held, transitions.TIMEOUT)
                # the main process kills one that was told to stop and does not
                if held is None or self._interrupt is None:
                    self._sign.beat()

    def _stop(self, held: Held, reason: str) -> None:
        if self._held is not held:
            return
        self._interrupt = held, reason
        # at later beats once more, for users' code may catch it and go on
        if time.monotonic() - self._interrupted_at > LEAVE_S:
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        interrupt = self._interrupt
        # the signal may come late, when the next trial runs already
        if interrupt is not None and interrupt[0] is self._held and self._is_interruptible:
            self._interrupted_at = time.monotonic()
            raise TrialInterrupted(interrupt[1])


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
