"""The only code that changes a trial's state. Each change is one statement, guarded by id, state and token."""

from __future__ import annotations

import math
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

from storage.database import Database, now, seconds_between
from storage.params import params_digest, params_to_json, structural_params
from storage.schema import (
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

#: Seconds before a trial is tried again after its first, second, third … failure: 0, 10, 30, 70 …
BACKOFF_S = 10
#: Failures after which the wait grows no more: it would overflow PostgreSQL's integers at the 32nd.
BACKOFF_FAILURES = 8
#: Characters of a stored traceback; the end is kept, for there the error stands.
MAX_ERROR = 8_192
#: ``error_type`` of a trial whose mean score is NaN or infinite though nothing was raised.
NON_FINITE = "non_finite_score"
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


@dataclass(frozen=True, slots=True)
class SplitResult:
    """One metric on one split; scores may be NaN or infinite."""

    split: int
    metric: str
    test_score: float
    train_score: float | None
    fit_time: float
    score_time: float
    n_train: int
    n_test: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One point of a learning curve."""

    split: int
    epoch: int
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a worker found out about a trial.

    ``error_type`` and ``error`` are those of the first split whose fit raised; the trial is then ``failed``,
    and its scores, if any, are made of ``error_score`` as scikit-learn does it.
    """

    splits: Sequence[SplitResult]
    epochs: Sequence[EpochResult] = field(default_factory=tuple)
    mean_test_score: float | None = None
    std_test_score: float | None = None
    mean_fit_time: float | None = None
    error_type: str | None = None
    error: str | None = None
    fit_mode: str | None = None
    fit_fallback_reason: str | None = None
    build_time: float | None = None
    trace_time: float | None = None
    compile_time: float | None = None
    train_time: float | None = None
    score_time: float | None = None


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


def claim(database: Database, trial_id: int, worker_id: str, *, lease_s: float, max_runtime_s: float) -> Claim | None:
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
        Seconds after which it is taken back, heartbeat or not.

    Returns
    -------
    Claim or None
        None if it is not there, not queued, or not to be tried yet.
    """
    token = secrets.token_hex(16)
    holder = {"holder_token": token, "holder_worker_id": worker_id}
    with database.write() as connection:
        row = connection.execute(
            _CLAIM, {**holder, "wanted_id": trial_id, "lease_s": lease_s, "max_runtime_s": max_runtime_s}
        ).one_or_none()
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
        search_id = connection.execute(_RECORD, _result_row(held, state, result)).scalar_one_or_none()
        if search_id is None:
            return False
        _insert_all(connection, SplitScore, [_split_row(held.trial_id, split) for split in result.splits])
        _insert_all(connection, Epoch, [_epoch_row(held.trial_id, epoch) for epoch in result.epochs])
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
                not_before=None,
                **_NOT_HELD,
            )
        )
        if not _changed(released):
            return False
        _close_attempt(connection, held, "released", None)
    _finish_search_of(database, held.trial_id)
    return True


def lose(
    database: Database, held: Held, *, outcome: str, error: str, max_failures: int, expired_only: bool = False
) -> bool:
    """Take a trial back after a death, a time-out or a lost lease: to be tried again, or failed for good.

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
                error_type=outcome,
                error=shorten(error),
                **_NOT_HELD,
            )
        )
        if not _changed(lost):
            return False
        _close_attempt(connection, held, outcome, error)
    _finish_search_of(database, held.trial_id)
    return True


def cancel(database: Database, held: Held) -> bool:
    """End a running trial whose cancellation was requested."""
    with database.write() as connection:
        if not _changed(connection.execute(_held(held).values(state=TrialState.CANCELLED, **_FINISHED))):
            return False
        _close_attempt(connection, held, "cancelled", None)
    _finish_search_of(database, held.trial_id)
    return True


def cancel_search(database: Database, search_id: int) -> bool:
    """Cancel a search: its queued trials at once, its running ones as soon as their workers see it.

    Returns
    -------
    bool
        False if it was finished already.
    """
    is_queued = Trial.state == TrialState.QUEUED
    with database.write() as connection:
        # one statement, so that no trial that is released meanwhile slips through; and trials before their
        # search, as a claim locks them, or PostgreSQL would have to kill one of the two
        connection.execute(
            update(Trial)
            .where(Trial.search_id == search_id, Trial.state.in_(OPEN_STATES))
            .values(
                state=case((is_queued, TrialState.CANCELLED), else_=Trial.state),
                finished_at=case((is_queued, now()), else_=null()),
                cancel_requested=True,
            )
        )
        open_search = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None))
            .values(state=SearchState.CANCELLED)
        )
        if not _changed(open_search):
            return False
    finish_search(database, search_id)
    return True


def expired(database: Database, *, limit: int = 500) -> list[Held]:
    """List running trials whose lease or deadline is over."""
    with database.read() as connection:
        rows = connection.execute(
            select(Trial.id, Trial.token).where(Trial.state == TrialState.RUNNING, _expired()).limit(limit)
        )
        return [Held(row.id, row.token) for row in rows]


def held_by(database: Database, node: str | None, *, trial_id: int | None = None) -> list[Held]:
    """List the running trials of a node's worker processes, or of all nodes.

    The id of a worker process begins with the name of its node.
    """
    condition = Trial.state == TrialState.RUNNING
    if node is not None:
        condition = and_(condition, Trial.worker_id.startswith(node + "/", autoescape=True))
    if trial_id is not None:
        condition = and_(condition, Trial.id == trial_id)
    with database.read() as connection:
        rows = connection.execute(select(Trial.id, Trial.token).where(condition))
        return [Held(row.id, row.token) for row in rows]


def due_for_publishing(
    database: Database,
    *,
    republish_s: float,
    limit: int = 500,
    only_unpublished: bool = False,
    among: Sequence[int] | None = None,
) -> list[int]:
    """List queued trials that no message can be expected of any more: never published, or long ago.

    Parameters
    ----------
    database : Database
        Where to look.
    republish_s : float
        Seconds after which a message counts as lost; doubled with each publication, up to an hour.
    limit : int, default=500
        How many at most.
    only_unpublished : bool, default=False
        Only those that no message was ever sent for, or not since they were last taken back.
    among : sequence of int, default=None
        Only these trials.
    """
    wait = case(
        (Trial.publish_count > 6, literal(3600.0)),
        else_=literal(float(republish_s)) * literal(1).op("<<")(Trial.publish_count - 1),
    )
    overdue = seconds_between(database.dialect, Trial.published_at, now()) > wait
    due = select(Trial.id).where(
        Trial.state == TrialState.QUEUED,
        or_(Trial.not_before.is_(None), Trial.not_before <= now()),
        Trial.published_at.is_(None) if only_unpublished else or_(Trial.published_at.is_(None), overdue),
    )
    if among is not None:
        due = due.where(Trial.id.in_(among))
    with database.read() as connection:
        return list(connection.execute(due.order_by(Trial.id).limit(limit)).scalars())


def count_queued(database: Database) -> int:
    """Count the queued trials of all searches."""
    with database.read() as connection:
        return int(connection.execute(select(func.count()).where(Trial.state == TrialState.QUEUED)).scalar_one())


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
        return _changed(connection.execute(_FINISH_SEARCH, {"wanted_id": search_id}))


def unfinished_searches(database: Database) -> list[int]:
    """List the searches that are not marked as finished."""
    with database.read() as connection:
        return list(connection.execute(select(Search.id).where(Search.finished_at.is_(None))).scalars())


def shorten(error: str | None) -> str | None:
    """Cut a traceback to what is stored, keeping its end; what no database takes is shown as an escape."""
    if error is None:
        return None
    clean = error.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= MAX_ERROR else "…" + clean[-(MAX_ERROR - 1) :]


#: What a trial that no worker holds has in its columns.
_NOT_HELD: dict[str, Any] = {"token": None, "worker_id": None, "lease_expires_at": None, "deadline_at": None}


def _held(held: Held) -> Update:
    return _held_with(held.trial_id, held.token)


def _held_with(trial_id: Any, token: Any) -> Update:
    return update(Trial).where(Trial.id == trial_id, Trial.state == TrialState.RUNNING, Trial.token == token)


def _expired() -> Any:
    return or_(Trial.lease_expires_at < now(), Trial.deadline_at < now())


def _backoff_s() -> Any:
    doublings = case((Trial.failures > BACKOFF_FAILURES, literal(BACKOFF_FAILURES)), else_=Trial.failures)
    return BACKOFF_S * (literal(1).op("<<")(doublings) - literal(1))


def _close_attempt(connection: Connection, held: Held, outcome: str, error: str | None) -> None:
    ended = {"with_outcome": outcome, "with_error": shorten(error)}
    connection.execute(_CLOSE_ATTEMPT, {"tried_id": held.trial_id, "holder_token": held.token, **ended})


def _finish_search_of(database: Database, trial_id: int) -> None:
    with database.read() as connection:
        row = connection.execute(select(Trial.search_id, Trial.state).where(Trial.id == trial_id)).one()
    if row.state in FINAL_STATES:
        finish_search(database, row.search_id)


def _changed(result: CursorResult[Any]) -> bool:
    return result.rowcount == 1


def _insert_all(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    for start in range(0, len(rows), INSERT_ROWS):
        connection.execute(insert(table), rows[start : start + INSERT_ROWS])


def _result_row(held: Held, state: TrialState, result: TrialResult) -> dict[str, Any]:
    return {
        "wanted_id": held.trial_id,
        "holder_token": held.token,
        "final_state": state,
        "with_mean": _finite(result.mean_test_score),
        "with_std": _finite(result.std_test_score),
        "with_fit_time": _finite(result.mean_fit_time),
        "with_error_type": result.error_type,
        "with_error": shorten(result.error),
        "with_fit_mode": result.fit_mode,
        "with_fallback_reason": shorten(result.fit_fallback_reason),
        **{f"with_{name}": _finite(getattr(result, name)) for name in _PHASES},
    }


def _split_row(trial_id: int, result: SplitResult) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "split": result.split,
        "metric": result.metric,
        "test_score": _finite(result.test_score),
        "train_score": _finite(result.train_score),
        "test_score_reason": _reason(result.test_score),
        "train_score_reason": _reason(result.train_score),
        "fit_time": result.fit_time,
        "score_time": result.score_time,
        "n_train": result.n_train,
        "n_test": result.n_test,
        "error": shorten(result.error),
    }


def _epoch_row(trial_id: int, result: EpochResult) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "split": result.split,
        "epoch": result.epoch,
        "metric": result.metric,
        "value": _finite(result.value),
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _reason(value: float | None) -> str | None:
    return None if value is None or math.isfinite(value) else str(float(value))


# What every trial runs is built once: SQLAlchemy needs 0.4 ms to build such a statement and 0.04 ms to run it.

#: What a trial that ended has in its columns; worker_id stays, it tells who did it.
_FINISHED: dict[str, Any] = {"token": None, "lease_expires_at": None, "deadline_at": None, "finished_at": now()}

#: Columns of ``trials`` that say where the time of the fits went.
_PHASES = ("build_time", "trace_time", "compile_time", "train_time", "score_time")

_WAITS = and_(Trial.state == TrialState.QUEUED, or_(Trial.not_before.is_(None), Trial.not_before <= now()))
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
        deadline_at=now(bindparam("max_runtime_s", type_=Double)),
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
        **{name: bindparam(f"with_{name}") for name in _PHASES},
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
_FINISH_SEARCH = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.finished_at.is_(None), ~_HAS_OPEN_TRIALS)
    .values(
        state=case((Search.state == SearchState.CANCELLED, SearchState.CANCELLED), else_=SearchState.COMPLETED),
        finished_at=now(),
    )
)
