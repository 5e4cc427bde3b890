"""Trials that were lost together, with their worker: the heaviest of them is charged, and of similar ones none.

A model can end the whole worker: it takes the memory of the machine or of the container, whose kernel then kills all
that is in it, or it kills its parent. What other processes of that worker held is lost with it, and would use up its
budget of failures beside such a model, until it is failed for good. So of the trials that were lost together the one is
charged whose process took clearly most memory, as heartbeats told. Any other is queued again and counts no failure,
`FREE_LOSSES` times. After that it runs alone in its worker (`gridfleet.worker.guards.neighbours`), so that what ends
the worker then is the trial itself, and counts.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import and_, bindparam, func, or_, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import Attempt, Lease
from gridfleet.storage.trials.held import Held

#: Losses with others that count no failure. Not one: to be alone costs a worker the work of its other processes, and
#: machines that are switched off once are more frequent than models that end workers.
FREE_LOSSES = 2
#: How many times as much memory as each of the others the heaviest took: processes of equal models differ by a tenth.
CLEARLY = 1.5
#: What the attempt says that is over.
REASON = (
    "its worker was lost with several trials: it died, or does not reach the database. This trial did not take "
    "clearly more memory than the others, so it counts no failure; when that happens again, it runs alone in its worker"
)

_WAS_LOST_WITH_OTHERS = and_(Attempt.outcome == Outcome.RELEASED, Attempt.error.is_not(None))
_COUNT = select(func.count()).where(Attempt.trial_id == bindparam("wanted_id"), _WAS_LOST_WITH_OTHERS)


def runs_alone(database: Database, trial_id: int) -> bool:
    """Whether a trial was lost with others so often that it may end workers, and has to show it alone."""
    with database.read() as connection:
        return bool(connection.execute(_COUNT, {"wanted_id": trial_id}).scalar_one() >= FREE_LOSSES)


def is_lost_with_others(database: Database, held: Held, *, lease_s: float) -> bool:
    """Whether a trial whose lease is over went with its worker and other trials, and is not to be charged for it.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial, with the worker process that held it.
    lease_s : float
        Seconds of a lease.

    Returns
    -------
    bool
        False if it was alone, or had to be, or took clearly more memory than all the others; then its worker was lost
        through it as far as anybody can tell.
    """
    if held.worker_id is None or runs_alone(database, held.trial_id):
        return False
    node = held.worker_id.rpartition("/")[0] + "/"
    mine = (
        select(Attempt.started_at, Lease.expires_at, Lease.memory_mb)
        .join(Lease, and_(Lease.trial_id == Attempt.trial_id, Lease.token == Attempt.token))
        .where(Attempt.trial_id == held.trial_id, Attempt.token == held.token)
    )
    with database.read() as connection:
        row = connection.execute(mine).one_or_none()
        if row is None:  # taken back meanwhile
            return False
        # whoever lived on has prolonged its lease since: by now it lasts almost a whole one longer
        lost_too = select(Lease.memory_mb).where(
            Lease.worker_id.startswith(node, autoescape=True),
            Lease.worker_id != held.worker_id,
            Lease.expires_at < row.expires_at + timedelta(seconds=lease_s / 2),
        )
        taken_back_before = select(Attempt.peak_memory_mb).where(
            Attempt.worker_id.startswith(node, autoescape=True),
            Attempt.worker_id != held.worker_id,
            Attempt.ended_at >= row.started_at,
            or_(Attempt.outcome == Outcome.LEASE_EXPIRED, _WAS_LOST_WITH_OTHERS),
        )
        others = [mb for query in (lost_too, taken_back_before) for mb in connection.execute(query).scalars()]
    if not others:
        return False
    known = [mb for mb in others if mb is not None]
    if row.memory_mb is None or len(known) < len(others):
        return True
    return bool(row.memory_mb < CLEARLY * max(known))
