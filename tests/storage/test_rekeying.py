"""Another secret key for all that a fleet stored, from whatever point on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from gridfleet.storage import rekeying, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadSignatureError, RekeyError, SettingsError
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.rekeying import Rekeyed, rekey
from gridfleet.storage.schema import Payload, Search
from gridfleet.storage.searches import check_signature
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trials import transitions
from tests.storage.conftest import StoredSearch, count, result_of, store_search
from tests.stored_searches import switch_triggers_off

NEW_KEY = "the key from now on"


@pytest.fixture
def old(database_settings: Settings) -> Signer:
    return database_settings.signer()


@pytest.fixture
def new(database_settings: Settings) -> Signer:
    return database_settings.replace(new_secret_key=SecretStr(NEW_KEY)).new_signer()


@pytest.fixture
def pima(database: Database, store: PayloadStore, old: Signer) -> StoredSearch:
    """Store three payloads, the key's row, and a search that runs."""
    for number in range(3):
        store.put("X", [number], what="X")
    search = store_search(database, 1, name="pima", signer=old)
    with database.write() as connection:  # what older releases left
        connection.execute(update(Payload).where(Payload.kind == "none").values(signature="0" * 64))
    return search


def test_all_is_readable_with_the_new_key_and_nothing_with_the_old_one(
    pima: StoredSearch, old: Signer, new: Signer, another_store: Any, database_settings: Settings
) -> None:
    assert rekey(pima.database, old, new) == Rekeyed(n_payloads=4, n_searches=1, n_left=1)

    renewed = another_store(secret_key=SecretStr(NEW_KEY))
    renewed.check_key()
    with pima.database.read() as connection:
        digests = connection.execute(select(Payload.digest).where(Payload.kind == "X")).scalars().all()
    assert sorted(renewed.get("X", digest) for digest in digests) == [[0], [1], [2]]
    check_signature(database_settings.replace(secret_key=SecretStr(NEW_KEY)).verifier(), pima.id, pima.row()._mapping)
    with pytest.raises(PayloadSignatureError, match="not signed with this process's key"):
        another_store().check_key()


def test_whoever_is_interrupted_changed_nothing_and_begins_anew(
    pima: StoredSearch, old: Signer, new: Signer, another_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekeying, "AT_ONCE", 2)
    with monkeypatch.context() as killed:

        def kill(*_: Any) -> Any:
            raise KeyboardInterrupt

        killed.setattr(rekeying, "_sign_searches", kill)
        with pytest.raises(KeyboardInterrupt):
            rekey(pima.database, old, new)
    another_store().check_key()

    assert rekey(pima.database, old, new) == Rekeyed(n_payloads=4, n_searches=1, n_left=1)
    assert rekey(pima.database, old, new) == Rekeyed(n_payloads=0, n_searches=0, n_left=1)  # and once more
    another_store(secret_key=SecretStr(NEW_KEY)).check_key()


def test_what_the_old_key_did_not_sign_is_not_signed_by_the_new_one(
    pima: StoredSearch, old: Signer, new: Signer, database_settings: Settings
) -> None:
    with pima.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == pima.id).values(strategy="Another"))
        connection.execute(update(Payload).where(Payload.kind == "X").values(size=7))

    assert rekey(pima.database, old, new) == Rekeyed(n_payloads=1, n_searches=0, n_left=5)
    with pytest.raises(PayloadSignatureError):
        check_signature(
            database_settings.replace(secret_key=SecretStr(NEW_KEY)).verifier(), pima.id, pima.row()._mapping
        )


def test_a_fleet_that_runs_is_refused(pima: StoredSearch, old: Signer, new: Signer, another_store: Any) -> None:
    workers.register(pima.database, "node/1", hostname="host", pid=1)

    with pytest.raises(RekeyError, match=r"1 worker processes were seen in the last 60 s.*stop the workers first"):
        rekey(pima.database, old, new)

    another_store().check_key()
    workers.note_ended(pima.database, None)
    assert rekey(pima.database, old, new).n_searches == 1


def test_a_key_that_is_not_the_fleet_s_is_refused(pima: StoredSearch, new: Signer, another_store: Any) -> None:
    with pytest.raises(RekeyError, match=r"neither GRIDFLEET_SECRET_KEY nor GRIDFLEET_NEW_SECRET_KEY is the key"):
        rekey(pima.database, Signer(b"of another fleet"), new)

    another_store().check_key()


def test_a_search_that_has_ended_is_signed_too(database: Database, old: Signer, new: Signer) -> None:
    search = store_search(database, 1, signer=old)
    transitions.record(database, search.held(), result_of(0.5))

    assert rekey(database, old, new).n_searches == 1
    assert count(database, Payload) == 1


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (None, "GRIDFLEET_NEW_SECRET_KEY is not set; put the fleet's key from now on there"),
        ("short", "GRIDFLEET_NEW_SECRET_KEY has 5 characters; it needs at least 16"),
        ("the secret key that is", "GRIDFLEET_NEW_SECRET_KEY is the same as GRIDFLEET_SECRET_KEY; take another one"),
    ],
)
def test_a_new_key_that_is_none_is_refused_in_a_sentence(key: str | None, sentence: str) -> None:
    settings = Settings(secret_key="the secret key that is", new_secret_key=key)

    with pytest.raises(SettingsError, match=sentence):
        settings.new_signer()


def test_no_worker_gets_the_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDFLEET_new_secret_KEY", NEW_KEY)
    settings = Settings(secret_key="the secret key that is", new_secret_key=NEW_KEY)

    assert NEW_KEY not in settings.worker_environment().values()
    assert NEW_KEY not in repr(settings)
