"""How a worker takes up a trial. It is one statement, guarded by id and state, and opens an attempt and a lease."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import Double, Integer, Row, Update, bindparam, func, insert, select, update
from sqlalchemy.engine import Connection

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Attempt, Lease, Search, SearchState, Trial, TrialState
from gridfleet.storage.statements import WAITS
from gridfleet.storage.trials import queue
from gridfleet.storage.trials.held import Claim
from gridfleet.storage.versions import THIS_PYTHON

_RUNTIME_S = func.coalesce(
    select(Search.trial_timeout).where(Search.id == Trial.search_id).scalar_subquery(),
    bindparam("max_runtime_s", type_=Double),
)


def _taking(found: Update) -> Any:
    """Let the statement that finds a trial give it to a worker."""
    return found.values(
        state=TrialState.RUNNING,
        attempt=Trial.attempt + 1,
        token=bindparam("holder_token"),
        worker_id=bindparam("holder_worker_id"),
        deadline_at=now(_RUNTIME_S + bindparam("grace_s", type_=Double)),
        started_at=now(),
        peak_memory_mb=bindparam("memory_mb", type_=Integer),
    ).returning(Trial.id, Trial.search_id, Trial.number, Trial.attempt, Trial.structure_digest, Trial.sample)


_CLAIM = _taking(update(Trial).where(Trial.id == bindparam("wanted_id"), WAITS)).where(queue.IS_FOR_PYTHON)


@cache
def _claim_at_message(n_structures: int) -> Any:
    return _taking(update(Trial).where(Trial.id == queue.choice(n_structures)))


@cache
def _claim_next(n_structures: int | None) -> Any:
    """Return the statement that claims the first of the trials that wait behind the one that was just recorded."""
    # not from the search's first on: PostgreSQL keeps what was claimed in the index for as long as anybody's snapshot
    # is older
    waiting = [queue.WAITING_OF_SEARCH] if n_structures is None else queue.waiting_of_structures(n_structures)
    behind = (one.where(Trial.id > bindparam("recorded_id")) for one in waiting)
    # one that was tried before may have to run alone, or not to be tried yet: it waits for its message
    return _taking(update(Trial).where(Trial.id == queue.first_there(*behind), Trial.attempt == 0))


_CLAIM_OF_SESSION = _CLAIM.where(
    select(Search.session).where(Search.id == Trial.search_id).scalar_subquery() == bindparam("own_session")
)
_OPEN_ATTEMPT = insert(Attempt).values(
    trial_id=bindparam("tried_id"),
    attempt=bindparam("tried_attempt"),
    token=bindparam("holder_token"),
    worker_id=bindparam("holder_worker_id"),
)
_OPEN_LEASE = insert(Lease).values(
    trial_id=bindparam("tried_id"),
    token=bindparam("holder_token"),
    worker_id=bindparam("holder_worker_id"),
    expires_at=now(bindparam("lease_s", type_=Double)),
    memory_mb=bindparam("memory_mb", type_=Integer),
    search_id=bindparam("of_search"),
)
_SEARCH_FACTS = select(
    Search.state,
    Search.trial_timeout,
    Search.signature,
    Search.refit_of,
    Search.model_key,
    Search.keep_curves,
    *(getattr(Search, column) for column in searches.SIGNED_COLUMNS),
).where(Search.id == bindparam("wanted_id"))
_START_SEARCH = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.state == SearchState.QUEUED)
    .values(state=SearchState.RUNNING, started_at=now())
)


def claim(
    database: Database,
    trial_id: int,
    worker_id: str,
    *,
    lease_s: float,
    max_runtime_s: float,
    grace_s: float = 0,
    memory_mb: int | None = None,
    session: str | None = None,
    python: str = THIS_PYTHON,
) -> Claim | None:
    """Take a queued trial for one worker.

    Parameters
    ----------
    database : Database
        The fleet's.
    trial_id : int
        The one to take.
    worker_id : str
        Who takes it.
    lease_s : float
        Seconds for which it is held without a heartbeat.
    max_runtime_s : float
        Seconds that the attempt may take, unless the search has a ``trial_timeout``.
    grace_s : float, default=0
        Seconds after that until it is taken back, heartbeat or not.
    memory_mb : int, default=None
        What the worker process takes before it begins.
    session : str, default=None
        Only if its search is of this session; None: whatever session it is of.
    python : str, default=THIS_PYTHON
        Only if its search is of this minor version of Python.

    Returns
    -------
    Claim or None
        None if it is not there, not queued, not to be tried yet, of a paused search, or of another session or Python.
    """
    limits = {"lease_s": lease_s, "max_runtime_s": max_runtime_s, "grace_s": grace_s, "memory_mb": memory_mb}
    wanted = {**limits, "wanted_id": trial_id, "python": python}
    if session is None:
        return _claim(database, _CLAIM, wanted, worker_id)
    return _claim(database, _CLAIM_OF_SESSION, {**wanted, "own_session": session}, worker_id)


def claim_at_message(
    database: Database,
    hint: queue.Hint,
    worker_id: str,
    *,
    lease_s: float,
    max_runtime_s: float,
    grace_s: float = 0,
    memory_mb: int | None = None,
    structures: Collection[str] = (),
) -> Claim | None:
    """Choose and take a trial of the search that a message led to, in one statement.

    It is the one that the message names, unless there is one of a structure that the worker has compiled programs for.
    If it is of another search, or another worker takes it right now, it is the first one that waits.

    Parameters
    ----------
    database : Database
        The fleet's.
    hint : Hint
        What `queue.look` found: a search of this worker's Python.
    worker_id, lease_s, max_runtime_s, grace_s, memory_mb
        Who takes it, and for how long, as for `claim`.
    structures : collection of str, default=()
        ``structure_digest`` of trials that this worker evaluated.

    Returns
    -------
    Claim or None
        None if none waits any more that nobody else takes right now.
    """
    limits = {"lease_s": lease_s, "max_runtime_s": max_runtime_s, "grace_s": grace_s, "memory_mb": memory_mb}
    wanted: dict[str, Any] = {**limits, "hinted_id": hint.trial_id, "searched_id": hint.search_id}
    known = queue.as_parameters(structures)
    return _claim(database, _claim_at_message(len(known)), {**wanted, **known}, worker_id)


def claim_next(
    connection: Connection,
    *,
    after: Claim,
    worker_id: str,
    lease_s: float,
    max_runtime_s: float,
    grace_s: float = 0,
    memory_mb: int | None = None,
    structures: Collection[str] | None = None,
) -> Claim | None:
    """Take the first trial that waits behind the one that is recorded, in the transaction that does so.

    Parameters
    ----------
    connection : Connection
        In that transaction.
    after : Claim
        The trial that is recorded.
    worker_id, lease_s, max_runtime_s, grace_s, memory_mb
        Who takes it, and for how long, as for `claim`. It is of the same search, and so of the same Python.
    structures : collection of str, default=None
        Only one whose ``structure_digest`` is among these; None: any.

    Returns
    -------
    Claim or None
        None if none waits that was not tried before.
    """
    holder = _new_holder(worker_id)
    limits = {"lease_s": lease_s, "max_runtime_s": max_runtime_s, "grace_s": grace_s, "memory_mb": memory_mb}
    known = queue.as_parameters(structures or ())
    statement = _claim_next(None if structures is None else len(known))
    wanted = {"searched_id": after.search_id, "recorded_id": after.trial_id, **known}
    row = connection.execute(statement, {**holder, **limits, **wanted}).one_or_none()
    if row is None:
        return None
    _open_attempt(connection, holder, row, limits)
    # what is known of the search never changes, and was signed
    return replace(
        after,
        trial_id=row.id,
        number=row.number,
        attempt=row.attempt,
        token=holder["holder_token"],
        structure_digest=row.structure_digest,
        sample=row.sample,
    )


def _claim(database: Database, statement: Any, wanted: dict[str, Any], worker_id: str) -> Claim | None:
    holder = _new_holder(worker_id)
    with database.write() as connection:
        row = connection.execute(statement, {**holder, **wanted}).one_or_none()
        if row is None:
            return None
        _open_attempt(connection, holder, row, wanted)
        search = connection.execute(_SEARCH_FACTS, {"wanted_id": row.search_id}).one()
        if search.state == SearchState.QUEUED:
            connection.execute(_START_SEARCH, {"wanted_id": row.search_id})
    facts = search._mapping
    return Claim(
        trial_id=row.id,
        number=row.number,
        attempt=row.attempt,
        token=holder["holder_token"],
        search_id=row.search_id,
        structure_digest=row.structure_digest,
        sample=row.sample,
        **{name: facts[name] for name in facts if name != "state"},
    )


def _new_holder(worker_id: str) -> dict[str, str]:
    return {"holder_token": secrets.token_hex(16), "holder_worker_id": worker_id}


def _open_attempt(connection: Connection, holder: dict[str, str], claimed: Row[Any], limits: Mapping[str, Any]) -> None:
    lease = {name: limits[name] for name in ("lease_s", "memory_mb")}
    connection.execute(_OPEN_LEASE, {**holder, **lease, "tried_id": claimed.id, "of_search": claimed.search_id})
    connection.execute(_OPEN_ATTEMPT, {**holder, "tried_id": claimed.id, "tried_attempt": claimed.attempt})
