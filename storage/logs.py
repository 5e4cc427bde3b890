"""How every service of a fleet writes its log: as text or JSON, with what it works on, and equal lines once."""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from gridfleet.storage.plain import plain, plain_lines

#: Seconds in which a line that was written is not written again, but counted.
HOLD_S = 60
#: Lines of which it is known at most that they were written: a message may have a number in it that always differs.
MAX_HELD = 500
#: Characters of a line that are written; of longer ones, as a model may print them, the end.
MAX_MESSAGE = 65_536
#: The logger of what models print, which is written as often as they print it.
PRINTED = "celery.redirected"

#: What this process works on now: a worker process evaluates one trial at a time, and all its threads work for it.
_work: dict[str, Any] = {}


@contextmanager
def working_on(**work: Any) -> Iterator[None]:
    """Have all lines say what this process works on: search, trial, attempt."""
    global _work
    _work = work  # another dict, for other threads may be reading the one of before
    try:
        yield
    finally:
        _work = {}


def log_to_stderr(
    level: str, style: Literal["text", "json"], *, service: str, worker: str | None = None
) -> logging.Handler:
    """Let this process write its log to standard error, and nothing else write there that logs.

    Parameters
    ----------
    level : str
        The lowest level of gridfleet's own lines. Of other libraries there are warnings, at DEBUG what they do as well.
    style : "text" or "json"
        One line an event, or one JSON object.
    service : str
        What this process is.
    worker : str, default=None
        The name of a worker or of its process.

    Returns
    -------
    logging.Handler
        What writes.
    """
    handler = OnceHandler(sys.__stderr__)
    formatter: type[_Text] | type[_Json] = _Json if style == "json" else _Text
    handler.setFormatter(formatter({"service": service, **({} if worker is None else {"worker": worker})}))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if level == "DEBUG" else max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("gridfleet").setLevel(level)
    return handler


class OnceHandler(logging.StreamHandler[Any]):
    """Writes an equal line once in `HOLD_S`, and then how often it came: with the next line of any kind.

    A process that can't reach its database says so every few seconds otherwise, in each of its threads.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._held = HeldLines()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless it was written a short time ago."""
        for each in [record] if record.name == PRINTED else self._held.note(record, time.monotonic()):
            super().emit(each)

    def close(self) -> None:
        """Write what is held back."""
        for each in self._held.take_all():
            super().emit(each)
        super().close()


@dataclass(slots=True)
class _Line:
    """A line that was written, and how often it came since."""

    record: logging.LogRecord
    written: float
    last: float
    count: int = 0

    def counted(self) -> logging.LogRecord:
        """Return the line as it is written that came again."""
        record = copy.copy(self.record)
        times = "once more" if self.count == 1 else f"{self.count} times"
        record.msg, record.args = f"{self.record.getMessage()} ({times} in {self.last - self.written:.0f} s)", None
        record.exc_info = record.exc_text = None
        return record


class HeldLines:
    """Lines that were written, and how often equal ones came since."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Any, ...], _Line] = {}

    def note(self, record: logging.LogRecord, now: float) -> list[logging.LogRecord]:
        """Note a line at a time (of `time.monotonic`); returns what is to be written then."""
        raised = record.exc_info[1] if record.exc_info else None
        key = (record.name, record.levelno, record.getMessage(), repr(raised), *_work.items())
        known = self._lines.pop(key, None)
        due = self._take(now - HOLD_S)
        shown = record
        if known is not None:
            known.record, known.last, known.count = record, now, known.count + 1
            if now - known.written < HOLD_S:
                self._lines[key] = known
                return due
            shown = known.counted()
        elif len(self._lines) >= MAX_HELD:
            self._lines.pop(next(iter(self._lines)))
        self._lines[key] = _Line(record, now, now)
        return [*due, shown]

    def take_all(self) -> list[logging.LogRecord]:
        """Forget all lines; returns those that came again since they were written."""
        return self._take(math.inf)

    def _take(self, before: float) -> list[logging.LogRecord]:
        over = {key: line for key, line in self._lines.items() if line.written <= before}
        for key in over:
            del self._lines[key]
        return [line.counted() for line in over.values() if line.count]


class _Text(logging.Formatter):
    """Time, level, who, what it works on, and the message; further lines of it are set in."""

    def __init__(self, facts: dict[str, str]) -> None:
        super().__init__()
        self._who = plain(facts.get("worker") or facts["service"])

    def format(self, record: logging.LogRecord) -> str:
        text = plain_lines(_message(self, record)).replace("\n", "\n    ")
        work = plain("".join(f" {name} {value}" for name, value in _work.items()))
        return f"{_time(record)} {record.levelname} {self._who}{work}: {text}"


class _Json(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def __init__(self, facts: dict[str, str]) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": _time(record), "level": record.levelname, **self._facts, **_work, "logger": record.name}
        return json.dumps({**facts, "message": _message(self, record)}, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + formatter.formatException(record.exc_info)
    if record.stack_info:
        message += "\n" + formatter.formatStack(record.stack_info)
    return message if len(message) <= MAX_MESSAGE else f"…{message[-MAX_MESSAGE:]}"
