"""Send the messages of a search that is stored: one for each of the first trials, ids only."""

from __future__ import annotations

import sys

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.trials import queue
from gridfleet.worker.broker.publisher import MAX_MESSAGES


def publish(fleet: Fleet, search_id: int) -> None:
    """Send messages for the trials of a search, after the commit: before, its workers would find no trial.

    Those that the queue has no room for are sent later (`gridfleet.worker.broker.top_up`). A broker that does not
    answer is no error: the reconciler sends them when it does.
    """
    trial_ids = queue.in_turn(fleet.database, search_id, limit=MAX_MESSAGES)
    # of a search without trials these are still to be proposed
    if not fleet.publish(trial_ids) or not (trial_ids or fleet.tell()):
        print(  # noqa: T201 - for whoever waits at the terminal
            "gridfleet: the broker does not answer; the search is stored and starts as soon as it does",
            file=sys.stderr,
        )
