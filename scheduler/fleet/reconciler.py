"""Finds what was lost or finished and puts it right. SQL is the truth; the broker only a hint."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from datetime import datetime

from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import events, passes, searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.locks import alone
from gridfleet.storage.database.times import now
from gridfleet.storage.errors import first_line
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import lost_together, transitions
from gridfleet.storage.trials.held import Held, expired
from gridfleet.worker.broker.publisher import Publisher
from gridfleet.worker.broker.top_up import top_up

logger = logging.getLogger(__name__)

#: Key of PostgreSQL's advisory lock that one reconciler holds during a pass.
RECONCILER_LOCK = 0x67726965
#: Trials that one pass takes back at most, so that a pass stays short.
PER_PASS = 5_000
#: Seconds between looks for rows of workers that are long gone. The first comes as late: those of a machine that slept
#: have been seen again by then.
PRUNE_S = 3_600
#: Why trials are taken back.
LEASE_EXPIRED = "the worker did not prolong its lease: it died, hangs, or does not reach the database"
TOOK_TOO_LONG = "the attempt took longer than its search's trial_timeout or the fleet's GRIDFLEET_MAX_RUNTIME_S"


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did."""

    taken_back: int = 0
    published: int = 0
    finished: int = 0


class Reconciler:
    """Puts a fleet right, pass by pass.

    Parameters
    ----------
    settings : Settings
        How often, and after how many seconds and failures what is done.
    database : Database
        Where the trials are.
    publisher : Publisher
        The way to the broker.
    """

    def __init__(self, settings: Settings, database: Database, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._prune_at = time.monotonic() + PRUNE_S
        #: when it was last seen to be there, by the clock of this machine and by the database's
        self._was_there_at = _clock()
        self._database_was_at: datetime | None = None
        #: until when nobody is judged, by the clock of this machine
        self._waits_until = -math.inf

    def once(self) -> Pass:
        """Stop searches and take back trials whose time is over, publish queued trials again, finish searches.

        Returns
        -------
        Pass
            What was done; nothing if another reconciler is at it.
        """
        with alone(self._database, RECONCILER_LOCK) as leads:
            self._notice_absence()
            if not leads:
                logger.debug("another reconciler is at it")
            done = self._put_right() if leads else Pass()
            self._note_presence()
            return done

    def try_once(self) -> Pass:
        """Do a pass; a database or broker that fails is logged, and tried again at the next one."""
        try:
            return self.once()
        except (SQLAlchemyError, RedisError) as error:
            logger.warning("reconciler: %s: %s", type(error).__name__, first_line(error))
            return Pass()

    def run_for_ever(self) -> None:
        """Do a pass every ``reconcile_s`` seconds.

        For a lease nobody is judged: whatever kept this scheduler from running, the machine or the database that was
        down, may have kept workers from prolonging theirs.
        """
        self._wait_for_a_lease()
        while True:
            done = self.try_once()
            if done != Pass():
                logger.info("reconciler: %s", done)
            time.sleep(self._settings.reconcile_s)

    def _put_right(self) -> Pass:
        self._stop_overdue()
        self._prune()
        n_taken_back, n_finished = self._take_back(), self._finish()
        passes.note_pass(self._database, notifies=self._settings.tells_anybody())
        # last: the broker may be down
        n_published = top_up(self._settings, self._database, self._publisher)
        return Pass(taken_back=n_taken_back, finished=n_finished, published=n_published)

    def _stop_overdue(self) -> None:
        database = self._database
        for search_id in searches.overdue_searches(database):
            logger.debug("search %d is over its search_timeout and is stopped", search_id)
            searches.stop_search(database, search_id)

    def _prune(self) -> None:
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_S
            logger.debug("%d rows of workers long gone are removed", workers.prune(self._database))
            events.prune(self._database)

    def _take_back(self) -> int:
        taken_back = 0
        for held in expired(self._database, limit=PER_PASS):
            if not self._may_judge():
                logger.debug("this reconciler was away, so everybody has a lease before it judges")
                break
            taken_back += self._take_back_one(held)
        return taken_back

    def _may_judge(self) -> bool:
        """Whether this process was there for a while; asked before each trial, for it may be stopped at any time."""
        now_s = _clock()
        if now_s - self._was_there_at > self._longest_s:
            self._wait_for_a_lease()
        self._was_there_at = now_s
        return now_s >= self._waits_until

    def _notice_absence(self) -> None:
        """Notice that this process, the machine or the database stood still, or that the database's clock jumped.

        Workers that stood still as well wake up when this process does, and it may be faster than their heartbeats.
        """
        before, self._database_was_at = self._database_was_at, self._database_time()
        away_s = 0.0 if before is None else (self._database_was_at - before).total_seconds()
        if away_s > self._longest_s:
            self._wait_for_a_lease()
            transitions.put_off_deadlines(self._database, by_s=away_s)
        self._may_judge()

    def _note_presence(self) -> None:
        """Note when a pass ended, which may take longer than the pause between two, unless it stood still in it."""
        self._may_judge()
        self._database_was_at = self._database_time()

    def _database_time(self) -> datetime:
        with self._database.read() as connection:
            at: datetime = connection.execute(select(now())).scalar_one()
            return at

    @property
    def _longest_s(self) -> float:
        """Seconds from pass to pass that are nothing yet: every living worker's lease has more than half to go."""
        return self._settings.reconcile_s + self._settings.lease_s / 2

    def _wait_for_a_lease(self) -> None:
        """Judge nobody until all that live had time for a heartbeat."""
        self._waits_until = _clock() + self._settings.lease_s

    def _take_back_one(self, held: Held) -> bool:
        settings, database = self._settings, self._database
        if not held.is_overdue and lost_together.is_lost_with_others(database, held, lease_s=settings.lease_s):
            logger.debug("trial %d of %s was lost with others and goes back unharmed", held.trial_id, held.worker_id)
            return transitions.release(database, held, error=lost_together.REASON, expired_only=True)
        outcome = Outcome.TIMEOUT if held.is_overdue else Outcome.LEASE_EXPIRED
        logger.debug("trial %d of %s is taken back: %s", held.trial_id, held.worker_id, outcome)
        return transitions.reap(
            database,
            held,
            outcome=outcome,
            error=TOOK_TOO_LONG if held.is_overdue else LEASE_EXPIRED,
            max_failures=settings.max_failures,
            expired_only=True,
        )

    def _finish(self) -> int:
        database = self._database
        return sum(searches.finish_search(database, search_id) for search_id in searches.unfinished_searches(database))


#: A clock that goes on while the machine sleeps; on macOS C's monotonic one does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _clock() -> float:
    return time.clock_gettime(_CLOCK)
