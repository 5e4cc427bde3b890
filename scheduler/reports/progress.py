"""What ``fit`` and ``watch`` show while they wait: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.reader import Progress, WaitingForPython

#: Seconds between plain lines while nothing but time changes.
LINE_S = 30.0


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
    return _Bar(name, stream) if stream.isatty() else _Lines(name, stream)


def describe(progress: Progress) -> str:
    """Say in one line how far a search is."""
    parts = [f"{progress.done}/{progress.total} trials"]
    if progress.running:
        parts.append(f"{progress.running} running")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.cancelled:
        parts.append(f"{progress.cancelled} cancelled")
    if progress.waits_for_python is not None:
        parts.append(str(WaitingForPython(progress.waits_for_python, progress.queued)))
    if progress.best_score is not None:
        parts.append(f"best {progress.best_score:.6g}")
    if progress.seconds_left is not None:
        parts.append(f"about {progress.seconds_left:.0f} s left")
    return ", ".join(parts)


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        pass


class _Lines:
    """One line when something changed, at most one every second, and one every half minute."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream
        self._shown: tuple[int, int] | None = None
        self._shown_at = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        state = (progress.done, progress.failed)
        waited = time.monotonic() - self._shown_at
        if waited < (1.0 if state != self._shown else LINE_S) and not progress.is_finished:
            return
        if progress.is_finished and state == self._shown:
            return
        self._shown, self._shown_at = state, time.monotonic()
        print(f"{self._name}: {describe(progress)}", file=self._stream, flush=True)


class _Bar:
    def __init__(self, name: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task(name, total=None, facts="")

    def __enter__(self) -> _Bar:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        facts = describe(progress).partition(", ")[2]
        self._bar.update(self._task, total=progress.total, completed=progress.done, facts=facts)
