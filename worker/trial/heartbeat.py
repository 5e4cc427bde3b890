"""The heartbeat of a worker process: in a file it is a sign of life, in SQL it prolongs the lease.

The second is what its main process mostly does, for all its processes in one statement (`Watchdog`); where that says
nothing for a while, this process does it itself.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from gridfleet.worker.guards.peak_memory import PeakMemory
from gridfleet.worker.guards.sign_of_life import Found, SignOfLife
from gridfleet.worker.trial.interrupter import Interrupter

logger = logging.getLogger(__name__)

#: Seconds between looks at the time that a trial has left, and at its memory, if heartbeats are rarer.
LOOK_S = 1
#: MB beyond those that were told last at which the next heartbeat comes at once: what takes all memory of a container
#: may do so in less time than lies between two, and has to be told before the kernel ends all processes.
GROWN_MB = 256
#: Heartbeats without a trial after which this process closes its connections: a new one takes 40 ms, and those of a
#: thousand processes that wait are kept from nobody.
CLOSED_AFTER = 3
#: Seconds of a fit after which this process closes them too.
CLOSED_AFTER_S = 2


class Heartbeat:
    """Two threads: the database of one may be slow or down, which must not make this process look dead.

    Parameters
    ----------
    settings : Settings
        The lease's times.
    database : Database
        Where the trials are.
    interrupter : Interrupter
        Stops a trial that is lost, cancelled or over its time.
    sign : SignOfLife
        What the main process looks at.
    memory : PeakMemory
        What this process takes.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        interrupter: Interrupter,
        sign: SignOfLife,
        memory: PeakMemory,
    ) -> None:
        self._settings = settings
        self._database = database
        self._interrupter = interrupter
        self._sign = sign
        self._memory = memory
        self._told_mb = 0
        self._has_grown = threading.Event()
        self._until = math.inf
        self._began_at = math.inf

    def start(self) -> None:
        """Beat from now on."""
        threading.Thread(target=self._beat_for_ever, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._live_for_ever, name="life", daemon=True).start()

    def begin(self, until: float, held: Held) -> None:
        """Beat for a trial that may take until then (of `time.monotonic`)."""
        self._until = until
        self._began_at = time.monotonic()
        self._told_mb = self._memory.mb()
        self._sign.begin(until, held, self._told_mb)

    def take_longer(self) -> None:
        """Beat for the same trial, which is in time, without end."""
        self._until = math.inf
        self._sign.take_longer()

    def end(self) -> None:
        """Beat for no trial any more."""
        self._sign.end()

    def _beat_for_ever(self) -> None:
        pause_s, n_idle = self._settings.heartbeat_s, 0
        while True:
            has_grown = self._has_grown.wait(pause_s)
            self._has_grown.clear()
            pause_s = self._settings.heartbeat_s
            held = self._interrupter.held
            try:
                if held is not None:
                    n_idle = 0
                    if has_grown or not self._is_done_by_main(held):
                        self._beat(held)
                else:
                    n_idle += 1
                    if n_idle == CLOSED_AFTER:
                        self._database.close()
            # tried again soon, and not by all workers at once; memory may be what a model took
            except (SQLAlchemyError, MemoryError) as error:
                logger.warning("heartbeat failed: %s", type(error).__name__)
                pause_s *= random.uniform(0.1, 0.3)  # noqa: S311 - no secret

    def _is_done_by_main(self, held: Held) -> bool:
        """Whether the main process prolongs the lease so often that half of it is left at the next look."""
        answer = self._sign.answer()
        if answer is None:
            return False
        now, longest_s = time.monotonic(), self._settings.lease_s / 2 - self._settings.heartbeat_s
        # a claim is as good as the heartbeat that is yet to come, if there is somebody to send it
        prolonged_at = answer.at if answer.token == held.token else self._began_at
        return now - answer.at <= longest_s and now - prolonged_at <= longest_s

    def _beat(self, held: Held) -> None:
        self._told_mb = self._memory.mb()
        cancel = transitions.heartbeat(self._database, held, lease_s=self._settings.lease_s, memory_mb=self._told_mb)
        if cancel is None:
            self._interrupter.stop(held, "lease_lost")
        elif cancel:
            self._interrupter.stop(held, Outcome.CANCELLED)

    def _live_for_ever(self) -> None:
        while True:
            time.sleep(min(self._settings.heartbeat_s, LOOK_S))
            held = self._interrupter.held
            with suppress(MemoryError):  # a model took it all
                if held is not None and time.monotonic() > self._until:
                    self._interrupter.stop(held, Outcome.TIMEOUT)
                if held is not None and self._memory.mb() > self._told_mb + GROWN_MB:
                    self._has_grown.set()
                if held is not None:
                    self._heed_main(held)
                    if time.monotonic() > self._began_at + CLOSED_AFTER_S:
                        self._database.close_idle()
                # the main process kills one that was to stop and does not
                if held is None or not self._interrupter.is_stopping:
                    self._sign.beat(self._memory.mb())

    def _heed_main(self, held: Held) -> None:
        """Stop a trial of which the main process found that it is lost or cancelled."""
        answer = self._sign.answer()
        if answer is None or answer.token != held.token:
            return
        if answer.found == Found.LOST:
            self._interrupter.stop(held, "lease_lost")
        elif answer.found == Found.CANCELLED:
            self._interrupter.stop(held, Outcome.CANCELLED)
