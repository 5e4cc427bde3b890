"""Send the messages of a search that is stored: one for each trial, ids only."""

from __future__ import annotations

import sys

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.trials import queue


def publish(fleet: Fleet, search_id: int) -> None:
    """Send a message for each trial of a search, after the commit: before, its workers would find no trial.

    A broker that does not answer is no error: the reconciler sends them when it does.
    """
    if not fleet.publish(queue.in_turn(fleet.database, search_id)):
        print(  # noqa: T201 - for whoever waits at the terminal
            "gridfleet: the broker does not answer; the search is stored and starts as soon as it does",
            file=sys.stderr,
        )
