"""What a worker process shows its main process of the trial that it holds, and what that answers.

A file and not the database, which may be down. The process writes the first part of it, its main process the second.
"""

from __future__ import annotations

import enum
import math
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gridfleet.storage.trials.held import Held

#: Variable through which a worker's main process shows its children where the files are.
FOLDER_VARIABLE = "GRIDFLEET_SIGNS_OF_LIFE"

#: A file's name: the ids of the main process and of its child.
_NAME = re.compile(r"(?P<parent>[1-9][0-9]{0,9})-(?P<pid>[1-9][0-9]{0,9})")
#: What the process shows: a time of `time.monotonic`, or NaN while no trial is held; when it was written, by which its
#: main process sees that it lives; the trial, the token that it is held with, and the memory that it takes.
_CONTENT = struct.Struct("=ddqq32s")
#: What its main process answers: when it prolonged leases last, and of the trial with which token what it found.
_ANSWER = struct.Struct("=db32s")


class Found(enum.IntEnum):
    """What the main process found out about a trial as it prolonged its lease."""

    HELD = 0
    CANCELLED = 1
    #: There is no such lease any more.
    LOST = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the main process answered last: when (of `time.monotonic`), and about the trial of which token."""

    at: float
    found: Found
    token: str


class SignOfLife:
    """The file of this process. It stays open: to make it anew for each trial would take a millisecond.

    Parameters
    ----------
    folder : Path or None
        Where the main process looks; None: nobody does.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else (folder / f"{os.getppid()}-{os.getpid()}").open("w+b", buffering=0)
        self.end()

    def begin(self, until: float, held: Held, memory_mb: int) -> None:
        """Show that a trial is held, and the time (of `time.monotonic`) at which its own has run out."""
        self._until, self._held = until, held
        self.beat(memory_mb)

    def take_longer(self) -> None:
        """Show that the trial that is held may take as long as it does."""
        self._until = math.inf

    def beat(self, memory_mb: int) -> None:
        """Show that this process lives, and the memory that it takes."""
        if self._file is not None:
            held = self._held
            shown = _CONTENT.pack(self._until, time.monotonic(), held.trial_id, memory_mb, held.token.encode())
            os.pwrite(self._file.fileno(), shown, 0)

    def end(self) -> None:
        """Show that no trial is held any more."""
        self._until, self._held = math.nan, Held(0, "")
        self.beat(0)

    def answer(self) -> Answer | None:
        """Return what the main process answered last; None if it never did."""
        raw = b"" if self._file is None else os.pread(self._file.fileno(), _ANSWER.size, _CONTENT.size)
        if len(raw) < _ANSWER.size:
            return None
        at, found, token = _ANSWER.unpack(raw)
        return Answer(at, Found(found), token.rstrip(b"\0").decode())


@dataclass(frozen=True, slots=True)
class SeenSign:
    """A sign of life as the main process finds it; ``beat`` differs from the last one if the process lives."""

    pid: int
    until: float
    beat: float
    file: Path
    held: Held
    memory_mb: int

    @property
    def holds_a_trial(self) -> bool:
        """Whether the process evaluates one."""
        return not math.isnan(self.until)

    def answer(self, found: Found) -> None:
        """Tell the process what was found as leases were prolonged, just now."""
        with suppress(OSError):  # it is gone, and its file
            file = os.open(self.file, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                answer = _ANSWER.pack(time.monotonic(), found, self.held.token.encode())
                os.pwrite(file, answer, _CONTENT.size)
            finally:
                os.close(file)


def signs_of_children(folder: Path) -> list[SeenSign]:
    """Return the signs of life of this process's children."""
    found = []
    for parent, pid, file in _signs(folder):
        if parent != os.getpid():
            continue
        with suppress(struct.error, UnicodeError):  # empty, for its process has just begun, or a model wrote into it
            until, beat, trial_id, memory_mb, token = _CONTENT.unpack_from(file.read_bytes())
            held = Held(trial_id, token.rstrip(b"\0").decode("ascii"))
            found.append(SeenSign(pid, until, beat, file, held, memory_mb))
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
