"""The list of searches: one line each at 80 columns, or all that is known of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich.cells import cell_len

from gridfleet.scheduler.reports import figures, reader
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.progress import MIN_NAME_WIDTH, shortened
from gridfleet.scheduler.reports.tables import console, metric_of, shown_tags, table_of_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.tags import tags_of

#: Columns between two of a table.
GAP = 2


def print_searches(database: Database, *, limit: int, wide: bool = False, **only: Any) -> None:
    """Print the newest searches.

    Parameters
    ----------
    database : Database
        The fleet's.
    limit : int
        How many at most.
    wide : bool, default=False
        Also what does not fit into 80 columns.
    **only : dict
        Which ones, as `reader.list_searches` has it.
    """
    searches = reader.list_searches(database, limit=limit, **only)
    if not searches:
        console().print("there is no such search" if any(only.values()) else "there are no searches yet")
        return
    ids = [search.id for search in searches]
    counts = reader.count_trials(database, ids)
    header = ["search", "state", "scored", "failed", "best", "submitted"]
    rows = [_listed(search, counts.get(search.id, reader.TrialCounts())) for search in searches]
    if wide:
        tags = tags_of(database, ids)
        header += ["metric", "strategy", "submitted at", "by", "id", "tags"]
        for search, row in zip(searches, rows, strict=True):
            row += [
                metric_of(search),
                search.strategy,
                figures.time(search.created_at),
                search.submitted_by,
                str(search.id),
                shown_tags(tags.get(search.id, {})),
            ]
    else:
        _shorten_names(header, rows, sys.stdout)
    console().print(table_of_lines(header, rows))


def _listed(search: reader.SearchSummary, trials: reader.TrialCounts) -> list[str]:
    return [
        plain(search.name),
        search.shown_state,
        f"{trials.scored}/{search.n_trials}",
        str(trials.failed),
        figures.score(trials.best_score),
        figures.ago(search.created_at),
    ]


def _shorten_names(header: Sequence[str], rows: Sequence[list[str]], out: TextIO) -> None:
    """Shorten the names until the lines fit a terminal; what goes to a file has them whole."""
    if not out.isatty():
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = max(console(out).width - sum(width + GAP for width in widths[1:]), MIN_NAME_WIDTH)
    for row in rows:
        row[0] = _fitting(row[0], room)


def _fitting(name: str, room: int) -> str:
    """Shorten a name to as many columns of a terminal; a Chinese or Korean sign takes two."""
    width = room
    while cell_len(fitting := shortened(name, width)) > room:
        width -= 1
    return fitting
