"""The processes of one worker evaluate trials side by side, or one of them alone while the others wait."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Bytes of the file that are locked: one to get in, one for as long as one is inside. Without the first, a process that
#: wants to be alone would wait for as long as there are others.
_DOOR, _ROOM = 0, 1


class Neighbours:
    """Locks of one file. The kernel frees them with the process that has them; copies that a model forks have none.

    Parameters
    ----------
    folder : Path or None
        The private folder of the worker; None: this process has no neighbours.
    """

    def __init__(self, folder: Path | None) -> None:
        # named as the sign of life of a process that can't be, so that it goes with those of a dead worker
        file = None if folder is None else folder / f"{os.getppid()}-0"
        self._file = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Evaluate beside others; wait while one is alone, or wants to be."""
        with self._inside(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Evaluate alone; wait until the others have ended what they do."""
        with self._inside(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _inside(self, kind: int) -> Iterator[None]:
        self._lock(fcntl.LOCK_EX, _DOOR)
        try:
            self._lock(kind, _ROOM)
        finally:
            self._lock(fcntl.LOCK_UN, _DOOR)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _ROOM)

    def _lock(self, kind: int, byte: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, kind, 1, byte)
