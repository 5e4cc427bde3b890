"""What becomes of a trial that is held. Each change of its state is one statement, guarded by id, state and token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Double,
    Integer,
    String,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Connection

from gridfleet.storage import events, models, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import (
    FINAL_STATES,
    Attempt,
    Curve,
    Lease,
    Search,
    SplitScore,
    Trial,
    TrialState,
    TrialWarning,
)
from gridfleet.storage.statements import NOT_HELD, NOT_PUBLISHED, changed, insert_all
from gridfleet.storage.trial_results import (
    MAX_WARNINGS,
    RESULT_COLUMNS,
    TrialResult,
    curve_row,
    result_row,
    shorten,
    split_row,
    warning_row,
)
from gridfleet.storage.trials import claims, handed_back
from gridfleet.storage.trials.held import LOCK_HELD, Claim, Held, end_lease, is_still_expired, update_held

#: Seconds before a trial is tried again after its first, second, third … failure: 0, 10, 30, 70 …
BACKOFF_S = 10
#: Failures after which the wait grows no more: it would overflow PostgreSQL's integers at the 32nd.
BACKOFF_FAILURES = 8

#: What a trial that ended has in its columns; worker_id stays and says who did it.
_FINISHED: dict[str, Any] = {"token": None, "deadline_at": None, "finished_at": now()}
#: What the last heartbeat said of the memory that a trial took, or what was known as it began.
_TOLD: dict[str, Any] = {
    "peak_memory_mb": func.coalesce(
        select(Lease.memory_mb).where(Lease.trial_id == Trial.id).scalar_subquery(), Trial.peak_memory_mb
    )
}

_IS_TO_BE_CANCELLED = select(Trial.cancel_requested).where(Trial.id == Lease.trial_id).scalar_subquery()
_HEARTBEAT = (
    update(Lease)
    .where(Lease.trial_id == bindparam("wanted_id"), Lease.token == bindparam("holder_token"))
    .values(
        expires_at=now(bindparam("lease_s", type_=Double)),
        memory_mb=func.coalesce(bindparam("memory_mb", type_=Integer), Lease.memory_mb),
    )
    .returning(_IS_TO_BE_CANCELLED)
)


def heartbeat(database: Database, held: Held, *, lease_s: float, memory_mb: int | None = None) -> bool | None:
    """Prolong the lease of a running trial.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token of the attempt.
    lease_s : float
        Seconds from now for which it is held without another heartbeat.
    memory_mb : int, default=None
        The most memory that the worker process took so far in this attempt; None: not known.

    Returns
    -------
    bool or None
        Whether it should be cancelled; None if it is no longer held with this token.
    """
    with database.write() as connection:
        return connection.execute(_HEARTBEAT, _told(held, lease_s, memory_mb)).scalar_one_or_none()


def _told(held: Held, lease_s: float, memory_mb: int | None) -> dict[str, Any]:
    return {"wanted_id": held.trial_id, "holder_token": held.token, "lease_s": lease_s, "memory_mb": memory_mb}


_beating = func.unnest(
    bindparam("trial_ids", type_=ARRAY(BigInteger)),
    bindparam("tokens", type_=ARRAY(String)),
    bindparam("memories", type_=ARRAY(Integer)),
).table_valued("trial_id", "token", "memory_mb")
_beating = _beating.render_derived()
_HEARTBEATS = (
    update(Lease)
    .where(Lease.trial_id == _beating.c.trial_id, Lease.token == _beating.c.token)
    .values(expires_at=now(bindparam("lease_s", type_=Double)), memory_mb=_beating.c.memory_mb)
    .returning(Lease.trial_id, Lease.token, _IS_TO_BE_CANCELLED.label("is_to_be_cancelled"))
)


def heartbeats(database: Database, beating: Mapping[Held, int], *, lease_s: float) -> dict[Held, bool]:
    """Prolong the leases of trials of one worker's processes, in one statement: a fifth of the work of one for each.

    Parameters
    ----------
    database : Database
        The fleet's.
    beating : mapping of Held to int
        The trials with the tokens of their attempts, and the memory in MB that each one's process takes.
    lease_s : float
        Seconds from now for which they are held without another heartbeat.

    Returns
    -------
    dict of Held to bool
        Of those that are still held with this token, whether they should be cancelled.
    """
    if not beating:
        return {}
    if database.dialect == "sqlite":  # each statement is a call of a function there
        with database.write() as connection:
            answers = {
                held: connection.execute(_HEARTBEAT, _told(held, lease_s, memory_mb)).scalar_one_or_none()
                for held, memory_mb in beating.items()
            }
        return {held: bool(answer) for held, answer in answers.items() if answer is not None}
    columns = {
        "trial_ids": [held.trial_id for held in beating],
        "tokens": [held.token for held in beating],
        "memories": list(beating.values()),
    }
    with database.write() as connection:
        rows = connection.execute(_HEARTBEATS, {**columns, "lease_s": lease_s}).all()
    return {Held(row.trial_id, row.token): row.is_to_be_cancelled for row in rows}


def put_off_deadlines(database: Database, *, by_s: float) -> None:
    """Give running trials the time in which they stood still, as on a machine that slept: workers do not count it.

    Parameters
    ----------
    database : Database
        The fleet's.
    by_s : float
        Seconds by which their deadlines are later.
    """
    left_s = seconds_between(database.dialect, now(), Trial.deadline_at)
    with database.write() as connection:
        connection.execute(
            update(Trial)
            .where(Trial.id.in_(select(Lease.trial_id)))
            .values(deadline_at=now(left_s + literal(float(by_s))))
        )


_RECORD = (
    update_held(bindparam("wanted_id"), bindparam("holder_token"))
    .values(
        state=bindparam("final_state"),
        record_time=bindparam("with_record_time"),
        **{name: bindparam(f"with_{name}") for name in RESULT_COLUMNS},
        **_FINISHED,
    )
    # whether anybody is to be told: asked here, it costs no statement where nobody is
    .returning(Trial.search_id, events.NOTIFIES)
)


def record(database: Database, held: Held, result: TrialResult) -> bool:
    """Write the result of a trial and finish it, in one transaction: exactly once.

    Returns
    -------
    bool
        False if the trial is no longer held with this token; nothing was written then.
    """
    return _record(database, held, result, claim_next=lambda _: None)[0]


def record_and_claim(
    database: Database,
    claim: Claim,
    result: TrialResult,
    worker_id: str,
    *,
    lease_s: float,
    max_runtime_s: float,
    grace_s: float = 0,
    memory_mb: int | None = None,
    structures: Collection[str] | None = None,
) -> tuple[bool, Claim | None]:
    """Record the result of a trial and claim the next one of its search, in one transaction.

    Parameters
    ----------
    database : Database
        The fleet's.
    claim : Claim
        The trial that is recorded.
    result : TrialResult
        Its result.
    worker_id, lease_s, max_runtime_s, grace_s, memory_mb
        Who claims the next one, and for how long, as for `claim`. It is of the same search, and so of the same Python.
    structures : collection of str, default=None
        Only one whose ``structure_digest`` is among these; None: any.

    Returns
    -------
    is_recorded : bool
        False if the trial is no longer held with this token; nothing was written then.
    following : Claim or None
        The first trial of the search behind this one that waits, unless it was tried before.
    """
    claim_next = partial(
        claims.claim_next,
        after=claim,
        worker_id=worker_id,
        lease_s=lease_s,
        max_runtime_s=max_runtime_s,
        grace_s=grace_s,
        memory_mb=memory_mb,
        structures=structures,
    )
    return _record(database, Held(claim.trial_id, claim.token), result, claim_next=claim_next)


def _record(
    database: Database, held: Held, result: TrialResult, *, claim_next: Callable[[Connection], Claim | None]
) -> tuple[bool, Claim | None]:
    state, outcome = TrialState.COMPLETED, Outcome.COMPLETED
    if result.error is not None:
        state, outcome = TrialState.FAILED, Outcome.FAILED
    elif result.pruned is not None:
        state, outcome = TrialState.PRUNED, Outcome.PRUNED
    with database.write() as connection:
        started = time.perf_counter()
        own = {"wanted_id": held.trial_id, "holder_token": held.token}
        if connection.execute(LOCK_HELD, own).first() is None:
            return False, None
        end_lease(connection, held)
        insert_all(connection, SplitScore, [split_row(held.trial_id, split) for split in result.splits])
        insert_all(connection, Curve, [curve_row(held.trial_id, curve) for curve in result.curves])
        warned = enumerate(result.warnings[:MAX_WARNINGS])
        insert_all(connection, TrialWarning, [warning_row(held.trial_id, position, each) for position, each in warned])
        if result.model is not None:
            models.insert_model(connection, held.trial_id, result.model)
        # last, and once: at the second update of a row in one transaction PostgreSQL checks its foreign keys again, and
        # all workers lock the row of one search for that
        found = {**result_row(result), "record_time": time.perf_counter() - started}
        search_id, notifies = connection.execute(
            _RECORD, {**own, "final_state": state, **{f"with_{name}": value for name, value in found.items()}}
        ).one()
        if notifies and state == TrialState.COMPLETED:
            events.note_best(connection, search_id, held.trial_id)
        _close_attempt(connection, held, outcome, result.error)
        following = claim_next(connection)
    if following is None:  # else the search is not at its end
        searches.finish_search(database, search_id)
    return True, following


def release(database: Database, held: Held, *, error: str | None = None, expired_only: bool = False) -> bool:
    """Give a running trial back unharmed, as at a deploy; does not count as a failure.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token of the attempt that is over.
    error : str, default=None
        Why, as a sentence, if nobody asked its worker to end.
    expired_only : bool, default=False
        Only if its lease or deadline is still the one that was over when it was found.

    Returns
    -------
    bool
        Whether it was held with this token.
    """
    with database.write() as connection:
        if expired_only and not is_still_expired(connection, held):
            return False
        released = connection.execute(
            update_held(held.trial_id, held.token).values(
                state=case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED),
                finished_at=case((Trial.cancel_requested, now()), else_=null()),
                not_before=None,
                **NOT_PUBLISHED,
                **_TOLD,
                **{**NOT_HELD, "worker_id": case((Trial.cancel_requested, Trial.worker_id), else_=null())},
            )
        )
        if not changed(released):
            return False
        end_lease(connection, held)
        _close_attempt(connection, held, Outcome.RELEASED, error)
    _finish_search_of(database, held.trial_id)
    return True


def hand_back(database: Database, held: Held, *, worker_id: str, reason: str, error: str) -> bool:
    """Give a running trial back unharmed that a worker can't evaluate for reasons of its own; counts no failure.

    One that several workers handed back for one reason is failed with it, so that nothing circles for ever
    (`handed_back.is_refused_by_all`).

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token of the attempt that is over.
    worker_id : str
        The process that held it.
    reason : str
        What went wrong there, in the same words on every worker.
    error : str
        All that is known of it.

    Returns
    -------
    bool
        Whether it was held with this token.
    """
    told = handed_back.told(error, reason)
    with database.write() as connection:
        before = handed_back.stories(connection, held.trial_id)
        refused = handed_back.is_refused_by_all(connection, before, worker_id=worker_id, reason=reason)
        over = or_(Trial.cancel_requested, literal(refused))
        pause_s = BACKOFF_S * ((1 << min(len(before), BACKOFF_FAILURES)) - 1)
        returned = connection.execute(
            update_held(held.trial_id, held.token).values(
                state=case(
                    (Trial.cancel_requested, TrialState.CANCELLED),
                    else_=TrialState.FAILED if refused else TrialState.QUEUED,
                ),
                finished_at=case((over, now()), else_=null()),
                # the first time at once; later some time after, lest a lone worker does nothing else
                not_before=case((over, null()), else_=now(pause_s)),
                error_type=Outcome.HANDED_BACK,
                error=shorten(told),
                **NOT_PUBLISHED,
                **_TOLD,
                **{**NOT_HELD, "worker_id": case((over, Trial.worker_id), else_=null())},
            )
        )
        if not changed(returned):
            return False
        end_lease(connection, held)
        _close_attempt(connection, held, Outcome.HANDED_BACK, told)
    _finish_search_of(database, held.trial_id)
    return True


def reap(
    database: Database, held: Held, *, outcome: Outcome, error: str, max_failures: int, expired_only: bool = False
) -> bool:
    """Take a trial back after a death, a time-out or a lost lease: to be tried again, or failed for good.

    One that took longer than its search's ``trial_timeout`` is not tried again: whoever set it wants no more
    time spent on it.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token of the attempt that is over.
    outcome : Outcome
        What the attempt came to.
    error : str
        The reason, as a sentence.
    max_failures : int
        At this many failures the trial is ``failed``.
    expired_only : bool, default=False
        Only if its lease or deadline is still the one that was over when it was found.

    Returns
    -------
    bool
        Whether it was held with this token.
    """
    spent = Trial.failures + 1 >= max_failures
    if outcome == Outcome.TIMEOUT:
        spent = or_(spent, _has_own_timeout())
    over = or_(Trial.cancel_requested, spent)
    with database.write() as connection:
        if expired_only and not is_still_expired(connection, held):
            return False
        reaped = connection.execute(
            update_held(held.trial_id, held.token).values(
                state=case(
                    (Trial.cancel_requested, TrialState.CANCELLED), (spent, TrialState.FAILED), else_=TrialState.QUEUED
                ),
                failures=Trial.failures + 1,
                finished_at=case((over, now()), else_=null()),
                not_before=case((over, null()), else_=now(_backoff_s())),
                error_type=outcome,
                error=shorten(error),
                **NOT_PUBLISHED,
                **_TOLD,
                **{**NOT_HELD, "worker_id": case((over, Trial.worker_id), else_=null())},
            )
        )
        if not changed(reaped):
            return False
        end_lease(connection, held)
        _close_attempt(connection, held, outcome, error)
    _finish_search_of(database, held.trial_id)
    return True


def _has_own_timeout() -> Any:
    return select(Search.id).where(Search.id == Trial.search_id, Search.trial_timeout.is_not(None)).exists()


def _backoff_s() -> Any:
    doublings = case((Trial.failures > BACKOFF_FAILURES, literal(BACKOFF_FAILURES)), else_=Trial.failures)
    return BACKOFF_S * (literal(1).op("<<")(doublings) - literal(1))


def cancel(database: Database, held: Held) -> bool:
    """End a running trial whose cancellation was requested; if its search goes on by now, it is queued again."""
    cancelled = update_held(held.trial_id, held.token).values(
        state=case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED),
        finished_at=case((Trial.cancel_requested, now()), else_=null()),
        not_before=None,
        **NOT_PUBLISHED,
        **_TOLD,
        **{**NOT_HELD, "worker_id": case((Trial.cancel_requested, Trial.worker_id), else_=null())},
    )
    with database.write() as connection:
        if not changed(connection.execute(cancelled)):
            return False
        end_lease(connection, held)
        _close_attempt(connection, held, Outcome.CANCELLED, None)
    _finish_search_of(database, held.trial_id)
    return True


_CLOSE_ATTEMPT = (
    update(Attempt)
    .where(
        Attempt.trial_id == bindparam("tried_id"),
        Attempt.token == bindparam("holder_token"),
        Attempt.ended_at.is_(None),
    )
    .values(
        ended_at=now(),
        outcome=bindparam("with_outcome"),
        error=bindparam("with_error"),
        # what the last heartbeat or the result said
        peak_memory_mb=select(Trial.peak_memory_mb).where(Trial.id == Attempt.trial_id).scalar_subquery(),
    )
)


def _close_attempt(connection: Connection, held: Held, outcome: Outcome, error: str | None) -> None:
    ended = {"with_outcome": outcome, "with_error": shorten(error)}
    connection.execute(_CLOSE_ATTEMPT, {"tried_id": held.trial_id, "holder_token": held.token, **ended})


def _finish_search_of(database: Database, trial_id: int) -> None:
    with database.read() as connection:
        row = connection.execute(select(Trial.search_id, Trial.state).where(Trial.id == trial_id)).one_or_none()
    # another process may have finished its search since, and somebody deleted it
    if row is not None and row.state in FINAL_STATES:
        searches.finish_search(database, row.search_id)
