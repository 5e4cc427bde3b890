"""Trials that a worker holds: what it knows of them, the guard of all that it writes, and which are held now."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Update, and_, bindparam, delete, or_, select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Lease, Trial, TrialState


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
    keep_curves: bool
    refit_of: int | None = None
    model_key: str | None = None
    space: str | None = None
    sampler: str | None = None
    seed: int | None = None
    lookahead: int | None = None
    asks_in_order: bool | None = None
    pruner: str | None = None
    monitor: str | None = None
    sample: Any = None


@dataclass(frozen=True, slots=True)
class Held:
    """A running trial as the reaper or a dying worker sees it."""

    trial_id: int
    token: str
    is_overdue: bool = field(default=False, compare=False)  # whether its time is over, and not just its lease
    worker_id: str | None = field(default=None, compare=False)
    seen_at: datetime | None = field(default=None, compare=False)  # by the database's clock, as it was found expired


_END_LEASE = delete(Lease).where(Lease.trial_id == bindparam("wanted_id"), Lease.token == bindparam("holder_token"))


def is_held(trial_id: Any, token: Any) -> Any:
    """Return the condition that a trial is running and held with this token."""
    return and_(Trial.id == trial_id, Trial.state == TrialState.RUNNING, Trial.token == token)


#: Finds a trial that is held, and locks it, so that nobody takes it back while something of it is written.
LOCK_HELD = (
    select(Trial.id).where(is_held(bindparam("wanted_id"), bindparam("holder_token"))).with_for_update(key_share=True)
)


def update_held(trial_id: Any, token: Any) -> Update:
    """Begin the statement that changes a trial if it is running and held with this token, and nothing otherwise."""
    return update(Trial).where(is_held(trial_id, token))


# one whose lease was over before was lost, however late anybody looks
_IS_OVERDUE = and_(Trial.deadline_at < now(), Trial.deadline_at < Lease.expires_at)
_IS_EXPIRED = or_(Lease.expires_at < now(), Trial.deadline_at < now())


def expired(database: Database, *, limit: int = 500) -> list[Held]:
    """List running trials whose lease or deadline is over."""
    with database.read() as connection:
        rows = connection.execute(
            select(
                Lease.trial_id, Lease.token, Lease.worker_id, _IS_OVERDUE.label("is_overdue"), now().label("seen_at")
            )
            .join(Trial, and_(Trial.id == Lease.trial_id, Trial.token == Lease.token))
            .where(_IS_EXPIRED)
            .limit(limit)
        )
        return [Held(row.trial_id, row.token, bool(row.is_overdue), row.worker_id, row.seen_at) for row in rows]


def is_still_expired(connection: Connection, held: Held) -> bool:
    """Whether a trial's lease or deadline is still the one that was over when it was found; locks both."""
    # first the trial and then its lease, as all who write both
    at = now() if held.seen_at is None else held.seen_at
    of_trial = select(Trial.deadline_at < at).where(Trial.id == held.trial_id, Trial.token == held.token)
    is_over = connection.execute(of_trial.with_for_update(key_share=True)).scalar()
    if is_over is None:
        return False
    # not by the time of this statement: if the machine slept since it was found, others slept as well
    of_lease = select(Lease.trial_id).where(Lease.trial_id == held.trial_id, Lease.token == held.token)
    lost = connection.execute(of_lease.where(Lease.expires_at < at).with_for_update()).first()
    return bool(is_over) or lost is not None


def end_lease(connection: Connection, held: Held) -> None:
    """Remove the lease of a trial that is not held any more, in the transaction that says so."""
    connection.execute(_END_LEASE, {"wanted_id": held.trial_id, "holder_token": held.token})


def held_by(database: Database, node: str | None) -> list[Held]:
    """List the running trials of a node's worker processes, or of all nodes.

    The id of a worker process begins with the name of its node.
    """
    query = select(Lease.trial_id, Lease.token, Lease.worker_id)
    if node is not None:
        query = query.where(Lease.worker_id.startswith(node + "/", autoescape=True))
    with database.read() as connection:
        return [Held(row.trial_id, row.token, worker_id=row.worker_id) for row in connection.execute(query)]
