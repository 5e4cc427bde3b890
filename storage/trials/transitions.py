"""The only code that changes a trial's state. Each change is one statement, guarded by id, state and token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    CursorResult,
    Double,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Connection

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.params import params_digest, params_to_json, structural_params
from gridfleet.storage.schema import (
    FINAL_STATES,
    OPEN_STATES,
    Attempt,
    Epoch,
    Search,
    SearchState,
    SplitScore,
    Trial,
    TrialState,
)
from gridfleet.storage.trial_results import PHASES, TrialResult, epoch_row, result_row, shorten, split_row

#: Seconds before a trial is tried again after its first, second, third … failure: 0, 10, 30, 70 …
BACKOFF_S = 10
#: Failures after which the wait grows no more: it would overflow PostgreSQL's integers at the 32nd.
BACKOFF_FAILURES = 8
#: ``error_type`` of a trial whose mean score is NaN or infinite though nothing was raised.
NON_FINITE = "non_finite_score"
#: Outcome of an attempt that took too long.
TIMEOUT = "timeout"
#: Rows of one INSERT statement's parameter list.
INSERT_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that a worker holds: what it needs to evaluate it, and the token to write with."""

    trial_id: int
    number: int
    attempt: int
    token: str
    search_id: int
    structure_digest: str | None
    n_splits: int
    refit_metric: str
    fit_mode: str
    trial_timeout: float | None
    evaluation_digest: str
    x_digest: str
    y_digest: str
    splits_digest: str
    candidates_digest: str


@dataclass(frozen=True, slots=True)
class Held:
    """A running trial as the reaper or a dying worker sees it."""

    trial_id: int
    token: str
    is_overdue: bool = field(default=False, compare=False)  # whether its time is over, and not just its lease
    worker_id: str | None = field(default=None, compare=False)


def create_trials(connection: Connection, search_id: int, candidates: Sequence[dict[str, Any]]) -> None:
    """Insert the trials of a search, all queued, in the transaction that inserts the search."""
    shown = [params_to_json(params) for params in candidates]
    rows = [
        {
            "search_id": search_id,
            "number": number,
            "params": params,
            "params_digest": params_digest(params),
            "structure_digest": params_digest(structural_params(params)),
        }
        for number, params in enumerate(shown)
    ]
    _insert_all(connection, Trial, rows)


def choose(database: Database, trial_id: int, structures: Collection[str]) -> int | None:
    """Choose the trial to claim at a message: one whose structure the worker has compiled programs for, if any.

    A message is a hint that its search has work; as many messages are sent as there are trials.

    Parameters
    ----------
    database : Database
        Where the trials are.
    trial_id : int
        The one that the message names.
    structures : collection of str
        ``structure_digest`` of trials that this worker evaluated.

    Returns
    -------
    int or None
        The trial of the message or another one of its search; None if no trial of the search waits.
    """
    with database.read() as connection:
        hint = connection.execute(_HINT, {"wanted_id": trial_id}).one_or_none()
        if hint is None:
            return None
        if hint.waits and (not structures or hint.structure_digest in structures):
            return trial_id
        among = {"wanted_id": hint.search_id, "structures": list(structures)}
        known = connection.execute(_WAITING_OF_STRUCTURES, among).scalar() if structures else None
        if known is not None:
            return int(known)
        if hint.waits:
            return trial_id
        other = connection.execute(_WAITING_OF_SEARCH, {"wanted_id": hint.search_id}).scalar()
        return None if other is None else int(other)


def claim(
    database: Database, trial_id: int, worker_id: str, *, lease_s: float, max_runtime_s: float, grace_s: float = 0
) -> Claim | None:
    """Take a queued trial for one worker.

    Parameters
    ----------
    database : Database
        Where the trial is.
    trial_id : int
        Which one.
    worker_id : str
        Who takes it.
    lease_s : float
        Seconds for which it is held without a heartbeat.
    max_runtime_s : float
        Seconds that the attempt may take, unless the search has a ``trial_timeout``.
    grace_s : float, default=0
        Seconds after that until it is taken back, heartbeat or not.

    Returns
    -------
    Claim or None
        None if it is not there, not queued, not to be tried yet, or of a paused search.
    """
    token = secrets.token_hex(16)
    holder = {"holder_token": token, "holder_worker_id": worker_id}
    limits = {"lease_s": lease_s, "max_runtime_s": max_runtime_s, "grace_s": grace_s}
    with database.write() as connection:
        row = connection.execute(_CLAIM, {**holder, **limits, "wanted_id": trial_id}).one_or_none()
        if row is None:
            return None
        connection.execute(_OPEN_ATTEMPT, {**holder, "tried_id": trial_id, "tried_attempt": row.attempt})
        search = connection.execute(_SEARCH_FACTS, {"wanted_id": row.search_id}).one()
        if search.state == SearchState.QUEUED:
            connection.execute(_START_SEARCH, {"wanted_id": row.search_id})
    facts = search._mapping
    return Claim(
        trial_id=trial_id,
        number=row.number,
        attempt=row.attempt,
        token=token,
        search_id=row.search_id,
        structure_digest=row.structure_digest,
        **{name: facts[name] for name in facts if name != "state"},
    )


def heartbeat(database: Database, held: Held, *, lease_s: float) -> bool | None:
    """Prolong the lease of a running trial.

    Returns
    -------
    bool or None
        Whether it should be cancelled; None if it is no longer held with this token.
    """
    with database.write() as connection:
        return connection.execute(
            _held(held).values(lease_expires_at=now(lease_s)).returning(Trial.cancel_requested)
        ).scalar_one_or_none()


def record(database: Database, held: Held, result: TrialResult) -> bool:
    """Write the result of a trial and finish it, in one transaction: exactly once.

    Returns
    -------
    bool
        False if the trial is no longer held with this token; nothing was written then.
    """
    state = TrialState.COMPLETED if result.error is None else TrialState.FAILED
    with database.write() as connection:
        started = time.perf_counter()
        search_id = connection.execute(
            _RECORD,
            {"wanted_id": held.trial_id, "holder_token": held.token, "final_state": state, **result_row(result)},
        ).scalar_one_or_none()
        if search_id is None:
            return False
        _insert_all(connection, SplitScore, [split_row(held.trial_id, split) for split in result.splits])
        _insert_all(connection, Epoch, [epoch_row(held.trial_id, epoch) for epoch in result.epochs])
        _close_attempt(connection, held, str(state), result.error)
        spent = {"wanted_id": held.trial_id, "with_record_time": time.perf_counter() - started}
        connection.execute(_NOTE_RECORD_TIME, spent)
    finish_search(database, search_id)
    return True


def release(database: Database, held: Held) -> bool:
    """Give a running trial back unharmed, as at a deploy; does not count as a failure."""
    with database.write() as connection:
        released = connection.execute(
            _held(held).values(
                state=case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED),
                finished_at=case((Trial.cancel_requested, now()), else_=null()),
                published_at=None,
                publish_count=0,
                not_before=None,
                **NOT_HELD,
            )
        )
        if not changed(released):
            return False
        _close_attempt(connection, held, "released", None)
    _finish_search_of(database, held.trial_id)
    return True


def lose(
    database: Database, held: Held, *, outcome: str, error: str, max_failures: int, expired_only: bool = False
) -> bool:
    """Take a trial back after a death, a time-out or a lost lease: to be tried again, or failed for good.

    One that took longer than its search's ``trial_timeout`` is not tried again: whoever set it wants no more
    time spent on it.

    Parameters
    ----------
    database : Database
        Where the trial is.
    held : Held
        The trial and the token of the attempt that is over.
    outcome : str
        What the attempt came to: ``worker_lost``, ``timeout``, ``lease_expired`` …
    error : str
        The reason, as a sentence.
    max_failures : int
        At this many failures the trial is ``failed``.
    expired_only : bool, default=False
        Only if its lease or deadline is over at the moment of the statement.

    Returns
    -------
    bool
        Whether it was held with this token.
    """
    spent = Trial.failures + 1 >= max_failures
    if outcome == TIMEOUT:
        spent = or_(spent, _has_own_timeout())
    over = or_(Trial.cancel_requested, spent)
    statement = _held(held)
    if expired_only:
        statement = statement.where(_expired())
    with database.write() as connection:
        lost = connection.execute(
            statement.values(
                state=case(
                    (Trial.cancel_requested, TrialState.CANCELLED), (spent, TrialState.FAILED), else_=TrialState.QUEUED
                ),
                failures=Trial.failures + 1,
                finished_at=case((over, now()), else_=null()),
                not_before=case((over, null()), else_=now(_backoff_s())),
                published_at=None,
                publish_count=0,
                error_type=outcome,
                error=shorten(error),
                **NOT_HELD,
            )
        )
        if not changed(lost):
            return False
        _close_attempt(connection, held, outcome, error)
    _finish_search_of(database, held.trial_id)
    return True


def cancel(database: Database, held: Held) -> bool:
    """End a running trial whose cancellation was requested."""
    with database.write() as connection:
        if not changed(connection.execute(_held(held).values(state=TrialState.CANCELLED, **_FINISHED))):
            return False
        _close_attempt(connection, held, "cancelled", None)
    _finish_search_of(database, held.trial_id)
    return True


@retried
def cancel_search(database: Database, search_id: int) -> bool:
    """Cancel a search: its queued trials at once, its running ones as soon as their workers see it.

    Returns
    -------
    bool
        False if it was finished already.
    """
    with database.write() as connection:
        cancel_trials(connection, search_id)
        open_search = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None))
            .values(state=SearchState.CANCELLED)
        )
        if not changed(open_search):
            return False
    finish_search(database, search_id)
    return True


def expired(database: Database, *, limit: int = 500) -> list[Held]:
    """List running trials whose lease or deadline is over."""
    with database.read() as connection:
        rows = connection.execute(
            select(Trial.id, Trial.token, (Trial.deadline_at < now()).label("is_overdue"))
            .where(Trial.state == TrialState.RUNNING, _expired())
            .limit(limit)
        )
        return [Held(row.id, row.token, bool(row.is_overdue)) for row in rows]


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


def due_for_publishing(
    database: Database,
    *,
    republish_s: float,
    limit: int = 500,
    backs_off: bool = True,
    only_unpublished: bool = False,
    among: Sequence[int] | None = None,
) -> list[int]:
    """List queued trials that no message can be expected of any more: never published, or long ago.

    Parameters
    ----------
    database : Database
        Where to look.
    republish_s : float
        Seconds after which a message counts as lost.
    limit : int, default=500
        How many at most.
    backs_off : bool, default=True
        Whether those seconds double with each publication, up to an hour.
    only_unpublished : bool, default=False
        Only those that no message was ever sent for, or not since they were last taken back.
    among : sequence of int, default=None
        Only these trials.
    """
    wait: Any = literal(float(republish_s))
    if backs_off:
        doubled = wait * literal(1).op("<<")(Trial.publish_count - 1)
        wait = case((Trial.publish_count > 6, literal(3600.0)), else_=doubled)
    overdue = seconds_between(database.dialect, Trial.published_at, now()) > wait
    due = select(Trial.id).where(
        _WAITS,
        Trial.published_at.is_(None) if only_unpublished else or_(Trial.published_at.is_(None), overdue),
    )
    if among is not None:
        due = due.where(Trial.id.in_(among))
    with database.read() as connection:
        return list(connection.execute(due.order_by(Trial.id).limit(limit)).scalars())


def count_queued(database: Database) -> int:
    """Count the queued trials of all searches that are not paused."""
    with database.read() as connection:
        return int(
            connection.execute(select(func.count()).where(Trial.state == TrialState.QUEUED, ~IS_PAUSED)).scalar_one()
        )


@retried
def mark_published(database: Database, trial_ids: Sequence[int]) -> None:
    """Note that messages were sent; changes no state."""
    with database.write() as connection:
        for start in range(0, len(trial_ids), INSERT_ROWS):
            connection.execute(
                update(Trial)
                .where(Trial.id.in_(trial_ids[start : start + INSERT_ROWS]), Trial.state == TrialState.QUEUED)
                .values(published_at=now(), publish_count=Trial.publish_count + 1)
            )


def finish_search(database: Database, search_id: int) -> bool:
    """Finish a search if all its trials are final; returns whether this call did it."""
    # transactions of their own: of two workers that record the last two trials at once, each sees the
    # other's as open until both have committed
    with database.read() as connection:
        if connection.execute(_IS_OPEN, {"wanted_id": search_id}).scalar():
            return False
    with database.write() as connection:
        # locked before it is looked at: a retry_failed that commits meanwhile would not be seen
        connection.execute(_LOCK_SEARCH, {"wanted_id": search_id})
        return changed(connection.execute(_FINISH_SEARCH, {"wanted_id": search_id}))


def unfinished_searches(database: Database) -> list[int]:
    """List the searches that are not marked as finished."""
    with database.read() as connection:
        return list(connection.execute(select(Search.id).where(Search.finished_at.is_(None))).scalars())


#: What a trial that no worker holds has in its columns.
NOT_HELD: dict[str, Any] = {"token": None, "worker_id": None, "lease_expires_at": None, "deadline_at": None}


def _held(held: Held) -> Update:
    return _held_with(held.trial_id, held.token)


def _held_with(trial_id: Any, token: Any) -> Update:
    return update(Trial).where(Trial.id == trial_id, Trial.state == TrialState.RUNNING, Trial.token == token)


def _expired() -> Any:
    return or_(Trial.lease_expires_at < now(), Trial.deadline_at < now())


def _backoff_s() -> Any:
    doublings = case((Trial.failures > BACKOFF_FAILURES, literal(BACKOFF_FAILURES)), else_=Trial.failures)
    return BACKOFF_S * (literal(1).op("<<")(doublings) - literal(1))


def cancel_trials(connection: Connection, search_id: int) -> None:
    """Cancel the queued trials of a search and request it of the running ones."""
    # one statement, so that no trial that is released meanwhile slips through; and trials before their
    # search, as a claim locks them, or PostgreSQL would have to kill one of the two
    is_queued = Trial.state == TrialState.QUEUED
    connection.execute(
        update(Trial)
        .where(Trial.search_id == search_id, Trial.state.in_(OPEN_STATES))
        .values(
            state=case((is_queued, TrialState.CANCELLED), else_=Trial.state),
            finished_at=case((is_queued, now()), else_=null()),
            cancel_requested=True,
        )
    )


def _has_own_timeout() -> Any:
    return select(Search.id).where(Search.id == Trial.search_id, Search.trial_timeout.is_not(None)).exists()


def _close_attempt(connection: Connection, held: Held, outcome: str, error: str | None) -> None:
    ended = {"with_outcome": outcome, "with_error": shorten(error)}
    connection.execute(_CLOSE_ATTEMPT, {"tried_id": held.trial_id, "holder_token": held.token, **ended})


def _finish_search_of(database: Database, trial_id: int) -> None:
    with database.read() as connection:
        row = connection.execute(select(Trial.search_id, Trial.state).where(Trial.id == trial_id)).one()
    if row.state in FINAL_STATES:
        finish_search(database, row.search_id)


def changed(result: CursorResult[Any]) -> bool:
    """Whether a statement changed its one row."""
    return result.rowcount == 1


def _insert_all(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    for start in range(0, len(rows), INSERT_ROWS):
        connection.execute(insert(table), rows[start : start + INSERT_ROWS])


# What every trial runs is built once: SQLAlchemy needs 0.4 ms to build such a statement and 0.04 ms to run it.

#: What a trial that ended has in its columns; worker_id stays, it tells who did it.
_FINISHED: dict[str, Any] = {"token": None, "lease_expires_at": None, "deadline_at": None, "finished_at": now()}

#: Whether a trial is of a paused search.
IS_PAUSED = Trial.search_id.in_(select(Search.id).where(Search.paused_at.is_not(None)))
_MAY_START = and_(or_(Trial.not_before.is_(None), Trial.not_before <= now()), ~IS_PAUSED)
_WAITS = and_(Trial.state == TrialState.QUEUED, _MAY_START)
_RUNTIME_S = func.coalesce(
    select(Search.trial_timeout).where(Search.id == Trial.search_id).scalar_subquery(),
    bindparam("max_runtime_s", type_=Double),
)
_HINT = select(Trial.search_id, Trial.structure_digest, _WAITS.label("waits")).where(Trial.id == bindparam("wanted_id"))
_WAITING_OF_SEARCH = (
    select(Trial.id).where(Trial.search_id == bindparam("wanted_id"), _WAITS).order_by(Trial.id).limit(1)
)
_WAITING_OF_STRUCTURES = _WAITING_OF_SEARCH.where(Trial.structure_digest.in_(bindparam("structures", expanding=True)))
_CLAIM = (
    update(Trial)
    .where(Trial.id == bindparam("wanted_id"), _WAITS)
    .values(
        state=TrialState.RUNNING,
        attempt=Trial.attempt + 1,
        token=bindparam("holder_token"),
        worker_id=bindparam("holder_worker_id"),
        lease_expires_at=now(bindparam("lease_s", type_=Double)),
        deadline_at=now(_RUNTIME_S + bindparam("grace_s", type_=Double)),
        started_at=now(),
    )
    .returning(Trial.search_id, Trial.number, Trial.attempt, Trial.structure_digest)
)
_OPEN_ATTEMPT = insert(Attempt).values(
    trial_id=bindparam("tried_id"),
    attempt=bindparam("tried_attempt"),
    token=bindparam("holder_token"),
    worker_id=bindparam("holder_worker_id"),
)
_SEARCH_FACTS = select(
    Search.state,
    Search.n_splits,
    Search.refit_metric,
    Search.fit_mode,
    Search.trial_timeout,
    Search.evaluation_digest,
    Search.x_digest,
    Search.y_digest,
    Search.splits_digest,
    Search.candidates_digest,
).where(Search.id == bindparam("wanted_id"))
_START_SEARCH = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.state == SearchState.QUEUED)
    .values(state=SearchState.RUNNING, started_at=now())
)
_RECORD = (
    _held_with(bindparam("wanted_id"), bindparam("holder_token"))
    .values(
        state=bindparam("final_state"),
        mean_test_score=bindparam("with_mean"),
        std_test_score=bindparam("with_std"),
        mean_fit_time=bindparam("with_fit_time"),
        error_type=bindparam("with_error_type"),
        error=bindparam("with_error"),
        fit_mode=bindparam("with_fit_mode"),
        fit_fallback_reason=bindparam("with_fallback_reason"),
        **{name: bindparam(f"with_{name}") for name in PHASES},
        **_FINISHED,
    )
    .returning(Trial.search_id)
)
_NOTE_RECORD_TIME = (
    update(Trial).where(Trial.id == bindparam("wanted_id")).values(record_time=bindparam("with_record_time"))
)
_CLOSE_ATTEMPT = (
    update(Attempt)
    .where(
        Attempt.trial_id == bindparam("tried_id"),
        Attempt.token == bindparam("holder_token"),
        Attempt.ended_at.is_(None),
    )
    .values(ended_at=now(), outcome=bindparam("with_outcome"), error=bindparam("with_error"))
)
_HAS_OPEN_TRIALS = (
    select(Trial.id).where(Trial.search_id == bindparam("wanted_id"), Trial.state.in_(OPEN_STATES)).exists()
)
_IS_OPEN = select(_HAS_OPEN_TRIALS)
_LOCK_SEARCH = select(Search.id).where(Search.id == bindparam("wanted_id")).with_for_update()
_FINISH_SEARCH = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.finished_at.is_(None), ~_HAS_OPEN_TRIALS)
    .values(
        state=case((Search.state == SearchState.CANCELLED, SearchState.CANCELLED), else_=SearchState.COMPLETED),
        finished_at=now(),
    )
)
