"""What a worker process shows its main process of the trial that it holds: a file, for the database may be down."""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Variable through which a worker's main process shows its children where the files are.
FOLDER_VARIABLE = "GRIDFLEET_SIGNS_OF_LIFE"

#: A file's name: the ids of the main process and of its child.
_NAME = re.compile(r"(?P<parent>[1-9][0-9]{0,9})-(?P<pid>[1-9][0-9]{0,9})")
#: A file's content: a time of `time.monotonic`, or NaN while no trial is held.
_CONTENT = struct.Struct("d")


class SignOfLife:
    """The file of this process. It stays open: to make it anew for each trial would take a millisecond.

    Parameters
    ----------
    folder : Path or None
        Where the main process looks; None: nobody does.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else (folder / f"{os.getppid()}-{os.getpid()}").open("wb", buffering=0)
        self.end()

    def begin(self, until: float) -> None:
        """Show that a trial is held, and the time (of `time.monotonic`) at which its own has run out."""
        self._show(until)

    def beat(self) -> None:
        """Show that this process lives."""
        if self._file is not None:
            os.utime(self._file.fileno())

    def end(self) -> None:
        """Show that no trial is held any more."""
        self._show(math.nan)

    def _show(self, until: float) -> None:
        if self._file is not None:
            os.pwrite(self._file.fileno(), _CONTENT.pack(until), 0)


@dataclass(frozen=True, slots=True)
class SeenSign:
    """A sign of life as the main process finds it; ``beat`` differs from the last one if the process lives."""

    pid: int
    until: float
    beat: int
    file: Path

    @property
    def holds_a_trial(self) -> bool:
        """Whether the process evaluates one."""
        return not math.isnan(self.until)


def signs_of_children(folder: Path) -> list[SeenSign]:
    """Return the signs of life of this process's children."""
    found = []
    for parent, pid, file in _signs(folder):
        with suppress(struct.error):  # empty, for its process has just begun
            if parent == os.getpid():
                (until,) = _CONTENT.unpack(file.read_bytes())
                found.append(SeenSign(pid, until, file.stat().st_mtime_ns, file))
    return found


def forget_signs_of_the_dead(folder: Path) -> None:
    """Remove what the children of main processes left that were killed."""
    for parent, _, file in _signs(folder):
        if parent == os.getpid() or not _is_alive(parent):
            file.unlink(missing_ok=True)


def _signs(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Find the files that look as `SignOfLife` makes them, with the ids of the two processes: nothing else is ours."""
    for file in folder.iterdir():
        name = _NAME.fullmatch(file.name)
        with suppress(FileNotFoundError):  # another worker removed it
            if name is not None and stat.S_ISREG(file.lstat().st_mode):
                yield int(name["parent"]), int(name["pid"]), file


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
