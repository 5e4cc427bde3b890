"""The main process's watch over its worker processes: it ends those that hang and takes back what the dead held."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import first_line
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held, held_by
from gridfleet.worker.broker.app import KILL_AFTER_S
from gridfleet.worker.guards.sign_of_life import Found, SeenSign, signs_of_children

logger = logging.getLogger(__name__)

#: Seconds of silence that are nothing yet, however short the lease: TensorFlow's import lets no other thread run.
MIN_SILENCE_S = 5

#: What an attempt came to and why, as a sentence.
Reason = tuple[Outcome, str]


@dataclass(frozen=True, slots=True)
class _Silence:
    """How long no sign of life was seen of a process."""

    beat: float
    seconds: float


class Watchdog:
    """A thread of the main process.

    What hangs is seen by files that the processes touch, so that a database that is down ends no training; what
    is to be taken back is asked of the database, so that it is found even if its process died while it claimed it.

    Parameters
    ----------
    settings : Settings
        Lease and heartbeat.
    database : Database
        Where the trials are.
    signs : Path
        Where the processes show that they live.
    node : str
        The worker's name, with which the ids of its processes begin.
    processes : callable
        Returns the ids of the worker processes that live.
    publish_again : callable
        Called with the ids of trials that were taken back.
    top_up : callable
        Called at each look while trials run here: messages may have become few.
    drain : callable
        Called when somebody asked this worker to drain, at each look from then on.
    take_out : callable
        Called once a process noted that the worker takes itself out.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        signs: Path,
        *,
        node: str,
        processes: Callable[[], Collection[int]],
        publish_again: Callable[[Sequence[int]], None],
        top_up: Callable[[], None],
        drain: Callable[[], None],
        take_out: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._signs = signs
        self._node = node
        self._processes = processes
        self._publish_again = publish_again
        self._top_up = top_up
        self._drain = drain
        self._take_out = take_out
        #: those of a worker of this name that ran before
        self._stopped_before: Collection[str] = ()
        self._reasons: dict[int, Reason] = {}
        self._unexplained: set[int] = set()
        self._silences: dict[int, _Silence] = {}
        self._is_busy = False
        self._alive_before: frozenset[int] = frozenset()
        self._ask_until = -math.inf
        self._looked_at = time.monotonic()
        self._wake = threading.Event()
        self._is_stopped = False

    def start(self) -> None:
        """Watch from now on, every ``heartbeat_s`` and whenever a process was lost."""
        with suppress(SQLAlchemyError):
            self._stopped_before = workers.stopped_processes(self._database, self._node).keys()
        threading.Thread(target=self._watch_for_ever, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more: the processes are about to end because the worker does."""
        self._is_stopped = True

    def on_process_lost(self, pid: int, outcome: Outcome, error: str, **_: Any) -> None:
        """Note why a process died, and look what it held."""
        self._reasons.setdefault(pid, (outcome, error))
        self._wake.set()

    def _watch_for_ever(self) -> None:
        while True:
            self._wake.wait(self._settings.heartbeat_s)
            self._wake.clear()
            if self._is_stopped:
                return
            try:
                if self._look():
                    return
            except SQLAlchemyError as error:
                logger.warning("the trials of dead processes can't be taken back yet: %s", first_line(error))
            except Exception:
                logger.exception("watchdog")

    def _look(self) -> bool:
        """Look once; returns whether it was the last time. A worker that idles asks the database for little."""
        self._beat(self._end_what_hangs())
        self._take_back_from_the_dead()
        asked = workers.note_seen(self._database, self._node, self._ids_of_processes())
        if self._is_out(asked.stopped):
            return True
        alive = self._ids_of_processes()  # after the question, or one that began meanwhile would be dead
        if not asked.present <= set(alive):
            workers.note_ended(self._database, self._node, alive=alive)
        if asked.is_draining:
            self._drain()
        if self._is_busy:
            self._top_up()
        return False

    def _ids_of_processes(self) -> list[str]:
        return [f"{self._node}/{pid}" for pid in self._processes()]

    def _is_out(self, stopped: Mapping[str, str]) -> bool:
        """Take the worker out if one of its processes noted that it can't evaluate trials."""
        reasons = [reason for process_id, reason in stopped.items() if process_id not in self._stopped_before]
        if not reasons:
            return False
        logger.critical("worker %s takes itself out: %s", self._node, reasons[0])
        self._take_out()
        return True

    def _beat(self, living: Sequence[SeenSign]) -> None:
        """Prolong the leases of processes that live, and tell them what was found."""
        beating = {sign.held: sign.memory_mb for sign in living if sign.holds_a_trial}
        prolonged = transitions.heartbeats(self._database, beating, lease_s=self._settings.lease_s)
        for sign in living:
            if not sign.holds_a_trial or prolonged.get(sign.held) is False:
                sign.answer(Found.HELD)
            else:
                sign.answer(Found.CANCELLED if sign.held in prolonged else Found.LOST)

    def _end_what_hangs(self) -> list[SeenSign]:
        """End the processes that hang; returns the signs of those that showed since the last look that they live."""
        now = time.monotonic()
        # this process may have been stopped itself, or the machine asleep: what nobody watched is no silence
        watched_s = min(now - self._looked_at, 2 * self._settings.heartbeat_s)
        self._looked_at = now
        signs = signs_of_children(self._signs)
        self._is_busy = any(sign.holds_a_trial for sign in signs)
        before, self._silences = self._silences, {}
        alive, living = self._processes(), []
        for sign in signs:
            if sign.pid not in alive:
                sign.file.unlink(missing_ok=True)
                continue
            silence = self._silences[sign.pid] = _silence_of(sign, before.get(sign.pid), watched_s)
            reason = self._reason_to_end(sign, now)
            if reason is None and not silence.seconds:
                living.append(sign)
            if reason is not None:
                logger.error("worker process %d is killed: %s", sign.pid, reason[1])
                self._reasons[sign.pid] = reason
                with suppress(ProcessLookupError):
                    os.kill(sign.pid, signal.SIGKILL)  # the pool replaces it, and reports when it is gone
        return living

    def _reason_to_end(self, sign: SeenSign, now: float) -> Reason | None:
        settings = self._settings
        if not sign.holds_a_trial:
            return None
        if now > sign.until + settings.heartbeat_s + min(KILL_AFTER_S, settings.lease_s):
            return Outcome.TIMEOUT, "the attempt took too long, and did not stop when it was interrupted"
        silent_s = self._silences[sign.pid].seconds
        if silent_s > max(settings.lease_s, MIN_SILENCE_S):
            return (
                Outcome.WORKER_LOST,
                f"the worker process gave no sign of life for {silent_s:.0f} s: the model's code hangs",
            )
        return None

    def _take_back_from_the_dead(self) -> None:
        """Take back what dead processes held; where nothing runs and nobody died lately, the database is not asked."""
        alive = frozenset(self._processes())
        if self._is_busy or alive != self._alive_before:
            # what a process sent before its death may be committed after it; after a lease, the reconciler looks
            self._ask_until = time.monotonic() + self._settings.lease_s
        if time.monotonic() < self._ask_until:
            self._take_back()
        self._alive_before = alive

    def _take_back(self) -> None:
        explained = set(self._reasons)
        held = [(_process_id(one), one) for one in held_by(self._database, self._node)]
        alive = self._processes()  # after the question: who lived when it claimed and is not there now is dead
        dead = {pid for pid, _ in held if pid not in alive}
        # the pool reports why a process died a moment after it forgot it
        unexplained = dead - self._reasons.keys() - self._unexplained
        taken_back = [self._reap(pid, one) for pid, one in held if pid in dead - unexplained]
        self._unexplained = unexplained
        for pid in explained - set(alive):
            del self._reasons[pid]
        if taken_back:
            self._publish_again(taken_back)

    def _reap(self, pid: int, held: Held) -> int:
        outcome, error = self._reasons.get(pid, (Outcome.WORKER_LOST, "the worker process ended"))
        max_failures = self._settings.max_failures
        transitions.reap(self._database, held, outcome=outcome, error=error, max_failures=max_failures)
        return held.trial_id


def _silence_of(sign: SeenSign, before: _Silence | None, watched_s: float) -> _Silence:
    silent_s = before.seconds + watched_s if before is not None and before.beat == sign.beat else 0.0
    return _Silence(sign.beat, silent_s)


def _process_id(held: Held) -> int:
    try:
        return int((held.worker_id or "").rpartition("/")[2])
    except ValueError:  # no id of a worker process, so nobody holds it: one row must not keep all others from us
        return -1
