"""What a worker process leaves behind when it dies: processes that its model's code started."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from gridfleet.worker.guards.prctl import PR_SET_CHILD_SUBREAPER, prctl


def adopt_orphans() -> None:
    """Become the parent of this process's descendants whose own parent dies (Linux)."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_orphans(own: Collection[int]) -> None:
    """Kill this process's children, except its own, and what these leave behind, and take note of their end.

    Parameters
    ----------
    own : collection of int
        The children that this process started, dead ones included whose end somebody else waits for.
    """
    while orphans := children() - set(own):
        for pid in orphans:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def children() -> set[int]:
    """Return the ids of this process's children, those included whose end nobody has waited for (Linux)."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that ended meanwhile
            found.update(map(int, file.read_text().split()))
    return found
