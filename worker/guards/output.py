"""What a model prints is logged, but not without end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

#: Characters that one trial may print.
MAX_CHARACTERS = 65_536


class _Bounded:
    """A stream that hands on what one trial may print and counts the rest; all else is the stream's own."""

    def __init__(self, stream: Any, allowance: _Allowance) -> None:
        self._stream = stream
        self._allowance = allowance

    def write(self, text: str) -> int:
        allowed = self._allowance.take(len(text))
        if allowed:
            self._stream.write(text[:allowed])
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Allowance:
    """How much may be printed still; standard output and error share one."""

    def __init__(self, characters: int) -> None:
        self.left = characters
        self.dropped = 0

    def take(self, wanted: int) -> int:
        allowed = min(wanted, self.left)
        self.left -= allowed
        self.dropped += wanted - allowed
        return allowed


@contextmanager
def bounded_output(max_characters: int = MAX_CHARACTERS) -> Iterator[None]:
    """Bound what is written to ``sys.stdout`` and ``sys.stderr``; at the end, a line says how much was dropped."""
    allowance = _Allowance(max_characters)
    out, err = sys.stdout, sys.stderr
    try:
        # any, for a stream that a file-like object of Celery's stands for
        bounded_out: Any = _Bounded(out, allowance)
        bounded_err: Any = _Bounded(err, allowance)
        with redirect_stdout(bounded_out), redirect_stderr(bounded_err):
            yield
    finally:
        if allowance.dropped:
            err.write(
                f"\nthe trial printed {max_characters + allowance.dropped} characters; the last {allowance.dropped} "
                "are not shown\n"
            )
