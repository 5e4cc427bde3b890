"""The best models of searches in SQL: written by the worker that holds the refit, signed with the workers' key."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, text

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadError, PayloadSignatureError
from gridfleet.storage.payloads.contents import chunks, read_chunks
from gridfleet.storage.payloads.digest import digest_of
from gridfleet.storage.schema import BestModel, BestModelChunk
from gridfleet.storage.signer import Signer, Verifier
from gridfleet.storage.trial_results import ModelResult
from gridfleet.storage.versions import installed_versions

#: What a signature of a model begins with.
SIGNED_AS = "model"


def sign(signer: Signer, search_id: int, trial_id: int, *, number: int, digest: str, size: int) -> str:
    """Return the signature of a model.

    Parameters
    ----------
    signer : Signer
        With the workers' key.
    search_id, trial_id : int
        The refit and its trial: a model of one search is none of another.
    number : int
        The trial of the search whose hyperparameters it has.
    digest, size
        Of its content.
    """
    return signer.sign(SIGNED_AS, search_id, trial_id, number, digest, size)


def insert_model(connection: Connection, trial_id: int, model: ModelResult) -> None:
    """Write a model, in the transaction that records the refit."""
    row = {"number": model.number, "digest": model.digest, "size": model.size, "signature": model.signature}
    connection.execute(insert(BestModel).values(trial_id=trial_id, **row, **installed_versions()))
    for position, chunk in enumerate(chunks(model.content)):
        connection.execute(insert(BestModelChunk).values(trial_id=trial_id, position=position, content=chunk))


def may_insert(database: Database) -> bool:
    """Whether this process's role may store models, which roles of before 0018 may not."""
    if database.dialect == "sqlite":
        return True
    with database.read() as connection:
        asked = text("SELECT has_table_privilege('best_models', 'INSERT')")
        return bool(connection.execute(asked).scalar_one())


def read_model(database: Database, verifier: Verifier, search_id: int, trial_id: int) -> tuple[Row[Any], memoryview]:
    """Return a model's row and content, whose signature and digest hold.

    Parameters
    ----------
    database : Database
        The fleet's.
    verifier : Verifier
        With what checks the workers' signatures, as the refit's own signature binds it.
    search_id, trial_id : int
        The refit and its trial.

    Raises
    ------
    PayloadError
        If it is not there.
    PayloadSignatureError
        If no worker of the fleet signed it for this refit, or it was changed since. Not more of it is read than was
        signed.
    """
    with database.read() as connection:
        columns = BestModel.__table__.columns
        model = connection.execute(select(*columns).where(BestModel.trial_id == trial_id)).one_or_none()
        if model is None:
            raise PayloadError("the best model is not in the database any more")
        facts = (search_id, trial_id, model.number, model.digest, model.size)
        if not verifier.is_signed(model.signature, SIGNED_AS, *facts):
            raise PayloadSignatureError(
                "the best model was not signed with the fleet's worker key, or was changed since; it is not loaded"
            )
        content = bytearray()
        for part in read_chunks(connection, BestModelChunk, BestModelChunk.trial_id == trial_id, model.size):
            content += part
    if len(content) != model.size or digest_of([memoryview(content)]) != model.digest:
        raise PayloadSignatureError("the best model is damaged: its content has another digest; it is not loaded")
    return model, memoryview(content)
