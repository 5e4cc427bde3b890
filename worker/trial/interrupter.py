"""Stops the evaluation of a trial in the middle of users' code: by a signal, whose handler raises."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gridfleet.storage.trials.held import Held

#: Raised in the process itself to stop a fit; no library of ours uses it.
INTERRUPT = signal.SIGUSR2
#: Seconds that an interrupted fit gets to leave before it is interrupted once more.
LEAVE_S = 5


class TrialInterrupted(BaseException):
    """The running trial is to stop: its lease is lost, its time is over, or it was cancelled.

    Not an ``Exception``, for scikit-learn and users' code catch those and would go on.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Interrupter:
    """What other threads of a worker process say to its main thread, which evaluates a trial.

    Attributes
    ----------
    held : Held or None
        The trial that is evaluated.
    """

    def __init__(self) -> None:
        self.held: Held | None = None
        self._is_interruptible = False
        self._interrupt: tuple[Held, str] | None = None
        self._interrupted_at = -math.inf
        signal.signal(INTERRUPT, self._on_interrupt)

    @property
    def is_stopping(self) -> bool:
        """Whether the trial was to stop."""
        return self._interrupt is not None

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        """Be about a trial; what was said about the last one does not count."""
        self._interrupt = None
        self._interrupted_at = -math.inf
        self._is_interruptible = False
        self.held = held
        try:
            yield
        finally:
            self.held = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Do what `TrialInterrupted` may end: evaluate the trial, but not record it."""
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False
        if self._interrupt is not None:  # users' code caught it and went on
            raise TrialInterrupted(self._interrupt[1])

    def stop(self, held: Held, reason: str) -> None:
        """Interrupt the evaluation of a trial, if it is still that one; called again and again, until it ends."""
        if self.held is not held:
            return
        self._interrupt = held, reason
        # at later beats once more, for users' code may catch it and go on
        if time.monotonic() - self._interrupted_at > LEAVE_S:
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        interrupt = self._interrupt
        # the signal may come late, when the next trial runs already
        if interrupt is not None and interrupt[0] is self.held and self._is_interruptible:
            self._interrupted_at = time.monotonic()
            raise TrialInterrupted(interrupt[1])
