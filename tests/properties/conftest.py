"""Databases that do not wait for their disk."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import event

from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings


@pytest.fixture
def open_database(make_settings: Callable[..., Settings]) -> Iterator[Callable[[str], Database]]:
    """Open a database that does not wait for its disk."""
    opened: list[Database] = []

    def open_one(backend: str) -> Database:
        database = Database(make_settings(backend))
        if backend == "sqlite":
            event.listen(database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        database.close()
