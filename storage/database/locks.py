"""Work that one process of all does at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from gridfleet.storage.database.connection import Database


@contextmanager
def alone(database: Database, key: int) -> Iterator[bool]:
    """Hold an advisory lock of PostgreSQL, and say whether this process got it.

    Parameters
    ----------
    database : Database
        The fleet's. SQLite has no such locks: there each process that asks may work.
    key : int
        Which work.
    """
    if database.dialect == "sqlite":
        yield True
        return
    with database.read() as connection:
        yield bool(connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar())
