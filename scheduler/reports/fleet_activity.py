"""How busy a fleet is: trials that wait and run, trials a minute, and the share of its time that a worker evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import case, func, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.outcome import RESULTS
from gridfleet.storage.schema import Attempt, Lease, Trial
from gridfleet.storage.trials import queue
from gridfleet.storage.workers import node_of

#: Seconds back that count.
COUNTED_S = 600


@dataclass(frozen=True, slots=True)
class FleetActivity:
    """What a fleet does, and did in the last `COUNTED_S`.

    Parameters
    ----------
    n_queued, n_running : int
        Trials that wait, at most `queue.COUNTED` of which are counted, and that run.
    trials_a_minute : float
        Attempts that wrote a result.
    busy_s : dict of str to float
        Seconds that the processes of a worker evaluated, together, by its name.
    """

    n_queued: int
    n_running: int
    trials_a_minute: float
    busy_s: Mapping[str, float]

    def busy_share(self, worker: str, n_processes: int, there_for_s: float) -> float:
        """Return the share of its time that a worker evaluated, from 0 to 1.

        Parameters
        ----------
        worker : str
            Its name.
        n_processes : int
            Its processes.
        there_for_s : float
            For how long it is there.
        """
        could = n_processes * min(COUNTED_S, there_for_s)
        return min(1.0, self.busy_s.get(worker, 0.0) / could) if could > 0 else 0.0


def fleet_activity(database: Database) -> FleetActivity:
    """Look what a fleet does, and did in the last `COUNTED_S`."""
    busy_s: dict[str, float] = {}
    n_results = 0
    with database.read() as connection:
        # asked before, for a clock that goes on within a statement is compared with every row and with no index
        since, until = connection.execute(select(now(-COUNTED_S), now())).one()
        began = case((Attempt.started_at < since, since), else_=Attempt.started_at)
        ended = (
            select(
                Attempt.worker_id,
                func.sum(seconds_between(database.dialect, began, Attempt.ended_at)).label("busy_s"),
                func.sum(case((Attempt.outcome.in_(RESULTS), 1), else_=0)).label("n_results"),
            )
            .where(Attempt.ended_at > since)
            .group_by(Attempt.worker_id)
        )
        start = case((Trial.started_at < since, since), else_=Trial.started_at)
        runs = select(Lease.worker_id, seconds_between(database.dialect, start, until).label("busy_s")).outerjoin(
            Trial, Trial.id == Lease.trial_id
        )
        running = connection.execute(runs).all()
        rows = connection.execute(ended).all()
    for row in rows:
        n_results += int(row.n_results)
    for row in [*rows, *running]:
        name = node_of(row.worker_id)
        busy_s[name] = busy_s.get(name, 0.0) + max(0.0, float(row.busy_s or 0))
    return FleetActivity(queue.count_queued(database), len(running), n_results * 60 / COUNTED_S, busy_s)
