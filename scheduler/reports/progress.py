"""What ``fit`` and ``watch`` show while they wait: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from gridfleet.scheduler.reports.pace import Pace, roughly
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.reader import Progress, WaitingForPython

if TYPE_CHECKING:
    from rich.text import Text

#: Lines of a search at most that goes on in a log, but for those that time alone brings.
STEPS = 20
#: Seconds between lines while nothing but time changes.
LINE_S = 300.0
#: Characters of a bar; one that has less room than the smaller is left out.
BAR_WIDTH, MIN_BAR_WIDTH = 40, 10
#: Characters to which a name is shortened at most, where a line is too long for its terminal.
MIN_NAME_WIDTH = 12
#: Between the parts of a line.
GAP = "  "


class Showing(Protocol):
    """Shows progress, again and again."""

    def show(self, progress: Progress) -> None:
        """Show the newest state."""


class Display(Showing, Protocol):
    """Shows progress from when it is entered until it is left."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(name: str, *, verbose: int, stream: TextIO | None = None) -> Display:
    """Choose how to show the progress of a search.

    Parameters
    ----------
    name : str
        The search's name.
    verbose : int
        0 shows nothing.
    stream : text file, default=sys.stderr
        Where to show it.
    """
    stream = stream or sys.stderr
    if not verbose:
        return _Silent()
    name = plain(name)
    # a dumb terminal can't draw a line again
    draws = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _Bar(name, stream) if draws else _Lines(name, stream)


def describe(progress: Progress, seconds_left: float | None = None) -> str:
    """Say in one line how far a search is.

    Parameters
    ----------
    progress : Progress
        How far it is.
    seconds_left : float, optional
        How long it still takes.
    """
    return ", ".join([f"{progress.done}/{progress.total} trials", *_facts(progress, seconds_left)])


def _facts(progress: Progress, seconds_left: float | None) -> list[str]:
    facts = []
    if progress.is_paused:
        facts.append("paused")
    if progress.running:
        facts.append(f"{progress.running} running")
    if progress.failed:
        facts.append(f"{progress.failed} failed")
    if progress.cancelled:
        facts.append(f"{progress.cancelled} cancelled")
    if progress.waits_for_python is not None:
        facts.append(str(WaitingForPython(progress.waits_for_python, progress.queued)))
    if progress.best_score is not None:
        facts.append(f"best {progress.best_score:.4g}")
    if seconds_left is not None:
        facts.append(f"{roughly(seconds_left)} left")
    return facts


@dataclass(frozen=True)
class Line:
    """The parts of a line on a terminal, as many as have room.

    Parameters
    ----------
    name : str
        The search's, shortened in its middle if nothing else helps.
    bar_width : int
        Characters of the bar; 0: none.
    facts : str
        The counts and the best score, which are never shortened.
    elapsed : str
        The time since it is shown; empty without room.
    """

    name: str
    bar_width: int
    facts: str
    elapsed: str

    @classmethod
    def fitting(cls, width: int, name: str, facts: str, elapsed: str) -> Line:
        """Drop the bar, then the elapsed time, and shorten the name, until a line fits a width."""
        room = width - len(name) - len(facts) - len(elapsed) - 3 * len(GAP)
        if room >= MIN_BAR_WIDTH:
            return cls(name, min(room, BAR_WIDTH), facts, elapsed)
        if len(name) + len(facts) + len(elapsed) + 2 * len(GAP) <= width:
            return cls(name, 0, facts, elapsed)
        name = shortened(name, max(width - len(facts) - len(GAP), MIN_NAME_WIDTH))
        return cls(name, 0, facts, "")


def _can_show(sign: str, encoding: str) -> bool:
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def shortened(name: str, width: int) -> str:
    """Take characters from the middle of a name that is longer than a width: names differ at their ends."""
    if len(name) <= width:
        return name
    n_first = width // 2
    return f"{name[:n_first]}…{name[len(name) - (width - n_first - 1) :]}"


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        pass


class _Lines:
    """A line at each twentieth of the trials and at the first failure, at most one every second, or every 5 minutes."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream
        self._pace = Pace()
        self._shown: tuple[object, ...] | None = None
        self._shown_at = -math.inf

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        at = time.monotonic()
        seconds_left = self._pace.seconds_left(progress, at)
        step = progress.done if progress.is_finished else progress.done * STEPS // max(progress.total, 1)
        state = (step, progress.failed > 0, progress.is_paused, progress.is_finished)
        waited = at - self._shown_at
        if waited < (1.0 if state != self._shown else LINE_S) and not progress.is_finished:
            return
        if progress.is_finished and state == self._shown:
            return
        self._shown, self._shown_at = state, at
        print(f"{self._name}: {describe(progress, seconds_left)}", file=self._stream, flush=True)


class _Bar:
    """One line of a terminal, drawn again and again."""

    def __init__(self, name: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._name = name
        self._pace = Pace()
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._seconds_left: float | None = None
        self._console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=4)

    def __enter__(self) -> _Bar:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        self._seconds_left = self._pace.seconds_left(progress, time.monotonic())
        self._progress = progress

    def _line(self) -> Text:
        from rich.text import Text

        if (progress := self._progress) is None:
            return Text(self._name)
        counts = [f"{progress.done}/{progress.total}", *_facts(progress, self._seconds_left)]
        elapsed = str(timedelta(seconds=int(time.monotonic() - self._started)))
        line = Line.fitting(self._console.width, self._name, GAP.join(counts), elapsed)
        n_full = line.bar_width * progress.done // max(progress.total, 1)
        drawn = Text(line.name, no_wrap=True, overflow="crop")
        if line.bar_width and _can_show("━", self._console.encoding):
            drawn.append(GAP).append("━" * n_full, style="green").append("━" * (line.bar_width - n_full), style="dim")
        drawn.append(GAP).append(line.facts)
        if line.elapsed:
            drawn.append(GAP).append(line.elapsed, style="dim")
        return drawn
