"""Trials that a worker holds: what it knows of them, the guard of all that it writes, and which are held now."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Update, and_, or_, select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Trial, TrialState


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that a worker holds: what it needs to evaluate it, the token to write with, what its search is."""

    trial_id: int
    number: int
    attempt: int
    token: str
    search_id: int
    structure_digest: str | None
    name: str
    strategy: str
    scoring: str | None
    refit_metric: str
    n_trials: int
    n_splits: int
    fit_mode: str
    submitted_by: str
    session: str | None
    trial_timeout: float | None
    evaluation_digest: str
    x_digest: str
    y_digest: str
    splits_digest: str
    candidates_digest: str
    sources_digest: str | None
    signature: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A running trial as the reaper or a dying worker sees it."""

    trial_id: int
    token: str
    is_overdue: bool = field(default=False, compare=False)  # whether its time is over, and not just its lease
    worker_id: str | None = field(default=None, compare=False)
    seen_at: datetime | None = field(default=None, compare=False)  # by the database's clock, as it was found expired


def is_held(trial_id: Any, token: Any) -> Any:
    """Return the condition that a trial is running and held with this token."""
    return and_(Trial.id == trial_id, Trial.state == TrialState.RUNNING, Trial.token == token)


def update_held(trial_id: Any, token: Any) -> Update:
    """Begin the statement that changes a trial if it is running and held with this token, and nothing otherwise."""
    return update(Trial).where(is_held(trial_id, token))


def is_expired(at: datetime | None = None) -> Any:
    """Return the condition that the lease or the deadline of a running trial is over, by the database's clock.

    Parameters
    ----------
    at : datetime, default=None
        When; None: now.
    """
    when = now() if at is None else at
    return or_(Trial.lease_expires_at < when, Trial.deadline_at < when)


# one whose lease was over before was lost, however late anybody looks
_IS_OVERDUE = and_(Trial.deadline_at < now(), Trial.deadline_at < Trial.lease_expires_at)


def expired(database: Database, *, limit: int = 500) -> list[Held]:
    """List running trials whose lease or deadline is over."""
    with database.read() as connection:
        rows = connection.execute(
            select(Trial.id, Trial.token, Trial.worker_id, _IS_OVERDUE.label("is_overdue"), now().label("seen_at"))
            .where(Trial.state == TrialState.RUNNING, is_expired())
            .limit(limit)
        )
        return [Held(row.id, row.token, bool(row.is_overdue), row.worker_id, row.seen_at) for row in rows]


def held_by(database: Database, node: str | None) -> list[Held]:
    """List the running trials of a node's worker processes, or of all nodes.

    The id of a worker process begins with the name of its node.
    """
    condition = Trial.state == TrialState.RUNNING
    if node is not None:
        condition = and_(condition, Trial.worker_id.startswith(node + "/", autoescape=True))
    with database.read() as connection:
        rows = connection.execute(select(Trial.id, Trial.token, Trial.worker_id).where(condition))
        return [Held(row.id, row.token, worker_id=row.worker_id) for row in rows]
