"""How long the fleet took to go on, by the attempts that it recorded."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Row, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Attempt
from tests.history import RESULTS
from tests.soak.nemesis import Injected


@dataclass(slots=True)
class Recovery:
    """Seconds until things went on, after all events of one kind."""

    kind: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The usual time."""
        return statistics.median(self.seconds)

    @property
    def worst(self) -> float:
        """The longest time."""
        return max(self.seconds)


def recoveries_of_faults(database: Database, injected: Sequence[Injected]) -> list[Recovery]:
    """Return the seconds from each fault to the next result that any worker recorded."""
    ended = sorted(row.ended_at for row in _attempts(database) if row.outcome in RESULTS)
    found: dict[str, Recovery] = {}
    for fault in injected:
        recovery = found.setdefault(fault.kind, Recovery(fault.kind))
        place = bisect_right(ended, fault.at)
        if place < len(ended):
            recovery.seconds.append(_seconds(fault.at, ended[place]))
    return sorted(found.values(), key=lambda recovery: recovery.kind)


def recoveries_of_attempts(database: Database) -> list[Recovery]:
    """Return, by the outcome of attempts without a result, the seconds until the trial ran again."""
    of_trial: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in _attempts(database):
        of_trial[row.trial_id].append(row)
    found: dict[str, Recovery] = {}
    for attempts in of_trial.values():
        for earlier, later in pairwise(attempts):
            recovery = found.setdefault(earlier.outcome, Recovery(earlier.outcome))
            recovery.seconds.append(_seconds(earlier.ended_at, later.started_at))
    return sorted(found.values(), key=lambda recovery: recovery.kind)


def _attempts(database: Database) -> Sequence[Row[Any]]:
    columns = (Attempt.trial_id, Attempt.outcome, Attempt.started_at, Attempt.ended_at)
    with database.read() as connection:
        return connection.execute(select(*columns).order_by(Attempt.trial_id, Attempt.attempt)).all()


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
