"""Signs all that a fleet stored with a new secret key, in one transaction: at any moment one key is the fleet's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, text, update

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadSignatureError, RekeyError
from gridfleet.storage.payloads.store import SIGNED_AS
from gridfleet.storage.schema import Payload, Search, Worker
from gridfleet.storage.searches import SIGNED_COLUMNS, check_signature, sign_search
from gridfleet.storage.settings import PREFIX
from gridfleet.storage.signer import Signer, Verifier
from gridfleet.storage.urls import without_secrets

#: Seconds since which no worker process may have been seen.
QUIET_S = 60
#: Rows that are read, and signed, at once.
AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """How many payloads and searches were signed anew, and how many are signed with neither key and stay so."""

    n_payloads: int
    n_searches: int
    n_left: int


def rekey(database: Database, old: Signer, new: Signer, *, model_key: str | None = None) -> Rekeyed:
    """Sign all payloads and searches with a new key that the old one signed; what nobody signed is not signed.

    It happens in one transaction, so that whoever is interrupted begins anew, and whoever is done finds nothing to do.

    Parameters
    ----------
    database : Database
        Of a fleet of which no worker runs, as the tables' owner.
    old, new : Signer
        With the secret key of before, and the one from now on.
    model_key : str, optional
        What checks the signatures of workers from now on, for refits that have not ended; the models that are there
        keep theirs. None: no refit waits.

    Returns
    -------
    Rekeyed

    Raises
    ------
    RekeyError
        If a worker runs, which has the public key of before; or if neither key is the fleet's.
    """
    with database.write() as connection:
        if connection.dialect.name == "postgresql":  # nobody signs with the old key meanwhile
            connection.execute(text("LOCK TABLE payloads, searches IN SHARE ROW EXCLUSIVE MODE"))
        _refuse_use(connection, database)
        n_payloads, n_left = _sign_payloads(connection, old, new)
        n_searches, n_more_left = _sign_searches(connection, old, new, model_key)
    return Rekeyed(n_payloads, n_searches, n_left + n_more_left)


def _refuse_use(connection: Connection, database: Database) -> None:
    lives = workers.was_seen(QUIET_S)
    n_workers = connection.execute(select(func.count()).select_from(Worker).where(lives)).scalar_one()
    if n_workers:
        raise RekeyError(
            f"a fleet runs on {without_secrets(database.url)}: {n_workers} worker processes were seen in the last "
            f"{QUIET_S} s, and they have the public key of before; stop the workers first (`gridfleet drain --all`)"
        )


def _sign_payloads(connection: Connection, old: Signer, new: Signer) -> tuple[int, int]:
    """Sign payloads, the row among them by which processes know the fleet's key; returns how many, and how many not."""
    was, is_now = Verifier(old.public_key), Verifier(new.public_key)
    columns = (Payload.digest, Payload.kind, Payload.size, Payload.signature)
    change = update(Payload).where(Payload.digest == bindparam("of")).values(signature=bindparam("new_signature"))
    n_signed = n_left = 0
    for rows in _by_key(connection, columns, Payload.digest):
        changes = []
        for row in rows:
            facts = (SIGNED_AS, row.kind, row.digest, row.size)
            if was.is_signed(row.signature, *facts):
                changes.append({"of": row.digest, "new_signature": new.sign(*facts)})
            elif is_now.is_signed(row.signature, *facts):
                continue
            elif row.kind == "key":
                raise RekeyError(
                    f"neither {PREFIX}SECRET_KEY nor {PREFIX}NEW_SECRET_KEY is the key that signed what is stored; "
                    f"{PREFIX}SECRET_KEY has to be that one"
                )
            else:
                n_left += 1
        if changes:
            connection.execute(change, changes)
        n_signed += len(changes)
    return n_signed, n_left


def _sign_searches(connection: Connection, old: Signer, new: Signer, model_key: str | None) -> tuple[int, int]:
    """Sign searches; returns how many, and how many not."""
    was, is_now = Verifier(old.public_key), Verifier(new.public_key)
    of_refits = ("refit_of", "model_key", "finished_at")
    columns = [getattr(Search, column) for column in ("id", "signature", *of_refits, *SIGNED_COLUMNS)]
    change = (
        update(Search)
        .where(Search.id == bindparam("of"))
        .values(signature=bindparam("new_signature"), model_key=bindparam("new_model_key"))
    )
    n_signed = n_left = 0
    for rows in _by_key(connection, columns, Search.id, Search.deleted_at.is_(None)):
        changes = []
        for row in rows:
            if _is_signed(was, row):
                facts = dict(row._mapping)
                if row.refit_of is not None and row.finished_at is None and model_key is not None:
                    facts["model_key"] = model_key
                signed = sign_search(new, row.id, facts)
                changes.append({"of": row.id, "new_signature": signed, "new_model_key": facts["model_key"]})
            elif not _is_signed(is_now, row):
                n_left += 1
        if changes:
            connection.execute(change, changes)
        n_signed += len(changes)
    return n_signed, n_left


def _is_signed(verifier: Verifier, row: Any) -> bool:
    try:
        check_signature(verifier, row.id, row._mapping)
    except PayloadSignatureError:
        return False
    return True


def _by_key(connection: Connection, columns: Any, key: Any, *conditions: Any) -> Iterator[Any]:
    """Read rows in the order of their key, some at a time: they are changed in between."""
    after = None
    while True:
        query = select(*columns).where(*conditions).order_by(key).limit(AT_ONCE)
        rows = connection.execute(query if after is None else query.where(key > after)).all()
        if not rows:
            return
        yield rows
        after = getattr(rows[-1], key.key)
