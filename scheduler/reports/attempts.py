"""The story of a search's attempts, line by line as the database gives them: there may be a million."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.causes import cause
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.tables import console
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome

#: The columns before the error, which takes what is left: their names, widths, and whether they are numbers.
COLUMNS = (
    ("trial", 7, True),
    ("attempt", 7, True),
    ("outcome", max(map(len, Outcome)), False),
    ("started (UTC)", 19, False),
    ("seconds", 8, True),
    ("MB", 6, True),
    ("worker", 22, False),
)


def print_attempts(database: Database, name: str | int) -> None:
    """Print every attempt at every trial of a search: who, when, how long, and what became of it.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        The search's name, or its id.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    width = console().width if sys.stdout.isatty() else None
    for line in lines(trial_reader.iterate_attempts(database, search.id), width):
        print(line)  # noqa: T201 - the command's output


def lines(attempts: Iterable[trial_reader.AttemptStory], width: int | None = None) -> Iterator[str]:
    """Yield a table of attempts, one line each.

    Parameters
    ----------
    attempts : iterable of AttemptStory
        By number.
    width : int, default=None
        Columns of the terminal, to which errors are cut; None: they are whole.
    """
    yield _line([name for name, _, _ in COLUMNS], "error", width)
    for one in attempts:
        cells = [
            str(one.number),
            str(one.attempt),
            one.outcome or "running",
            f"{one.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            f"{one.seconds:.1f}",
            "" if one.peak_memory_mb is None else str(one.peak_memory_mb),
            plain(one.worker_id),
        ]
        yield _line(cells, plain(cause(one.error)), width)


def _line(cells: list[str], error: str, width: int | None) -> str:
    padded = [
        f"{cell:>{size}}" if is_number else f"{cell:<{size}}"
        for cell, (_, size, is_number) in zip(cells, COLUMNS, strict=True)
    ]
    line = "  ".join([*padded, error]).rstrip()
    return line if width is None or len(line) <= width else line[: width - 1] + "…"
