"""SQLite's folder, durability and readers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from gridfleet.storage.database import sqlite
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import Settings
from tests.storage.conftest import store_search


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"GRIDFLEET_DATABASE_URL: the folder {tmp_path / 'missing'} does not"):
        Database(Settings(database_url=f"sqlite:///{tmp_path / 'missing' / 'a.db'}"))


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_file_system", lambda folder: "nfs4")

    with pytest.raises(SettingsError, match=r"network file system \(nfs4\).*PostgreSQL"):
        Database(Settings(database_url=f"sqlite:///{tmp_path / 'a.db'}"))


def test_the_file_system_of_a_folder_is_found() -> None:
    assert sqlite._file_system(Path("/proc/self")) == "proc"


def test_sqlite_is_durable_and_readers_do_not_wait(make_settings: Callable[..., Settings]) -> None:
    with closing(Database(make_settings("sqlite"))) as database:
        search = store_search(database, 1)
        with database.write() as connection:
            connection.execute(text("UPDATE trials SET attempt = 7"))
            assert search.trial().attempt == 0  # read on another connection, while the writer holds the lock
        assert search.trial().attempt == 7
        with database.read() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
