"""What changes a whole search: create, cancel, pause, resume, give priority, retry its failed trials, stop, finish."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, func, insert, literal, null, or_, select, update
from sqlalchemy.engine import Connection

from gridfleet.storage import events, refits
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.errors import InvalidSearchError, PayloadSignatureError
from gridfleet.storage.schema import (
    OPEN_STATES,
    Curve,
    Report,
    Search,
    SearchState,
    SplitScore,
    Trial,
    TrialState,
    TrialWarning,
)
from gridfleet.storage.search_states import STOPPED
from gridfleet.storage.settings import SAME_KEYS
from gridfleet.storage.signer import SIGNATURE_LENGTH, Signer, Verifier
from gridfleet.storage.statements import IS_PAUSED, NOT_HELD, NOT_PUBLISHED, changed
from gridfleet.storage.trial_results import RESULT_COLUMNS

#: Characters of a name, PostgreSQL's own bound, and of the number that may be put behind it.
MAX_NAME = 63
MAX_NUMBER = 20
#: The highest priority; the lowest is as far below 0.
MAX_PRIORITY = 1_000
#: What a trial that starts all over has in its columns; ``attempt`` only grows.
_NEW: dict[str, Any] = {
    **NOT_HELD,
    **NOT_PUBLISHED,
    **dict.fromkeys((*RESULT_COLUMNS, "record_time")),
    "failures": 0,
    "cancel_requested": False,
    "not_before": None,
    "started_at": None,
    "finished_at": None,
}

#: What the signature of a search binds to its id: what is evaluated, how, and for whom.
SIGNED_COLUMNS = (
    "name",
    "strategy",
    "scoring",
    "refit_metric",
    "n_trials",
    "n_splits",
    "fit_mode",
    "submitted_by",
    "session",
    "evaluation_digest",
    "x_digest",
    "y_digest",
    "splits_digest",
    "candidates_digest",
    "sources_digest",
    "space",
    "sampler",
    "seed",
    "lookahead",
    "asks_in_order",
    "pruner",
    "monitor",
)
#: Those of them that only a search has whose trials are proposed, and one that prunes them; the signatures of others
#: are without them.
_OF_PROPOSALS = ("space", "sampler", "seed", "lookahead", "asks_in_order")
_OF_PRUNING = ("pruner", "monitor")


def create_search(
    connection: Connection, name: str | None, columns: Mapping[str, Any], signer: Signer
) -> tuple[int, str]:
    """Insert a search, in the transaction that goes on to insert its trials and its view.

    Parameters
    ----------
    connection : Connection
        An open writing transaction.
    name : str or None
        Its name; None: ``search-<id>``.
    columns : mapping of str to object
        What else the table ``searches`` says of it.
    signer : Signer
        With the fleet's secret key.

    Returns
    -------
    search_id : int
    name : str
    """
    # until its id is known, something that no other search has
    row = {"name": name if name is not None else f"search-{secrets.token_hex(8)}", **columns}
    search_id: int = connection.execute(insert(Search).values(row).returning(Search.id)).scalar_one()
    if name is None:
        name = f"search-{search_id}"
    # of what was given, not of what the database has: a trigger may have changed it
    signature = signer.sign(*_signed_facts(search_id, {**columns, "name": name}))
    connection.execute(update(Search).where(Search.id == search_id).values(name=name, signature=signature))
    return search_id, name


def sign_search(signer: Signer, search_id: int, facts: Mapping[str, Any]) -> str:
    """Return the signature of a search: of a value for each of `SIGNED_COLUMNS`."""
    return signer.sign(*_signed_facts(search_id, facts))


def next_free_name(connection: Connection, name: str) -> tuple[str, str | None]:
    """Choose the name of a search that is stored once more: ``pima``, then ``pima-2``, ``pima-3`` and so on.

    Parameters
    ----------
    connection : Connection
        The writing transaction that goes on to insert the search. Others that ask for the same name wait for its end.
    name : str
        What it is to be called.

    Returns
    -------
    name : str
        The first of these names that no search has.
    first : str or None
        The name of the search that has ``name``, as it is written there; None if ``name`` is free.
    """
    same_name = select(Search.name).where(func.lower(Search.name) == name.lower())
    # locked, so that names, ids and what the view shows come in one order
    first = connection.execute(same_name.with_for_update(key_share=True)).scalar()
    if first is None:
        return name, None
    return free_name(connection, first), first


def free_name(connection: Connection, first: str) -> str:
    """Return the first of ``pima-2``, ``pima-3`` and so on that no search has."""
    names = select(Search.name).where(may_be_numbered(first))
    taken = {found.lower() for found in connection.execute(names).scalars()}
    numbered = (numbered_name(first, f"-{number}") for number in itertools.count(2))
    return next(found for found in numbered if found.lower() not in taken)


def may_be_numbered(name: str) -> ColumnElement[bool]:
    """Return the condition that a search has a name, or that name with a number behind it."""
    return func.lower(Search.name).startswith(name[: MAX_NAME - MAX_NUMBER].lower(), autoescape=True)


def numbered_name(name: str, number: str) -> str:
    """Put a number behind a name, which is cut to make room for it."""
    if name.lower() == "search":  # search-2 is what a search without a name may be called
        number = f"_{number[1:]}"
    return name[: MAX_NAME - len(number)] + number


def _signed_facts(search_id: int, facts: Mapping[str, Any]) -> tuple[Any, ...]:
    of_all = (column for column in SIGNED_COLUMNS if column not in (*_OF_PROPOSALS, *_OF_PRUNING))
    signed: tuple[Any, ...] = (search_id, *(facts[column] for column in of_all))
    for kind, columns in (("proposals", _OF_PROPOSALS), ("pruning", _OF_PRUNING)):
        if any(facts.get(column) is not None for column in columns):
            signed = (kind, *(facts.get(column) for column in columns), *signed)
    if facts.get("refit_of") is None:
        return ("search", *signed)
    return ("refit", *signed, facts["refit_of"], facts["model_key"])


def check_signature(verifier: Verifier, search_id: int, facts: Mapping[str, Any]) -> None:
    """Make sure that a search is what was submitted, before its trial is evaluated.

    A payload's signature says nothing of the searches that it is for: without this one, whoever writes the table
    could let anybody's estimator run on anybody's data.

    Parameters
    ----------
    verifier : Verifier
        With the fleet's public key.
    search_id : int
        Its id.
    facts : mapping of str to object
        A value for each of `SIGNED_COLUMNS`, and the ``signature``; of a refit, ``refit_of`` and ``model_key`` as well.

    Raises
    ------
    PayloadSignatureError
        If it was changed, signed with another key, or never signed.
    """
    signature = facts["signature"]
    if signature is None or len(signature) < SIGNATURE_LENGTH:
        raise PayloadSignatureError(
            f"search {search_id} is not signed: an older release stored it, or somebody without the fleet's key; "
            "submit it again"
        )
    if not verifier.is_signed(signature, *_signed_facts(search_id, facts)):
        raise PayloadSignatureError(
            f"search {search_id} was changed after it was submitted, or not signed with this process's key; submit it "
            f"again, and {SAME_KEYS}"
        )


@retried
def cancel_search(database: Database, search_id: int) -> bool:
    """Cancel a search: its queued trials at once, its running ones as soon as their workers see it.

    Returns
    -------
    bool
        False if it was finished already.
    """
    with database.write() as connection:
        _cancel_trials(connection, search_id)
        open_search = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None))
            .values(state=SearchState.CANCELLED)
        )
        is_open = changed(open_search)
        refit_id = None if is_open else connection.execute(refits.open_refit(search_id)).scalar()
    if refit_id is not None:  # all that is left of it
        return cancel_search(database, refit_id)
    if is_open:
        _cancel_late_proposals(database, search_id)
        finish_search(database, search_id)
    return is_open


def _cancel_trials(connection: Connection, search_id: int) -> None:
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


def _cancel_late_proposals(database: Database, search_id: int) -> None:
    """Cancel trials that were proposed while their search was being ended: nothing is proposed once that is known."""
    proposes = select(Search.id).where(Search.id == search_id, Search.n_asked.is_not(None))
    with database.read() as connection:
        if connection.execute(proposes).first() is None:
            return
    # in a transaction of its own, for a claim locks a trial before its search
    with database.write() as connection:
        _cancel_trials(connection, search_id)


@retried
def pause_search(database: Database, search_id: int) -> bool:
    """Pause a search: none of its trials starts any more; those that run go on to their end.

    Returns
    -------
    bool
        False if it was paused or finished already.
    """
    with database.write() as connection:
        paused = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None), Search.paused_at.is_(None))
            .values(paused_at=now())
        )
        return changed(paused)


@retried
def resume_search(database: Database, search_id: int) -> bool:
    """Go on with a paused search; the reconciler publishes its trials again.

    Returns
    -------
    bool
        False if it was not paused.
    """
    with database.write() as connection:
        # trials before their search, as a claim locks them; their messages were consumed while it was paused
        connection.execute(
            update(Trial)
            .where(Trial.search_id == search_id, Trial.state == TrialState.QUEUED, IS_PAUSED)
            .values(**NOT_PUBLISHED)
        )
        resumed = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None), Search.paused_at.is_not(None))
            .values(paused_at=None)
        )
        return changed(resumed)


def check_priority(value: Any) -> int:
    """Return a priority as it is stored.

    Raises
    ------
    InvalidSearchError
        If it is none.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        raise InvalidSearchError(
            f"priority={value!r} must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}; 0 is that of all others"
        )
    return int(value)


@retried
def set_priority(database: Database, search_id: int, priority: int) -> bool:
    """Let a search go before those of a lower priority, from the next claim on.

    Returns
    -------
    bool
        False if it was finished already.

    Raises
    ------
    InvalidSearchError
        As `check_priority`.
    """
    priority = check_priority(priority)
    with database.write() as connection:
        # its refit too, which is all that is left of it in the end
        mine = or_(Search.id == search_id, Search.refit_of == search_id)
        changed_some = connection.execute(
            update(Search).where(mine, Search.finished_at.is_(None)).values(priority=priority)
        )
        return changed_some.rowcount > 0


@retried
def retry_failed(database: Database, search_id: int) -> int:
    """Queue the failed trials of a search once more, with their whole budget, because somebody asks for it.

    The only way out of a final state. The scores that ``error_score`` gave them go; the story of their
    attempts stays. The reconciler publishes them. A ``search_timeout`` that stopped the search does not stop it
    once more, and what it cancelled stays cancelled. Its refit waits for its end again; where only that failed, it
    alone is queued.

    Returns
    -------
    int
        How many trials, or 1 for the refit; 0 for a cancelled search, whose trials stay as they are.
    """
    failed = select(Trial.id).where(Trial.search_id == search_id, Trial.state == TrialState.FAILED)
    with database.write() as connection:
        if database.dialect == "postgresql":  # locked in one order, and before the scores go
            connection.execute(failed.order_by(Trial.id).with_for_update())
        open_again = connection.execute(
            update(Search)
            .where(
                Search.id == search_id,
                Search.state != SearchState.CANCELLED,
                Search.deleted_at.is_(None),
                failed.exists(),
            )
            .values(state=SearchState.RUNNING, finished_at=None)
        )
        if not changed(open_again):  # none of its trials failed, and its refit may have
            return refits.begin_again(connection, search_id, _NEW, state=TrialState.FAILED)
        for table in (SplitScore, Curve, TrialWarning, Report):
            connection.execute(delete(table).where(table.trial_id.in_(failed)))
        n_trials = connection.execute(
            update(Trial)
            .where(Trial.search_id == search_id, Trial.state == TrialState.FAILED)
            .values(state=TrialState.QUEUED, **_NEW)
        ).rowcount
        refits.hold_back(connection, search_id, _NEW)
        return n_trials


@retried
def open_again(database: Database, search_id: int) -> None:
    """Go on with a search that somebody submits once more: what was cancelled, or never ran, is to be evaluated.

    What is recorded stays, failed trials too (`retry_failed` is for those). A pause is over. A search that its
    ``search_timeout`` stopped, or is about to, gets that time once more. Whoever asks at the same time finds it done.
    """
    is_deleted = select(Search.id).where(Search.id == search_id, Search.deleted_at.is_not(None)).exists()
    mine = and_(Trial.search_id == search_id, ~is_deleted)
    may_change = select(Trial.id).where(mine, or_(Trial.state == TrialState.CANCELLED, Trial.state.in_(OPEN_STATES)))
    seconds = seconds_between(database.dialect, Search.started_at, now())
    is_over_time = or_(Search.error.is_not(None), seconds > Search.search_timeout)
    with database.write() as connection:
        # trials before their search, as a claim locks them; all in one order
        if database.dialect == "postgresql":
            connection.execute(may_change.order_by(Trial.id).with_for_update())
        connection.execute(
            update(Trial).where(mine, Trial.state == TrialState.QUEUED, IS_PAUSED).values(**NOT_PUBLISHED)
        )
        queued = connection.execute(
            update(Trial)
            .where(mine, Trial.state == TrialState.CANCELLED)
            .values(state=TrialState.QUEUED, **{**_NEW, "failures": Trial.failures})
        ).rowcount
        # their workers may have seen the request: they put them back then (`transitions.cancel`)
        kept = connection.execute(
            update(Trial)
            .where(mine, Trial.state == TrialState.RUNNING, Trial.cancel_requested)
            .values(cancel_requested=False)
        ).rowcount
        goes_on = or_(
            literal(bool(queued or kept)),
            Search.state == SearchState.CANCELLED,
            and_(Search.finished_at.is_(None), or_(Search.paused_at.is_not(None), is_over_time)),
            # stopped before all was proposed
            and_(Search.error.is_not(None), Search.n_asked < Search.n_trials, ~Search.is_exhausted),
        )
        opened = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.deleted_at.is_(None), goes_on)
            .values(
                state=case((Search.started_at.is_(None), SearchState.QUEUED), else_=SearchState.RUNNING),
                started_at=case((is_over_time, now()), else_=Search.started_at),
                finished_at=None,
                paused_at=None,
                error=None,
            )
        )
        if changed(opened):
            refits.hold_back(connection, search_id, _NEW)
        else:
            refits.begin_again(connection, search_id, _NEW, state=TrialState.CANCELLED)
    finish_search(database, search_id)


def overdue_searches(database: Database) -> list[int]:
    """List the searches that take longer than their ``search_timeout`` and were not stopped yet."""
    running_s = seconds_between(database.dialect, Search.started_at, now())
    with database.read() as connection:
        return list(
            connection.execute(
                select(Search.id).where(
                    Search.finished_at.is_(None),
                    Search.state == SearchState.RUNNING,
                    Search.error.is_(None),
                    running_s > Search.search_timeout,
                )
            ).scalars()
        )


@retried
def stop_search(database: Database, search_id: int) -> bool:
    """End a search whose time is over, with what is there: as a cancellation, but it counts as completed.

    Returns
    -------
    bool
        False if it was finished or stopped already.
    """
    with database.write() as connection:
        _cancel_trials(connection, search_id)
        limit_s = connection.execute(select(Search.search_timeout).where(Search.id == search_id)).scalar()
        stopped = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None), Search.error.is_(None))
            .values(error=f"{STOPPED}search_timeout={limit_s:g} s")
        )
        if not changed(stopped):
            connection.rollback()
            return False
    _cancel_late_proposals(database, search_id)
    finish_search(database, search_id)
    return True


# From the end of the index, where the trial is that was claimed last: PostgreSQL keeps what was queued and what ran
# before in the index for as long as anybody's snapshot is older, and whoever begins at the other end reads all of it at
# each record. A range of states and no list, for only then the index gives the order; no final state lies in it.
_OPEN_TRIAL = (
    select(Trial.state)
    .where(Trial.search_id == bindparam("wanted_id"), Trial.state.between(min(OPEN_STATES), max(OPEN_STATES)))
    .order_by(Trial.state.desc())
    .limit(1)
)
#: Whether nothing is proposed any more of a search: all that it asks for is there, or it was told to end.
NOTHING_TO_ASK = or_(
    Search.n_asked.is_(None),
    Search.n_asked >= Search.n_trials,
    Search.is_exhausted,
    Search.state == SearchState.CANCELLED,
    Search.error.is_not(None),
)
_LOCK_SEARCH = select(Search.id).where(Search.id == bindparam("wanted_id")).with_for_update()
_FINISH_SEARCH = (
    update(Search)
    .where(
        Search.id == bindparam("wanted_id"),
        Search.finished_at.is_(None),
        _OPEN_TRIAL.scalar_subquery().is_(None),
        NOTHING_TO_ASK,
    )
    .values(
        state=case((Search.state == SearchState.CANCELLED, SearchState.CANCELLED), else_=SearchState.COMPLETED),
        finished_at=now(),
    )
    .returning(Search.state)
)


def finish_search(database: Database, search_id: int) -> bool:
    """Finish a search if all its trials are final, and let its refit go; returns whether this call did it.

    One of which trials are still to be proposed is not finished.
    """
    # transactions of their own: of two workers that record the last two trials at once, each sees the
    # other's as open until both have committed
    with database.read() as connection:
        if connection.execute(_OPEN_TRIAL, {"wanted_id": search_id}).first() is not None:
            return False
    with database.write() as connection:
        # locked before it is looked at: a retry_failed that commits meanwhile would not be seen
        connection.execute(_LOCK_SEARCH, {"wanted_id": search_id})
        state = connection.execute(_FINISH_SEARCH, {"wanted_id": search_id}).scalar()
        if state is None:
            return False
        refits.begin_or_end(connection, search_id, state)
        events.note_end(connection, search_id)
        return True


def unfinished_searches(database: Database) -> list[int]:
    """List the searches that are not marked as finished."""
    with database.read() as connection:
        return list(connection.execute(select(Search.id).where(Search.finished_at.is_(None))).scalars())
