"""What ``gridfleet watch --json`` prints: a line of JSON whenever a search goes on, and one when it ends."""

from __future__ import annotations

import json
import time

from gridfleet.scheduler.reports import as_json, reader
from gridfleet.scheduler.reports.watch import LOOK_S, Watcher
from gridfleet.storage.database.connection import Database

#: What changes with every look, and is no reason for another line.
CHANGES_ALWAYS = ("seconds_running", "seconds_left")


def follow_as_json(database: Database, search: reader.SearchSummary) -> bool:
    """Print a line at each change of a search until it ends; returns whether it has a score."""
    shown: dict[str, object] = {}
    while True:
        now = as_json.progress(database, search)
        state = {key: value for key, value in now.items() if key not in CHANGES_ALWAYS}
        if state != shown:
            print(json.dumps(now), flush=True)  # noqa: T201 - the command's output
            shown = state
        if reader.find_search(database, search.id).is_finished:
            return now["best_score"] is not None
        time.sleep(LOOK_S)


class JsonWatcher(Watcher):
    """A watcher whose lines are JSON."""

    def line_of_end(self, search: reader.SearchSummary) -> str:
        """Return the line about a search that has ended."""
        return json.dumps(as_json.progress(self._database, search))

    def line_of_progress(self, search: reader.SearchSummary, progress: reader.Progress) -> str:
        """Return the line about one that goes on."""
        return json.dumps(as_json.progress(self._database, search))
