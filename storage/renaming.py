"""Gives a search another name: its views follow, and it is signed anew, for its name is in its signature."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.deletions import kinds_of, remove_views
from gridfleet.storage.errors import NameTakenError, SearchNotFoundError
from gridfleet.storage.schema import Search
from gridfleet.storage.search_views import rename_view
from gridfleet.storage.searches import SIGNED_COLUMNS, check_signature, sign_search
from gridfleet.storage.signer import Signer, Verifier


def rename_search(database: Database, search_id: int, name: str, *, signer: Signer) -> None:
    """Give a search another name. Trials of it may run meanwhile: each was claimed under a name and its signature.

    Parameters
    ----------
    database : Database
        The fleet's, as the tables' owner.
    search_id : int
        Its id.
    name : str
        The name from now on, one that a search can have.
    signer : Signer
        With the fleet's secret key.

    Raises
    ------
    NameTakenError
        If another search has it.
    PayloadSignatureError
        If the search is not what was submitted: it gets no new signature.
    SearchInUseError
        If in PostgreSQL a view that showed it can't show another one instead.
    SearchNotFoundError
        If there is none.
    """
    try:
        _rename(database, search_id, name, signer)
    except IntegrityError as error:
        with database.read() as connection:
            taken = connection.execute(select(Search.id).where(func.lower(Search.name) == name.lower())).scalar()
        if taken is None:
            raise
        raise NameTakenError(f"the name {name!r} is taken by search {taken}; choose another") from error


@retried
def _rename(database: Database, search_id: int, name: str, signer: Signer) -> None:
    columns = (getattr(Search, column) for column in (*SIGNED_COLUMNS, "signature"))
    of_search = select(*columns).where(Search.id == search_id, Search.deleted_at.is_(None))
    with database.write() as connection:
        row = connection.execute(of_search.with_for_update()).one_or_none()
        if row is None:
            raise SearchNotFoundError(f"search {search_id} is not there any more: it was deleted")
        facts = dict(row._mapping)
        # first: whoever wrote the table could have anything signed by having it renamed
        check_signature(Verifier(signer.public_key), search_id, facts)
        signature = sign_search(signer, search_id, {**facts, "name": name})
        connection.execute(update(Search).where(Search.id == search_id).values(name=name, signature=signature))
        remove_views(connection, search_id, facts["name"], keep_own=True)
        rename_view(connection, search_id, facts["name"], name, lambda: kinds_of(connection, search_id))
