"""What ``fit`` and ``watch`` show while they wait: a bar on a terminal, one output in a notebook, lines elsewhere."""

from __future__ import annotations

import html
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from gridfleet.scheduler.reports.figures import score, with_deviation
from gridfleet.scheduler.reports.pace import Pace, roughly
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.reader import Progress, WaitingForPython
from gridfleet.storage.search_states import ShownState, described

if TYPE_CHECKING:
    from rich.text import Text

#: Lines of a search's trials in a log; with the first failure and the end they are twenty.
STEPS = 18
#: Seconds between lines while nothing but time changes.
LINE_S = 300.0
#: Characters of a bar; one that has less room than the smaller is left out.
BAR_WIDTH, MIN_BAR_WIDTH = 40, 10
#: Characters to which a name is shortened at most, where a line is too long for its terminal.
MIN_NAME_WIDTH = 12
#: The states that need no word beside the counts.
USUAL = (ShownState.QUEUED, ShownState.RUNNING, ShownState.COMPLETED)
#: What shows searches in the browser, and some of the packages that it needs.
PAGE, PAGE_PACKAGES = "page: gridfleet page", ("plotly", "sse_starlette", "uvicorn")
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


def display(name: str, *, verbose: int, how: str = "auto", stream: TextIO | None = None) -> Display:
    """Choose how to show the progress of a search.

    Parameters
    ----------
    name : str
        The search's name.
    verbose : int
        0 shows nothing.
    how : {"auto", "plain", "quiet"}, default="auto"
        Updated in place where that can be; as lines; not at all.
    stream : text file, default=None
        Where to show it; None: standard error, in a notebook the output of its cell.
    """
    if not verbose or how == "quiet":
        return _Silent()
    name = plain(name)
    if stream is None and how == "auto" and in_notebook():
        return _Output(name)
    stream = stream or sys.stderr
    return _Bar(name, stream) if _draws(how, stream) else _Lines(name, stream)


def _draws(how: str, stream: TextIO) -> bool:
    # a dumb terminal can't draw a line again
    return how == "auto" and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@cache
def has_page() -> bool:
    """Whether `gridfleet page` is installed here."""
    return all(find_spec(name) is not None for name in PAGE_PACKAGES)


@cache
def name_the_page() -> None:
    """Say at a terminal, once in a process, what shows searches in the browser."""
    if has_page():
        print(f"gridfleet: {PAGE}", file=sys.stderr)  # noqa: T201 - where the progress is shown


def name_the_page_at_a_terminal(*, verbose: int, how: str) -> None:
    """Do so where progress is drawn."""
    if verbose and not in_notebook() and _draws(how, sys.stderr):
        name_the_page()


def in_notebook() -> bool:
    """Whether this process is a kernel, whose outputs can be updated; a console of IPython is a terminal."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def describe(progress: Progress, seconds_left: float | None = None) -> str:
    """Say in one line how far a search is.

    Parameters
    ----------
    progress : Progress
        How far it is.
    seconds_left : float, optional
        How long it still takes.
    """
    counts = [f"{progress.scored:,}/{progress.total:,} scored", *_counts(progress)]
    return ", ".join([*counts, *_facts(progress, seconds_left)])


def _counts(progress: Progress) -> list[str]:
    """Return the state where it says more than the counts, and what was not scored."""
    counts = [] if progress.state in USUAL else [described(progress.state)]
    beside = {
        "running": progress.running,
        "failed": progress.failed,
        "pruned": progress.pruned,
        "cancelled": progress.cancelled,
    }
    return counts + [f"{n:,} {state}" for state, n in beside.items() if n]


def _facts(progress: Progress, seconds_left: float | None) -> list[str]:
    facts = []
    if progress.waits_for_python is not None:
        facts.append(str(WaitingForPython(progress.waits_for_python, progress.queued)))
    if progress.best_score is not None:
        facts.append(_best(progress))
    if seconds_left is not None:
        facts.append(f"{roughly(seconds_left)} left")
    return facts


def _best(progress: Progress) -> str:
    if not progress.is_finished:
        return f"best {score(progress.best_score)}"
    return f"best {plain(progress.metric)} {with_deviation(progress.best_score, progress.std_test_score)}"


@dataclass(frozen=True)
class Line:
    """The parts of a line on a terminal, as many as have room.

    Parameters
    ----------
    name : str
        The search's, shortened in its middle without room.
    bar_width : int
        Characters of the bar; 0: none.
    facts : str
        The counts, which always stay, the best score and the time left.
    elapsed : str
        The time since it is shown; empty without room.
    """

    name: str
    bar_width: int
    facts: str
    elapsed: str

    @classmethod
    def fitting(cls, width: int, name: str, counts: Sequence[str], facts: Sequence[str], elapsed: str) -> Line:
        """Drop parts until a line fits a width.

        The first to go is the bar, then the elapsed time, the middle of the name, the facts from the last on, and at
        last the name.
        """
        shown = GAP.join([*counts, *facts])
        room = width - len(name) - len(shown) - len(elapsed) - 3 * len(GAP)
        if room >= MIN_BAR_WIDTH:
            return cls(name, min(room, BAR_WIDTH), shown, elapsed)
        if room + len(GAP) >= 0:
            return cls(name, 0, shown, elapsed)
        for n_facts in range(len(facts), -1, -1):
            shown = GAP.join([*counts, *facts[:n_facts]])
            room = width - len(shown) - len(GAP)
            if room >= min(len(name), MIN_NAME_WIDTH):
                return cls(shortened(name, room), 0, shown, "")
        return cls("", 0, shown, "")


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
    """A line at each of `STEPS` and at the first failure, at most one every second, or every 5 minutes."""

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
        unusual = None if progress.state in USUAL else progress.state
        state = (step, progress.failed > 0, unusual, progress.is_finished)
        waited = at - self._shown_at
        if waited < (1.0 if state != self._shown else LINE_S) and not progress.is_finished:
            return
        if progress.is_finished and state == self._shown:
            return
        self._shown, self._shown_at = state, at
        print(f"{self._name}: {describe(progress, seconds_left)}", file=self._stream, flush=True)


class _Output:
    """One output of a notebook's cell, updated in place."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pace = Pace()
        self._shown: str | None = None
        self._handle: Any = None

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        from IPython.display import display

        text = f"{self._name}: {describe(progress, self._pace.seconds_left(progress, time.monotonic()))}"
        if text == self._shown:
            return
        self._shown = text
        bar = f'<progress max="{max(progress.total, 1)}" value="{progress.done}"></progress>'
        shown = {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown, raw=True)


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
        counts = [f"{progress.scored:,}/{progress.total:,}", *_counts(progress)]
        facts = _facts(progress, self._seconds_left)
        elapsed = str(timedelta(seconds=int(time.monotonic() - self._started)))
        line = Line.fitting(self._console.width, self._name, counts, facts, elapsed)
        n_full = line.bar_width * progress.done // max(progress.total, 1)
        drawn = Text(line.name, overflow="fold")
        if line.bar_width and _can_show("━", self._console.encoding):
            drawn.append(GAP).append("━" * n_full, style="green").append("━" * (line.bar_width - n_full), style="dim")
        drawn.append(GAP if line.name else "").append(line.facts)
        if line.elapsed:
            drawn.append(GAP).append(line.elapsed, style="dim")
        return drawn
