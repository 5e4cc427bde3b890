"""What a worker process shows its main process of the trial that it holds: a file, for the database may be down."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Variable through which a worker's main process tells its children where the files are.
FOLDER_VARIABLE = "GRIDFLEET_SIGNS_OF_LIFE"


class SignOfLife:
    """The file of this process; it is there while a trial is held.

    Parameters
    ----------
    folder : Path or None
        Where the main process looks; None: nobody does.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / f"{os.getppid()}-{os.getpid()}"

    def begin(self, until: float) -> None:
        """Show that a trial is held, and the time (of `time.monotonic`) at which its own has run out."""
        if self._file is not None:
            self._file.write_text(repr(until))

    def beat(self) -> None:
        """Show that this process lives."""
        if self._file is not None:
            with suppress(FileNotFoundError):  # the trial has just ended
                os.utime(self._file)

    def end(self) -> None:
        """Show that no trial is held any more."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SeenSign:
    """A sign of life as the main process finds it; ``beat`` differs from the last one if the process lives."""

    pid: int
    until: float
    beat: int
    file: Path


def signs_of_children(folder: Path) -> list[SeenSign]:
    """Return the signs of life of this process's children that hold a trial."""
    found = []
    for file in folder.glob(f"{os.getpid()}-*"):
        with suppress(FileNotFoundError):  # the trial has just ended
            until = float(file.read_text() or math.inf)  # empty: being written
            found.append(SeenSign(int(file.name.partition("-")[2]), until, file.stat().st_mtime_ns, file))
    return found


def forget_signs_of_the_dead(folder: Path) -> None:
    """Remove what the children of main processes left that were killed."""
    for file in folder.iterdir():
        parent = file.name.partition("-")[0]
        if parent == str(os.getpid()) or not _is_alive(int(parent)):
            file.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
