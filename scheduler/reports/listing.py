"""The list of searches: one line each at 80 columns, or all that is known of each."""

from __future__ import annotations

from typing import Any

from gridfleet.scheduler.reports import figures, reader
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.tables import console, fit, metric_of, shown_tags, table_of_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.tags import tags_of


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
    if any(trials.pruned for trials in counts.values()):  # few searches have any, and a line has 80 columns
        header.insert(4, "pruned")
        for search, row in zip(searches, rows, strict=True):
            row.insert(4, str(counts.get(search.id, reader.TrialCounts()).pruned))
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
        fit(header, rows, column=0)
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
