"""The refit of a search on the fleet: a search of its own, with one trial, that waits for the end of the first one.

So it is claimed, leased, tried again and recorded as any trial is. It is stored with the search that it is of, and held
back as a paused search is; whoever finishes that one lets it go, or ends it, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, bindparam, delete, select, update
from sqlalchemy.engine import Connection

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import (
    Attempt,
    BestModel,
    BestModelChunk,
    Lease,
    Search,
    SearchState,
    Trial,
    TrialState,
    TrialWarning,
)

#: What ``searches.strategy`` of a refit says.
STRATEGY = "refit"
#: Why a refit ends that never began.
IS_CANCELLED = "the search was cancelled"
HAS_NO_SCORE = "no trial of the search was completed"


@dataclass(frozen=True, slots=True)
class Refit:
    """How far the refit of a search is."""

    search_id: int
    trial_id: int
    state: str
    is_waiting: bool  # for the end of its search
    is_finished: bool
    refit_time: float | None  # seconds
    age_s: float | None  # seconds since it ended
    error: str | None
    error_type: str | None
    exception: str | None

    @property
    def is_stored(self) -> bool:
        """Whether the best model is there."""
        return self.state == TrialState.COMPLETED


def columns_of(columns: Mapping[str, Any], search_id: int, model_key: str) -> dict[str, Any]:
    """Return what the table ``searches`` says of a search's refit.

    Parameters
    ----------
    columns : mapping of str to object
        What it says of the search.
    search_id : int
        The search's id.
    model_key : str
        What checks the signature of the model.
    """
    return {
        **columns,
        "strategy": STRATEGY,
        "n_trials": 1,
        "n_splits": 1,
        # both are for what its trials and all of them together take, of which no refit is one
        "trial_timeout": None,
        "search_timeout": None,
        "reuse": False,
        "no_reuse": None,
        **dict.fromkeys(("space", "sampler", "seed", "lookahead", "asks_in_order", "n_asked", "optuna_version")),
        **dict.fromkeys(("pruner", "monitor")),
        "is_exhausted": False,
        "refit_of": search_id,
        "model_key": model_key,
        "paused_at": now(),
    }


def name_of(search_id: int) -> str:
    """Return the name of a search's refit, which no user's search can have."""
    return f"refit:{search_id}"


def find_refit(database: Database, search_id: int) -> Refit | None:
    """Return how far the refit of a search is; None if it has none on the fleet."""
    query = (
        select(
            Search.id.label("search_id"),
            Trial.id.label("trial_id"),
            Trial.state,
            Search.paused_at.is_not(None).label("is_paused"),
            Search.finished_at,
            seconds_between(database.dialect, Search.finished_at, now()).label("age_s"),
            Search.error.label("why"),
            Trial.mean_fit_time.label("refit_time"),
            Trial.error,
            Trial.error_type,
            Trial.exception,
        )
        .join(Trial, Trial.search_id == Search.id)
        .where(Search.refit_of == search_id)
    )
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Refit(
        row.search_id,
        row.trial_id,
        row.state,
        is_waiting=row.is_paused and row.finished_at is None,
        is_finished=row.finished_at is not None,
        refit_time=row.refit_time,
        age_s=None if row.age_s is None else float(row.age_s),
        error=row.why or row.error,
        error_type=row.error_type,
        exception=row.exception,
    )


def open_refit(search_id: int) -> Select[Any]:
    """Return the query for the id of a search's refit, if that has not ended."""
    return select(Search.id).where(Search.refit_of == search_id, Search.finished_at.is_(None))


def begin_or_end(connection: Connection, search_id: int, state: str) -> None:
    """Let the refit of a search go that has just ended, or end it: in the transaction that finishes the search.

    Parameters
    ----------
    connection : Connection
        That transaction, which has locked the search.
    search_id : int
        The search.
    state : str
        What it ended as.
    """
    refit_id = connection.execute(open_refit(search_id)).scalar()
    if refit_id is None:
        return
    of_refit = update(Search).where(Search.id == refit_id)
    why = IS_CANCELLED if state == SearchState.CANCELLED else None
    if why is None:
        completed = select(Trial.id).where(Trial.search_id == search_id, Trial.state == TrialState.COMPLETED)
        why = HAS_NO_SCORE if connection.execute(completed.limit(1)).first() is None else None
    if why is None:
        connection.execute(of_refit.values(paused_at=None))
        return
    # its trial before the search, as a claim locks them
    connection.execute(
        update(Trial)
        .where(Trial.search_id == refit_id, Trial.state == TrialState.QUEUED)
        .values(state=TrialState.CANCELLED, finished_at=now(), cancel_requested=True)
    )
    connection.execute(of_refit.values(state=SearchState.CANCELLED, paused_at=None, finished_at=now(), error=why))


def hold_back(connection: Connection, search_id: int, new: Mapping[str, Any]) -> None:
    """Let the refit of a search wait for its end once more: in the transaction that opens the search again.

    What it came to goes, for another trial may be the best one then; one that runs is taken from its worker unharmed.

    Parameters
    ----------
    connection : Connection
        That transaction, which has locked the search.
    search_id : int
        The search.
    new : mapping of str to object
        What a trial that starts all over has in its columns.
    """
    refit_id = connection.execute(_REFIT, {"searched_id": search_id}).scalar()
    if refit_id is not None:
        _begin_anew(connection, refit_id, new, paused_at=now())


def begin_again(connection: Connection, search_id: int, new: Mapping[str, Any], *, state: TrialState) -> int:
    """Queue the refit of a search that has ended once more, if it failed itself, or if somebody cancelled it.

    Parameters
    ----------
    connection, search_id, new
        As for `hold_back`.
    state : TrialState
        Its own.

    Returns
    -------
    int
        1 if it was.
    """
    # one that ended with its search for want of a best trial would do so again
    refit_id = connection.execute(
        _REFIT.join(Trial, Trial.search_id == Search.id).where(Trial.state == state, Search.error.is_(None)),
        {"searched_id": search_id},
    ).scalar()
    if refit_id is None:
        return 0
    _begin_anew(connection, refit_id, new, paused_at=None)
    return 1


_REFIT = select(Search.id).where(Search.refit_of == bindparam("searched_id"))


def _begin_anew(connection: Connection, refit_id: int, new: Mapping[str, Any], *, paused_at: Any) -> None:
    trial_id = connection.execute(select(Trial.id).where(Trial.search_id == refit_id).with_for_update()).scalar_one()
    connection.execute(
        update(Attempt)
        .where(Attempt.trial_id == trial_id, Attempt.ended_at.is_(None))
        .values(ended_at=now(), outcome=Outcome.RELEASED)
    )
    connection.execute(delete(Lease).where(Lease.trial_id == trial_id))
    connection.execute(delete(BestModelChunk).where(BestModelChunk.trial_id == trial_id))
    connection.execute(delete(BestModel).where(BestModel.trial_id == trial_id))
    connection.execute(delete(TrialWarning).where(TrialWarning.trial_id == trial_id))
    connection.execute(
        update(Search)
        .where(Search.id == refit_id)
        .values(state=SearchState.QUEUED, finished_at=None, paused_at=paused_at, error=None)
    )
    connection.execute(update(Trial).where(Trial.id == trial_id).values(state=TrialState.QUEUED, **new))
