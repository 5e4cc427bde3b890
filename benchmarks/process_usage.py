"""Seconds of the processor, and memory at its peak, of a process and all that it starts; Linux only."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

#: Between two looks: what runs for less than this is missed.
INTERVAL_S = 0.2
TICKS = os.sysconf("SC_CLK_TCK")


class Usage:
    """A block of code in which a process and its descendants are watched.

    Parameters
    ----------
    root : int
        Process id of the first.

    Attributes
    ----------
    cpu_s : float
        Seconds of the processor in the block, without those that the watching took in this process.
    peak_mb : float
        Megabytes of all of them together at most; what they share counts once.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._own_s = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> Usage:
        self._first = {pid: cpu_s_of(pid) for pid in tree_of(self._root)}
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ends.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        used = sum(self._last.values()) - sum(self._first.get(pid, 0.0) for pid in self._last)
        return used - (self._own_s if os.getpid() in self._last else 0.0)

    def _watch(self) -> None:
        started = time.thread_time()
        while True:
            ends = self._ends.wait(INTERVAL_S)
            pids = tree_of(self._root)
            self._last |= {pid: cpu_s_of(pid) or self._last.get(pid, 0.0) for pid in pids}
            self.peak_mb = max(self.peak_mb, sum(map(pss_mb_of, pids)))
            self._own_s = time.thread_time() - started
            if ends:
                return


def tree_of(root: int) -> list[int]:
    """Return the ids of a process and its descendants."""
    parents = {int(path.name): _stat(int(path.name))[1] for path in Path("/proc").iterdir() if path.name.isdigit()}
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if int(parent or 0) == pid]
    return tree


def cpu_s_of(pid: int) -> float:
    """Return the seconds of the processor that a process took so far; 0 if it is gone."""
    return sum(map(int, _stat(pid)[11:13])) / TICKS


def pss_mb_of(pid: int) -> float:
    """Return the megabytes that a process has, shared ones divided by those who share them; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat behind the name, which may have blanks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 13
