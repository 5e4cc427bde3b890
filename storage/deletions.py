"""Removes a search that has ended: its trials batch by batch, its view, and the payloads that nobody else names.

The first transaction takes its name away and marks it, so that nobody finds it or opens it again; whoever is
interrupted goes on where it ended. A payload may go at any time when no search names it: who is about to store a search
locks what it names, and stores again what is gone (`PayloadStore.require_stored`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, delete, func, literal, or_, select, update
from sqlalchemy.exc import DBAPIError

from gridfleet.storage.database import sqlite
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import now
from gridfleet.storage.errors import SearchInUseError, SearchNotFoundError
from gridfleet.storage.params import Kind, column_kinds
from gridfleet.storage.schema import Base, BestModel, Payload, PayloadChunk, Search, SearchState, StoredText, Trial
from gridfleet.storage.search_views import drop_view, point_view, shown_search
from gridfleet.storage.searches import MAX_NAME, MAX_NUMBER, numbered_name

#: Trials that one transaction removes, with all that is theirs.
BATCH = 1_000
#: Days after which a payload that no search names was left by a script that was killed as it submitted.
LEFT_DAYS = 1
#: SQLSTATE of a view that others are made of.
OTHERS_DEPEND = "2BP01"
_NUMBERED = re.compile(r".+[-_](\d+)", re.DOTALL)


def _referring_to(target: Any, *, but: Collection[str] = ()) -> list[Column[Any]]:
    """Return the columns that refer to one, of whatever table, so that none of a later release is forgotten."""
    return [
        column
        for table in reversed(Base.metadata.sorted_tables)
        if table.name not in but
        for column in table.columns
        if any(key.column is target for key in column.foreign_keys)
    ]


_OF_TRIALS = [*_referring_to(BestModel.__table__.c.trial_id), *_referring_to(Trial.__table__.c.id)]
#: Without refits, which are searches: each is removed first, as any search.
_OF_SEARCHES = _referring_to(Search.__table__.c.id, but=("trials", "searches"))
#: All that names payloads.
NAMING_PAYLOADS = _referring_to(Payload.__table__.c.digest, but=("payload_chunks",))
#: All that names sources; other texts, which say what machines are and have, are few and stay.
NAMING_TEXTS = _referring_to(StoredText.__table__.c.digest)


@dataclass(frozen=True, slots=True)
class Removed:
    """What a deletion removed: trials, and payloads with their bytes."""

    n_trials: int
    n_payloads: int
    payload_bytes: int


def delete_search(database: Database, search_id: int) -> Removed:
    """Remove a search that has ended, its refit, and all that is theirs; SQLite gives room back by `give_back_room`.

    Parameters
    ----------
    database : Database
        The fleet's, as the tables' owner.
    search_id : int
        Its id.

    Returns
    -------
    Removed

    Raises
    ------
    SearchInUseError
        If trials of it are open, or its refit; or if in PostgreSQL somebody's view is made of its view. Nothing is
        removed then.
    SearchNotFoundError
        If there is none.
    """
    refit_id = _begin(database, search_id)
    of_refit = None if refit_id is None else delete_search(database, refit_id)
    n_trials = 0
    while n_removed := _remove_trials(database, search_id):
        n_trials += n_removed
    payloads, texts = _remove_search(database, search_id)
    removed = [size for digest in payloads if (size := _remove_payload(database, digest)) is not None]
    _remove_texts(database, texts)
    # a refit names the payloads of its search: these go with that one
    n_left = 0 if of_refit is None else of_refit.n_payloads
    n_bytes = 0 if of_refit is None else of_refit.payload_bytes
    return Removed(n_trials, len(removed) + n_left, sum(removed) + n_bytes)


def remove_what_was_left(database: Database) -> int:
    """Go on with deletions that were interrupted, and remove payloads that killed scripts left; returns their bytes."""
    begun = select(Search.id).where(Search.deleted_at.is_not(None))
    is_left = and_(Payload.kind != "key", Payload.created_at < now(-LEFT_DAYS * 86_400), ~_is_named())
    with database.read() as connection:
        search_ids = connection.execute(begun).scalars().all()
        digests = connection.execute(select(Payload.digest).where(is_left)).scalars().all()
    n_bytes = 0
    for search_id in search_ids:
        with suppress(SearchNotFoundError):  # a refit that went with its search
            n_bytes += delete_search(database, search_id).payload_bytes
    return n_bytes + sum(_remove_payload(database, digest) or 0 for digest in digests)


def give_back_room(database: Database, *, may_rewrite: bool) -> bool:
    """Let SQLite's file become smaller; PostgreSQL uses the room again by itself.

    Parameters
    ----------
    database : Database
        The fleet's.
    may_rewrite : bool
        Whether nobody else needs the file, so that one of an older release may be written anew.

    Returns
    -------
    bool
        False if the file stays as large as it is.
    """
    return database.dialect != "sqlite" or sqlite.give_back(database.engine, may_rewrite=may_rewrite)


@retried
def _begin(database: Database, search_id: int) -> int | None:
    """Take the name and the views of a search away, and mark it, in one transaction; returns the id of its refit."""
    columns = (Search.name, Search.state, Search.finished_at, Search.deleted_at)
    with database.write() as connection:
        row = connection.execute(select(*columns).where(Search.id == search_id).with_for_update()).one_or_none()
        if row is None:
            raise SearchNotFoundError(f"search {search_id} is not there any more: it was deleted")
        # after the search is locked: nobody opens its refit again from here on
        refit = connection.execute(
            select(Search.id, Search.finished_at).where(Search.refit_of == search_id)
        ).one_or_none()
        refit_id = None if refit is None else int(refit.id)
        if row.deleted_at is not None:  # by one that was interrupted
            return refit_id
        if row.finished_at is None:
            raise SearchInUseError(why_not_yet(row.name, row.state))
        if refit is not None and refit.finished_at is None:
            raise SearchInUseError(
                f"the best model of search {row.name!r} is still being fitted; wait for it, or cancel it first "
                f"(`gridfleet cancel {shlex.quote(row.name)}`)"
            )
        remove_views(connection, search_id, row.name)
        connection.execute(
            # no search can be called so
            update(Search).where(Search.id == search_id).values(deleted_at=now(), name=f"(deleted {search_id})")
        )
    return refit_id


def why_not_yet(name: str, state: str) -> str:
    """Say what to do with a search that has not ended before it can be deleted."""
    if state == SearchState.CANCELLED:
        return f"search {name!r} is cancelled, but trials of it still run; wait until their workers have noticed"
    return (
        f"search {name!r} is {state}, and a search is deleted when it has ended; cancel it first "
        f"(`gridfleet cancel {shlex.quote(name)}`), or wait"
    )


def remove_views(connection: Connection, search_id: int, name: str, *, keep_own: bool = False) -> None:
    """Remove the view of a search, and let the view of a name that was run again show the newest of the others.

    Parameters
    ----------
    connection : Connection
        A writing transaction.
    search_id : int
        Its id.
    name : str
        Its name, which it is going to lose.
    keep_own : bool, default=False
        Whether its own view stays as it is.

    Raises
    ------
    SearchInUseError
        If PostgreSQL refuses it, for somebody's view is made of that view.
    """
    for other in _earlier_names(connection, name):
        if shown_search(connection, other) == search_id and not _point_elsewhere(connection, search_id, other):
            raise SearchInUseError(
                f"the view {other!r} shows search {name!r}, and PostgreSQL does not let it show another one, as views "
                "of others are made of it; drop those first"
            )
    if keep_own:
        return
    try:
        drop_view(connection, name)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != OTHERS_DEPEND:
            raise
        raise SearchInUseError(
            f"views of others are made of the view {name!r} ({_detail(error)}); drop those first"
        ) from error


def _detail(error: DBAPIError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    return " ".join(str(getattr(diagnosis, "message_detail", "") or error.orig).split())


def _earlier_names(connection: Connection, name: str) -> list[str]:
    """Return the names of searches of which this may be a later run: ``pima`` for ``pima-2``."""
    if _NUMBERED.fullmatch(name) is None:
        return []
    begins = func.lower(func.substr(Search.name, 1, MAX_NAME - MAX_NUMBER))
    is_earlier = func.substr(literal(name.lower()), 1, func.length(begins)) == begins
    others = select(Search.name).where(is_earlier, func.lower(Search.name) != name.lower(), Search.deleted_at.is_(None))
    return list(connection.execute(others).scalars())


def _point_elsewhere(connection: Connection, search_id: int, first: str) -> bool:
    """Let the view of a name show the newest other search that was run under it."""
    others = select(Search.id, Search.name).where(
        Search.id != search_id,
        Search.deleted_at.is_(None),
        func.lower(Search.name).startswith(first[: MAX_NAME - MAX_NUMBER].lower(), autoescape=True),
    )
    rows = connection.execute(others.order_by(Search.id.desc())).all()
    newest = next((row for row in rows if _is_run_of(row.name, first)), None)
    if newest is None:  # its own search is gone
        return True
    return point_view(connection, newest.id, first, kinds_of(connection, newest.id))


def _is_run_of(name: str, first: str) -> bool:
    found = _NUMBERED.fullmatch(name)
    numbered = first if found is None else numbered_name(first, f"-{found[1]}")
    return name.lower() in (first.lower(), numbered.lower())


def kinds_of(connection: Connection, search_id: int) -> dict[str, Kind]:
    """Return the SQL types of a stored search's hyperparameters."""
    params = select(Trial.params).where(Trial.search_id == search_id).order_by(Trial.number)
    return column_kinds(connection.execute(params).scalars())


@retried
def _remove_trials(database: Database, search_id: int) -> int:
    """Remove some trials of a search that is marked, with all that refers to them; returns how many."""
    some = (
        select(Trial.id)
        .join(Search, Search.id == Trial.search_id)
        .where(Trial.search_id == search_id, Search.deleted_at.is_not(None))
        .order_by(Trial.id)
        .limit(BATCH)
    )
    with database.write() as connection:
        # in their order: whoever takes results of theirs for another search locks them so
        trial_ids = connection.execute(some.with_for_update(of=Trial)).scalars().all()
        for column in _OF_TRIALS:
            connection.execute(delete(column.table).where(column.in_(trial_ids)))
        connection.execute(delete(Trial).where(Trial.id.in_(trial_ids)))
    return len(trial_ids)


@retried
def _remove_search(database: Database, search_id: int) -> tuple[list[str], list[str]]:
    """Remove the row of a search without trials, and what refers to it; returns payloads and texts that it named."""
    with database.write() as connection:
        payloads = _named_by(connection, search_id, NAMING_PAYLOADS)
        texts = _named_by(connection, search_id, NAMING_TEXTS)
        for column in _OF_SEARCHES:
            connection.execute(delete(column.table).where(column == search_id))
        connection.execute(delete(Search).where(Search.id == search_id, Search.deleted_at.is_not(None)))
    return payloads, texts


def _named_by(connection: Connection, search_id: int, columns: Collection[Column[Any]]) -> list[str]:
    """Return the digests that a search and what refers to it name."""
    digests: set[str] = set()
    for column in columns:
        table = column.table
        own = table.c.id if table is Search.__table__ else table.c.get("search_id")
        if own is not None:
            digests.update(connection.execute(select(column).where(own == search_id, column.is_not(None))).scalars())
    return sorted(digests)


def _is_named(columns: Collection[Column[Any]] = tuple(NAMING_PAYLOADS), digest: Any = Payload.digest) -> Any:
    conditions: list[ColumnElement[bool]] = [select(column).where(column == digest).exists() for column in columns]
    return or_(*conditions)


@retried
def _remove_payload(database: Database, digest: str) -> int | None:
    """Remove a payload unless something names it; returns its bytes, None if it stays."""
    with database.write() as connection:
        # locked first, and looked at by a later statement: a search that is being stored holds it until its commit
        of_digest = select(Payload.size).where(Payload.digest == digest, Payload.kind != "key")
        size: int | None = connection.execute(of_digest.with_for_update()).scalar()
        if size is None or connection.execute(select(_is_named(digest=literal(digest)))).scalar():
            return None
        connection.execute(delete(PayloadChunk).where(PayloadChunk.digest == digest))
        connection.execute(delete(Payload).where(Payload.digest == digest))
    return size


@retried
def _remove_texts(database: Database, digests: Collection[str]) -> None:
    """Remove texts that nothing names any more, as `_remove_payload`."""
    if not digests:
        return
    wanted = StoredText.digest.in_(digests)
    with database.write() as connection:
        connection.execute(select(StoredText.digest).where(wanted).order_by(StoredText.digest).with_for_update())
        connection.execute(delete(StoredText).where(wanted, ~_is_named(NAMING_TEXTS, StoredText.digest)))
