"""A search with another name: its view, its signature, and who may not have either."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import select, text, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NameTakenError, PayloadSignatureError, SearchNotFoundError
from gridfleet.storage.renaming import rename_search
from gridfleet.storage.schema import Search
from gridfleet.storage.search_views import create_search_view, point_view, shown_search
from gridfleet.storage.searches import check_signature
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests.storage.conftest import StoredSearch, result_of, store_search
from tests.stored_searches import switch_triggers_off


@pytest.fixture
def signer(database_settings: Settings) -> Signer:
    return database_settings.signer()


@pytest.fixture
def pima(database: Database, signer: Signer) -> StoredSearch:
    return stored(database, signer, "pima")


def stored(database: Database, signer: Signer, name: str) -> StoredSearch:
    search = store_search(database, 2, name=name, signer=signer)
    with database.write() as connection:
        create_search_view(connection, search.id, name, {"units": "bigint"})
    return search


def query(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def shown(database: Database, name: str) -> int | None:
    with database.read() as connection:
        return shown_search(connection, name)


def test_the_view_follows_and_the_signature_holds(
    pima: StoredSearch, signer: Signer, database_settings: Settings
) -> None:
    rename_search(pima.database, pima.id, "pima.first", signer=signer)

    row = pima.row()
    assert row.name == "pima.first"
    check_signature(database_settings.verifier(), pima.id, row._mapping)
    assert query(pima.database, 'SELECT number, units FROM "pima.first" ORDER BY number') == [(0, 0), (1, 1)]
    assert shown(pima.database, "pima") is None


def test_a_search_that_runs_or_has_ended_may_be_renamed(pima: StoredSearch, signer: Signer) -> None:
    before = pima.claim(0)
    rename_search(pima.database, pima.id, "Pima", signer=signer)  # in other letters
    after = pima.claim(1)

    assert before is not None
    assert after is not None
    for claim, name in ((before, "pima"), (after, "Pima")):  # each has the signature of its name
        assert claim.name == name
        assert transitions.record(pima.database, Held(claim.trial_id, claim.token), result_of(0.5))
    assert before.signature != after.signature
    assert pima.row().state == "completed"
    rename_search(pima.database, pima.id, "done", signer=signer)
    assert query(pima.database, "SELECT count(*) FROM done WHERE state = 'completed'") == [(2,)]


def test_a_name_that_is_taken_changes_nothing(pima: StoredSearch, signer: Signer) -> None:
    other = stored(pima.database, signer, "Other")

    with pytest.raises(NameTakenError, match=rf"'OTHER' is taken by search {other.id}; choose another"):
        rename_search(pima.database, pima.id, "OTHER", signer=signer)

    assert pima.row().name == "pima"
    assert (shown(pima.database, "pima"), shown(pima.database, "Other")) == (pima.id, other.id)


def test_what_was_changed_since_it_was_submitted_gets_no_new_signature(pima: StoredSearch, signer: Signer) -> None:
    with pima.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == pima.id).values(strategy="Another"))

    with pytest.raises(PayloadSignatureError, match="was changed after it was submitted"):
        rename_search(pima.database, pima.id, "mine", signer=signer)

    assert pima.row().name == "pima"


def test_a_search_that_is_not_there_is_said(database: Database, signer: Signer) -> None:
    with pytest.raises(SearchNotFoundError, match="search 7 is not there"):
        rename_search(database, 7, "mine", signer=signer)


def test_the_view_of_a_name_that_was_run_again_shows_the_run_before(
    pima: StoredSearch, signer: Signer, database: Database
) -> None:
    second = stored(database, signer, "pima-2")
    with database.write() as connection:
        point_view(connection, second.id, "pima", {"units": "bigint"})

    rename_search(database, second.id, "kept", signer=signer)

    assert (shown(database, "pima"), shown(database, "pima-2"), shown(database, "kept")) == (pima.id, None, second.id)


def test_in_postgresql_views_of_others_and_rights_stay(make_settings: Any) -> None:
    settings = make_settings("postgresql")
    with closing(Database(settings)) as database:
        search = stored(database, settings.signer(), "pima")
        with database.write() as connection:
            connection.execute(text("CREATE VIEW mine AS SELECT units FROM pima"))
            connection.execute(text("GRANT SELECT ON pima TO PUBLIC"))

        rename_search(database, search.id, "per%cent", signer=settings.signer())

        assert query(database, "SELECT units FROM mine ORDER BY 1") == [(0,), (1,)]
        with database.read() as connection:
            rights = select(text("relacl::text")).select_from(text("pg_class")).where(text("relname = 'per%cent'"))
            assert "=r/" in connection.execute(rights).scalar_one()
