"""Each fleet has a name of its own, which all of its parts may read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import text

from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.settings import Settings
from tests.conftest import PostgresqlServer


def test_each_database_is_a_fleet_of_its_own(backend: str, empty_database_url: Callable[..., str]) -> None:
    def made() -> str:
        with closing(Database(Settings(database_url=empty_database_url(backend)))) as database:
            migrations.upgrade(database)
            first = fleet_id(database)
            assert not migrations.upgrade(database)
            assert fleet_id(database) == first
        return first

    first, second = made(), made()

    assert first != second
    assert first.isalnum()


def test_who_may_not_read_it_is_told_what_to_do(
    make_settings: Callable[..., Settings], postgresql_server: PostgresqlServer
) -> None:
    settings = make_settings("postgresql")
    with closing(Database(settings)) as owner, owner.write() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN"))
    try:
        url = settings.database().set(username="stranger").render_as_string(hide_password=False)
        with (
            closing(Database(settings.replace(database_url=url))) as database,
            pytest.raises(
                SettingsError,
                match=r'"stranger" may not read the table fleet_identity.*GRANT SELECT ON fleet_identity TO',
            ),
        ):
            fleet_id(database)
    finally:
        with closing(Database(settings)) as owner, owner.write() as connection:
            connection.execute(text("DROP ROLE stranger"))


def test_a_fleet_without_a_name_is_told_what_to_do(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("DELETE FROM fleet_identity"))

    with pytest.raises(SettingsError, match="the table fleet_identity is empty"):
        fleet_id(database)
