"""Messages for trials that wait: as many as the queue has room for, which neither runs dry nor fills the broker."""

from __future__ import annotations

import logging

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.locks import alone
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import queue
from gridfleet.worker.broker.publisher import Publisher

logger = logging.getLogger(__name__)

#: Key of PostgreSQL's advisory lock under which the queue is filled: two at once would send each message twice.
TOP_UP_LOCK = 0x67726966


def top_up(settings: Settings, database: Database, publisher: Publisher) -> int:
    """Send messages for queued trials that have none: never sent, or lost.

    Parameters
    ----------
    settings : Settings
        After how many seconds a message counts as lost.
    database : Database
        Where the trials are.
    publisher : Publisher
        The way to the broker.

    Returns
    -------
    int
        How many were sent; 0 where the queue is full, or another process is at it.

    Raises
    ------
    redis.exceptions.RedisError
        If the broker fails.
    """
    room = publisher.room()
    with alone(database, TOP_UP_LOCK) as may_fill:
        if not room or not may_fill:
            logger.debug("no message is sent: the queue has room for %d", room)
            return 0
        oldest = publisher.oldest()
        # an empty queue has lost all that was not taken
        republish_s = min(settings.republish_s, settings.reconcile_s) if oldest is None else settings.republish_s
        due = queue.due_for_publishing(database, republish_s=republish_s, limit=room, oldest=oldest)
        logger.debug("the queue has room for %d messages, and %d are sent", room, len(due))
        if due:
            _send(database, publisher, due)
        return len(due)


def _send(database: Database, publisher: Publisher, trial_ids: list[int]) -> None:
    publisher.publish(trial_ids)
    queue.mark_published(database, trial_ids)
