"""Reads back what a commit did whose answer was lost: by the token that it wrote, or by the process that did it."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import select

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import RESULTS
from gridfleet.storage.schema import Attempt, Lease, Search, Trial
from gridfleet.storage.trials.held import Claim, Held


def was_recorded(database: Database, held: Held) -> bool:
    """Whether a result was written with this token; then its search is finished too, if that was the last one.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token that `record` was called with.

    Returns
    -------
    bool
        False as well while a transaction that writes it is still open: ask after `record` said that the
        trial is not held any more, for that waits for it.
    """
    # an attempt that was reaped ends with the reason, even where that makes its trial a failed one
    by_a_result = Attempt.outcome.in_(RESULTS)
    with database.read() as connection:
        search_id = connection.execute(
            select(Trial.search_id)
            .join(Attempt, Attempt.trial_id == Trial.id)
            .where(Trial.id == held.trial_id, Attempt.token == held.token, by_a_result)
        ).scalar()
    if search_id is None:
        return False
    searches.finish_search(database, search_id)
    return True


def claim_of(database: Database, worker_id: str) -> Claim | None:
    """Return the claim of a worker process that does not know whether it has one.

    Parameters
    ----------
    database : Database
        The fleet's.
    worker_id : str
        A process that evaluates no trial now.

    Returns
    -------
    Claim or None
        None if it holds no trial.
    """
    names = [field.name for field in fields(Claim) if field.name != "trial_id"]
    # searches first: a trial's own fit_mode is how it was trained in the end
    columns = [getattr(Search if hasattr(Search, name) else Trial, name) for name in names]
    with database.read() as connection:
        row = connection.execute(
            select(Trial.id.label("trial_id"), *columns)
            .join(Search, Search.id == Trial.search_id)
            .join(Lease, Lease.trial_id == Trial.id)
            .where(Lease.worker_id == worker_id)
            .limit(1)
        ).one_or_none()
    return None if row is None else Claim(**row._mapping)
