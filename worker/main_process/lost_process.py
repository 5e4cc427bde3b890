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
    signal.SIGABRT: f"a library gave up, as those in C++ do when they get no memory or no thread; {_MEMORY}",
    signal.SIGSEGV: "the model's code or a library that it uses crashed",
    signal.SIGBUS: "the model's code or a library that it uses crashed, or a disk or /dev/shm is full",
    signal.SIGILL: "a library has instructions that this machine's processor lacks, as TensorFlow's wheels have AVX; "
    "install a build made for this processor, or run the worker on another machine",
    signal.SIGFPE: "the model's code or a library that it uses divided an integer by zero",
    signal.SIGSYS: "the container's seccomp profile forbids a system call that a library makes",
    signal.SIGXCPU: "it used up the processor time that `ulimit -t` leaves it",
    signal.SIGXFSZ: "it wrote a file larger than `ulimit -f` allows",
    signal.SIGTERM: "somebody, or the model's own code, asked it to end",
}
#: What statuses mean that shells and libraries give.
_STATUSES: dict[int, str] = {
    126: "a program that it started could not be run",
    127: "a program that it started was not found",
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
        status = int(found[1])
        if status - 128 in _CAUSES:  # how shells, and programs that forked, pass a signal on
            name = signal.Signals(status - 128).name
            cause = f"as after signal {status - 128} ({name}): {_CAUSES[status - 128]}"
        else:
            cause = _STATUSES.get(status, "the model's code, or a library that it uses, called os._exit or exit()")
        return f"the worker process ended itself with status {status}: {cause}"
    return f"the worker process ended: {message}"
