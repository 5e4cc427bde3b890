"""How much memory this process takes: who ended a worker, what a model needs, when a process is to be replaced."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

#: What the kernel says of this process; its resident memory, most and now, in kB.
_STATUS = Path("/proc/self/status")
_MOST = re.compile(rb"^VmHWM:\s+(\d+)", re.MULTILINE)
_NOW = re.compile(rb"^VmRSS:\s+(\d+)", re.MULTILINE)
#: Of that, what is in no file.
_OWN = re.compile(rb"^RssAnon:\s+(\d+)", re.MULTILINE)
#: Where the kernel is told to forget the most, and how (proc_pid_clear_refs(5)).
_CLEAR_REFS = Path("/proc/self/clear_refs")
_FORGET_MOST = "5"


class PeakMemory:
    """The most resident memory of this process, in MB, counted anew for each trial.

    Data that worker processes of a host share counts in each of them; what a model's own processes take does not.
    """

    def __init__(self) -> None:
        self._can_forget = False
        self._most_seen_mb = 0

    def begin(self) -> None:
        """Count anew."""
        self._most_seen_mb = 0
        self._can_forget = False
        with suppress(OSError):  # of a system that has no such file, or lets nobody write it
            _CLEAR_REFS.write_text(_FORGET_MOST)
            self._can_forget = True

    def mb(self) -> int:
        """Return the most so far; where the kernel counts on from trial to trial, the most of all calls."""
        try:
            status = _STATUS.read_bytes()
        except OSError:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the process's whole life
            return int(most // (1_000_000 if sys.platform == "darwin" else 1_000))
        found = _MOST.search(status) if self._can_forget else None
        found = found or _NOW.search(status)
        if found is not None:
            self._most_seen_mb = max(self._most_seen_mb, int(found[1]) * 1_024 // 1_000_000)
        return self._most_seen_mb


def memory_mb() -> int | None:
    """Return the resident memory of this process, in MB; None where nobody says."""
    try:
        found = _NOW.search(_STATUS.read_bytes())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1_024 // 1_000_000


def own_memory_kb() -> int:
    """Return the memory of this process now, in kB, without files that it has mapped: the fleet's data, libraries."""
    with suppress(OSError):
        found = _OWN.search(_STATUS.read_bytes())
        if found is not None:
            return int(found[1])
    from billiard.compat import mem_rss  # scripts import this module, and Celery's libraries are not theirs

    return int(mem_rss())


def replace_by_own_memory() -> None:
    """Let Celery replace this process for the memory that is its own, after its trial.

    Billiard looks at the most that was ever resident: data beyond ``GRIDFLEET_MAX_MEMORY_MB``, which processes of
    a host share, would end each process after each trial.
    """
    from billiard import pool

    pool.mem_rss = own_memory_kb
