"""What a trial prints is logged, but not without end: its own prints, those of C code, and those of its children."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gridfleet.worker.guards import output_reader

#: Bytes that one trial may print.
MAX_BYTES = 65_536
#: Standard output and standard error.
PRINTED = (1, 2)
#: Seconds that the reading process may take to answer; it may be waiting for a log on a slow disk.
ANSWER_S = 60


@contextmanager
def bounded_output() -> Iterator[None]:
    """Bound what this process and its children write to standard output and error; at the end, a line says how much.

    Both go to a pipe meanwhile. Not to be interrupted: call it around what a signal may interrupt.
    """
    reader = _the_reader()
    reader.say(output_reader.BEGIN)
    _flush()
    kept = [os.dup(number) for number in PRINTED]
    try:
        for number in PRINTED:
            os.dup2(reader.pipe, number)
        yield
    finally:
        _flush()
        for number, old in zip(PRINTED, kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        reader.say(output_reader.END)


class _ReadingProcess:
    """The process that reads what is printed, and the pipe to it."""

    def __init__(self, max_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        source, self.pipe = os.pipe()
        try:
            script = [sys.executable, "-I", "-S", str(Path(output_reader.__file__)), str(source), str(max_bytes)]
            # in a session of its own: Ctrl-C is not for it, it ends with this process
            self._process = subprocess.Popen(
                script, stdin=theirs.fileno(), pass_fds=[source], cwd="/", start_new_session=True
            )
        except BaseException:
            os.close(self.pipe)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(source)
        self._owner = os.getpid()
        self._control = ours
        self._control.settimeout(ANSWER_S)

    @property
    def is_alive(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def say(self, word: bytes) -> None:
        """Say that a trial begins or has ended, and wait until that is known there."""
        if os.getpid() == self._owner:  # a copy that a model forked ends soon
            with suppress(OSError):  # somebody killed the reader; the next trial starts another
                self._control.sendall(word)
                self._control.recv(1)

    def stop(self) -> None:
        """End it, when it has read all."""
        self._control.close()
        os.close(self.pipe)
        self._process.wait()


_reader: _ReadingProcess | None = None


def _the_reader() -> _ReadingProcess:
    global _reader
    if _reader is None or not _reader.is_alive:
        if _reader is not None:
            _reader.stop()
        _reader = _ReadingProcess(MAX_BYTES)
    return _reader


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something else
            stream.flush()  # type: ignore[union-attr]
