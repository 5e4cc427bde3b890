"""The process that reads what a worker process and its children print in a trial, and hands on so much and no more.

A process of its own, run as a script: a thread would wait for Python's lock, which code in C that prints may hold, and
what a process prints as it crashes would be lost with it.
"""

import os
import select
import signal
import socket
import sys
from contextlib import suppress

#: What the worker process says: a trial begins, a trial has ended. Each is answered by the same byte.
BEGIN, END = b"b", b"e"
#: Bytes that a pipe holds at most, so that one read empties it.
PIPE_BYTES = 1024 * 1024
#: Seconds between looks whether the worker process lives: a copy that it forked may keep the pipe open.
LOOK_S = 5.0


class _Reader:
    """Hands bytes of a pipe on to standard error, as long as the trial may print."""

    def __init__(self, source: int, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._left = 0  # between trials, what children of the last one print is dropped
        self._dropped = 0
        os.set_blocking(source, False)

    def read(self) -> None:
        """Take what the pipe holds."""
        try:
            printed = os.read(self._source, PIPE_BYTES)
        except BlockingIOError:
            return
        shown = printed[: self._left]
        self._left -= len(shown)
        self._dropped += len(printed) - len(shown)
        _write(shown)

    def begin(self) -> None:
        """Let the next trial print."""
        self.read()
        self._left, self._dropped = self._max_bytes, 0

    def end(self) -> None:
        """Say how much of a trial was dropped, and let nothing more through."""
        self.read()
        if self._dropped:
            printed = self._max_bytes + self._dropped
            _write(f"\nthe trial printed {printed} bytes; the last {self._dropped} are not shown\n".encode())
        self._left = 0


def _write(content: bytes) -> None:
    with suppress(OSError):  # a log that is full or gone
        while content:
            content = content[os.write(2, content) :]


def _run(source: int, max_bytes: int) -> None:
    parent = os.getppid()
    reader = _Reader(source, max_bytes)
    with socket.socket(fileno=0) as control:
        while os.getppid() == parent:
            readable, _, _ = select.select([source, control.fileno()], [], [], LOOK_S)
            if source in readable:
                reader.read()
            if control.fileno() in readable:
                word = control.recv(1)
                if not word:
                    break
                {BEGIN: reader.begin, END: reader.end}[word]()
                with suppress(OSError):  # of one that was killed before it heard, as at the end of a script
                    control.sendall(word)
    reader.read()  # the last words of a process that crashed


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _run(int(sys.argv[1]), int(sys.argv[2]))
