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


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("/dev/sda / ext4 rw 0 0\nhost:/x /data\\040of\\040all nfs4 rw 0 0\n", "nfs4"),
        ("/dev/sda / ext4 rw 0 0\nhost:/x /data\\040of nfs4 rw 0 0\n", "ext4"),
        (
            "tmpfs /data\\040of\\040all tmpfs rw 0 0\ns3 /data\\040of\\040all fuse.s3fs rw 0 0\n",
            "fuse.s3fs",
        ),
    ],
    ids=["a name with spaces", "another name with spaces", "the later one covers the other"],
)
def test_the_file_system_of_a_mount_point_is_found(tmp_path: Path, lines: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(lines)

    assert sqlite._file_system(Path("/data of all/searches"), mounts) == kind


@pytest.mark.parametrize("kind", ["virtiofs", "fuse.gcsfuse", "fuse.s3fs", "gpfs", "beegfs", "afs", "vboxsf"])
def test_sqlite_is_refused_where_it_is_known_not_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sqlite, "_file_system", lambda folder: kind)

    with pytest.raises(SettingsError, match=kind):
        Database(Settings(database_url=f"sqlite:///{tmp_path / 'a.db'}"))


def test_an_unknown_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_file_system", lambda folder: "fuse.of-tomorrow")

    with pytest.warns(UserWarning, match=r"does not know \(fuse\.of-tomorrow\)"):
        Database(Settings(database_url=f"sqlite:///{tmp_path / 'a.db'}")).close()
