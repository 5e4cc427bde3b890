"""Celery's request of a trial, in the main process: says which worker process was lost with it."""

from __future__ import annotations

import re
import signal
from typing import Any

from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.utils.dispatch import Signal
from celery.worker.request import Request

from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import PREFIX

#: Sent when a worker process died, or is about to be killed, while it worked on a message.
process_lost = Signal(name="process_lost", providing_args={"pid", "outcome", "error"})

#: How billiard says in what way a process ended.
_SIGNAL = re.compile(r"signal (\d+)")
_STATUS = re.compile(r"exitcode (-?\d+)")

_MEMORY = f"{PREFIX}MEMORY_LIMIT_MB bounds what a process may take"
#: What stands behind a signal, as far as one can tell.
_CAUSES: dict[int, str] = {
    signal.SIGKILL: f"somebody killed it, or the kernel did because memory ran out; {_MEMORY}",
    signal.SIGABRT: f"a library gave up, as those in C++ do when they get no memory; {_MEMORY}",
    signal.SIGSEGV: "the model's code or a library that it uses crashed",
    signal.SIGBUS: "the model's code or a library that it uses crashed, or a disk is full",
}


class TrialRequest(Request):
    """A message that a worker process works on; Celery's own signals do not tell which process."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Tell of a process that died, after what Celery does."""
        super().on_failure(exc_info, send_failed_event, return_ok)
        # billiard may have wrapped it to carry a traceback
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        if self.worker_pid is None:
            return
        if isinstance(exception, TimeLimitExceeded):
            process_lost.send(
                sender=self, pid=self.worker_pid, outcome=Outcome.TIMEOUT, error="the attempt took too long"
            )
        elif isinstance(exception, (WorkerLostError, SystemExit)):
            error = explain_end(str(exception))
            process_lost.send(sender=self, pid=self.worker_pid, outcome=Outcome.WORKER_LOST, error=error)


def explain_end(message: str) -> str:
    """Return a sentence about a process's end.

    Parameters
    ----------
    message : str
        What billiard says of it: "Worker exited prematurely: signal 11 (SIGSEGV) Job: 3."
    """
    found = _SIGNAL.search(message)
    if found:
        number = int(found[1])
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        cause = _CAUSES.get(number, "nobody knows why")
        return f"the worker process was ended by signal {number} ({name}): {cause}"
    found = _STATUS.search(message)
    if found:
        return (
            f"the worker process ended itself with status {found[1]}: the model's code, or a library that it uses, "
            "called os._exit or exit()"
        )
    return f"the worker process ended: {message}"
