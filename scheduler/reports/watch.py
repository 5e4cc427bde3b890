"""What ``gridfleet watch`` does: follows searches in the database, whoever runs them."""

from __future__ import annotations

import logging
import time

from sqlalchemy.exc import DBAPIError

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.progress import describe, display
from gridfleet.scheduler.reports.tables import log_line
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchNotFoundError

logger = logging.getLogger(__name__)

#: Seconds between looks.
LOOK_S = 0.5
#: A search's progress is printed in so many steps at most, so that the log of a large search stays short.
STEPS = 20
#: Searches that ended before, printed at the start so that a restarted watcher's log has the last best score.
SHOWN_AT_START = 5


def follow(database: Database, name: str | int, *, how: str = "auto") -> None:
    """Show the progress of one search until it ends.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        Its name, without regard to case, or its id.
    how : {"auto", "plain", "quiet"}, default="auto"
        As `display` has it.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    with display(search.name, verbose=1, how=how) as shown:
        while True:
            progress = reader.progress(database, search.id)
            shown.show(progress)
            if progress.is_finished:
                return
            time.sleep(LOOK_S)


def follow_all(database: Database, watcher: Watcher | None = None) -> None:
    """Print a line whenever a search goes on, and one with its best score when it ends. Never returns."""
    watcher = watcher or Watcher(database)
    while True:
        try:
            lines = watcher.look()
        except SearchNotFoundError:  # one was deleted between two of its reads
            lines = []
        except DBAPIError as error:
            logger.warning("the database does not answer (%s); trying again", type(error.orig).__name__)
            lines = []
        for line in lines:
            print(line, flush=True)  # noqa: T201 - the watcher's output
        time.sleep(LOOK_S)


#: What of a search's progress is worth a line.
Stage = tuple[int, int, float | None]


class Watcher:
    """Remembers what was printed of each search.

    Parameters
    ----------
    database : Database
        What is watched.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shown: dict[int, Stage] = {}
        self._ended: set[int] = set()
        self._is_first_look = True

    def look(self) -> list[str]:
        """Return a line for everything that changed since the last look."""
        newest = reader.list_searches(self._database)
        by_id = {search.id: search for search in newest}
        for search_id in {*self._shown, *searches.unfinished_searches(self._database)} - self._ended - set(by_id):
            try:
                by_id[search_id] = reader.find_search(self._database, search_id)
            except SearchNotFoundError:  # it ended, and was deleted
                self._ended.add(search_id)
                self._shown.pop(search_id, None)
        if self._is_first_look:
            self._is_first_look = False
            before = sorted((search for search in newest if search.is_finished), key=lambda s: str(s.finished_at))
            self._ended |= {search.id for search in before[:-SHOWN_AT_START]}
        waiting = sorted((s for s in by_id.values() if s.id not in self._ended), key=_by_end)
        return [line for search in waiting if (line := self._line(search)) is not None]

    def _line(self, search: reader.SearchSummary) -> str | None:
        if search.is_finished:
            self._ended.add(search.id)
            self._shown.pop(search.id, None)
            return self.line_of_end(search)
        progress = reader.progress(self._database, search.id)
        stage = _stage(progress)
        if self._shown.get(search.id) == stage:
            return None
        self._shown[search.id] = stage
        return self.line_of_progress(search, progress)

    def line_of_end(self, search: reader.SearchSummary) -> str:
        """Return the line about a search that has ended."""
        return log_line(self._database, search)

    def line_of_progress(self, search: reader.SearchSummary, progress: reader.Progress) -> str:
        """Return the line about one that goes on."""
        return f"{plain(search.name)}: {describe(progress)}"


def _stage(progress: reader.Progress) -> Stage:
    total = max(progress.total, 1)
    return progress.done * STEPS // total, progress.failed * STEPS // total, progress.best_score


def _by_end(search: reader.SearchSummary) -> tuple[bool, str, int]:
    return search.finished_at is None, str(search.finished_at), search.id
