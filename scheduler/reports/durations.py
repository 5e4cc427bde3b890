"""How long attempts took, as a histogram that only grows: all of them are counted once, then what ended since."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from operator import add
from typing import Any

from sqlalchemy import Connection, case, func, select
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.errors import first_line
from gridfleet.storage.schema import Attempt

logger = logging.getLogger(__name__)

#: Upper bounds of the durations, in seconds.
BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 14_400)
#: Seconds for which what ended is counted anew each time: a transaction may be committed later than its times say.
LATE_S = 60.0
#: Seconds that who asks first waits for the count of all; a million attempts take longer.
FIRST_S = 0.2
#: Trials whose attempts one statement counts, so that none is long.
TRIALS = 50_000

#: By outcome, how many attempts each bucket has, how many are above all, and their seconds.
_Counted = dict[str, list[float]]


@dataclass(frozen=True)
class Durations:
    """How many attempts of one outcome took at most so long, by `BUCKETS_S`; all of them, and their seconds."""

    up_to: Sequence[int]
    n: int
    seconds: float


class EndedAttempts:
    """Counts the attempts of a fleet that have ended, from the first question on.

    No number falls while this process lives, as Prometheus wants it: those of a search that is deleted stay in.

    Parameters
    ----------
    database : Database
        The fleet's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._first: threading.Thread | None = None
        #: what ended up to then; None: not all of it is counted yet
        self._until: datetime | None = None
        self._before: _Counted = {}
        self._shown: dict[str, list[float]] = {}

    def durations(self) -> dict[str, Durations] | None:
        """Return them by outcome; None while all that ended before the first question is being counted."""
        self._begin().join(FIRST_S)
        with self._lock:
            if self._until is None:
                return None
            with self._database.read() as connection:
                until = max(self._until, _late(connection))
                since = _count(connection, Attempt.ended_at > self._until, Attempt.ended_at <= until)
                lately = _count(connection, Attempt.ended_at > until)
            self._before, self._until = _sum([self._before, since]), until
            for outcome, counted in _sum([self._before, lately]).items():
                grown = [*accumulate(counted[:-1]), counted[-1]]
                self._shown[outcome] = list(map(max, grown, self._shown.get(outcome, grown)))
            return {
                outcome: Durations([int(n) for n in up_to], int(n), seconds)
                for outcome, (*up_to, n, seconds) in sorted(self._shown.items())
            }

    def _begin(self) -> threading.Thread:
        with self._lock:
            if self._first is None or (self._until is None and not self._first.is_alive()):
                self._first = threading.Thread(target=self._count_all, name="durations", daemon=True)
                self._first.start()
            return self._first

    def _count_all(self) -> None:
        try:
            with self._database.read() as connection:
                until = _late(connection)
                first, last = connection.execute(select(func.min(Attempt.trial_id), func.max(Attempt.trial_id))).one()
            parts = []
            for trial_id in range(first or 0, (last or 0) + 1, TRIALS):  # None: there are none
                with self._database.read() as connection:
                    of_part = Attempt.trial_id.between(trial_id, trial_id + TRIALS - 1)
                    parts.append(_count(connection, of_part, Attempt.ended_at <= until))
        except SQLAlchemyError as error:  # the next question begins again
            logger.warning("the attempts could not be counted: %s", first_line(error))
            return
        with self._lock:
            self._before, self._until = _sum(parts), until


def _late(connection: Connection) -> datetime:
    return connection.execute(select(now(-LATE_S))).scalar_one()


def _count(connection: Connection, *conditions: Any) -> _Counted:
    seconds = seconds_between(connection.dialect.name, Attempt.started_at, Attempt.ended_at)
    # computed once for each row, and not for each bound again
    ended = select(Attempt.outcome, seconds.label("seconds")).where(Attempt.ended_at.is_not(None), *conditions).cte()
    ended = ended.prefix_with("MATERIALIZED")
    bucket = case(
        *((ended.c.seconds <= bound, place) for place, bound in enumerate(BUCKETS_S)), else_=len(BUCKETS_S)
    ).label("bucket")
    query = select(ended.c.outcome, bucket, func.count(), func.sum(ended.c.seconds)).group_by(ended.c.outcome, bucket)
    found: _Counted = {}
    for outcome, place, n, total in connection.execute(query):
        counted = found.setdefault(str(outcome), [0.0] * (len(BUCKETS_S) + 2))
        counted[place] += n
        counted[-1] += float(total)
    return found


def _sum(parts: Iterable[_Counted]) -> _Counted:
    found: _Counted = {}
    for part in parts:
        for outcome, counted in part.items():
            found[outcome] = list(map(add, found[outcome], counted)) if outcome in found else counted
    return found
