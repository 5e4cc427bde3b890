"""The commands that keep house: tag, rename, delete, db size, rekey."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchInUseError, SearchNotFoundError
from gridfleet.storage.schema import Search
from gridfleet.storage.settings import Settings
from tests.storage.conftest import ago
from tests.storage.conftest import store_search as store_signed_search
from tests.stored_searches import store_search, switch_triggers_off

Gridfleet = Callable[..., tuple[int, str, str]]


def names(database: Database) -> list[str]:
    return [search.name for search in reader.list_searches(database, limit=None)]


def test_tags_are_set_shown_and_removed(gridfleet: Gridfleet, database: Database, pima: int) -> None:
    assert gridfleet("tag", "pima")[:2] == (0, "search pima has no tags\n")
    assert (
        gridfleet("tag", "PIMA", "model=mlp", "dataset=pima")[1] == "search pima has the tags dataset=pima model=mlp\n"
    )
    _, shown, _ = gridfleet(
        "list", "--wide", "--tag", "dataset=pima", "--tag", "model", "--state", "completed", "--by", "ada"
    )
    assert shown.splitlines()[0].split()[-1] == "tags"
    assert shown.splitlines()[1].rstrip().endswith("dataset=pima model=mlp")
    assert gridfleet("tag", "pima", "model=", "dataset=")[1] == "search pima has no tags\n"
    assert gridfleet("list", "--tag", "dataset")[1] == "there is no such search\n"
    assert "tags" not in gridfleet("list")[1]
    _, rows, _ = gridfleet("sql", "SELECT count(*) AS n FROM tags", "--csv")
    assert rows == "n\n0\n"


@pytest.mark.parametrize("wrong", ["dataset", "=pima", "a b=c", "a\x1bb=c"])
def test_what_is_no_tag_is_wrong_usage(gridfleet: Gridfleet, pima: int, wrong: str) -> None:
    status, _, said = gridfleet("tag", "pima", "model=mlp", wrong)

    assert status == 2
    assert "is no tag; write KEY=VALUE" in said
    assert gridfleet("tag", "pima")[1] == "search pima has no tags\n"


def test_a_search_gets_another_name(gridfleet: Gridfleet, database: Database, fleet: Settings) -> None:
    store_signed_search(database, 1, name="first", signer=fleet.signer())

    assert gridfleet("rename", "first", "pima.first")[:2] == (0, "search first is called pima.first now\n")

    assert names(database) == ["pima.first"]
    for wrong, sentence in (("trials", "is a name of gridfleet's own"), ("1st", "can't be a search's name")):
        status, _, said = gridfleet("rename", "pima.first", wrong)
        assert (status, said.count("\n")) == (1, 1)
        assert sentence in said


def test_a_deletion_shows_what_would_go_and_needs_a_yes(gridfleet: Gridfleet, database: Database, pima: int) -> None:
    status, shown, said = gridfleet("delete", "pima")  # nobody is at a terminal

    assert status == 1
    assert shown.split()[:2] == ["search", "state"]
    assert "pima" in shown
    assert "1 search with 5 trials would be removed for good; nobody can be asked here, so --yes" in said
    assert names(database) == ["pima"]

    assert gridfleet("delete", "pima", "pima", "--yes")[1].splitlines()[-1].startswith("1 search with 5 trials removed")
    assert names(database) == []
    assert gridfleet("sql", "SELECT count(*) AS n FROM payloads WHERE kind <> 'key'", "--csv")[1] == "n\n0\n"


@pytest.mark.parametrize(("answer", "is_left"), [("n", True), pytest.param("y", False, marks=pytest.mark.complete)])
def test_who_is_at_a_terminal_is_asked(database: Database, pima: int, answer: str, is_left: bool) -> None:
    controller, terminal = pty.openpty()
    os.write(controller, f"{answer}\n".encode())
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "gridfleet", "delete", "pima"], stdin=terminal, capture_output=True, text=True
    )
    os.close(controller)
    os.close(terminal)

    assert "Remove 1 search with 5 trials for good? [y/N]" in asked.stderr
    assert (names(database) == ["pima"]) is is_left
    assert asked.returncode == (1 if is_left else 0)


def test_of_searches_one_of_which_runs_none_goes(
    gridfleet: Gridfleet, database: Database, pima: int, fleet: Settings
) -> None:
    store_search(fleet, database, "new", [{"C": 1}])

    status, shown, said = gridfleet("delete", "pima", "new", "--yes")

    assert (status, shown) == (1, "")
    assert "search 'new' is queued, and a search is deleted when it has ended; cancel it first" in said
    assert names(database) == ["new", "pima"]


def test_old_searches_go_by_their_age_and_state(gridfleet: Gridfleet, database: Database, fleet: Settings) -> None:
    for name in ("old", "young", "called off", "open"):
        store_search(fleet, database, name, [{"C": 1}])
        if name != "open":
            gridfleet("cancel", name)
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.name.in_(("old", "called off"))).values(finished_at=ago(9_000)))
        connection.execute(update(Search).where(Search.name == "old").values(state="completed"))

    assert gridfleet("delete", "--older-than", "3h", "--yes")[1] == "no search ended so long ago\n"
    gridfleet("delete", "--older-than", "2h", "--state", "failed", "--yes")
    assert names(database) == ["open", "called off", "young"]
    gridfleet("delete", "--older-than", "2h", "--yes")
    assert names(database) == ["open", "young"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name searches, or say --older-than"),
        (("pima", "--older-than", "90d"), "name searches, or say --older-than"),
        (("pima", "--state", "completed"), "--state goes with --older-than"),
        (("--older-than", "soon"), "'soon' is no age; write a number with m, h, d or w, as in 90d"),
        (("--older-than", "-1d"), "is no age"),
    ],
)
def test_wrong_usage_removes_nothing(
    gridfleet: Gridfleet, database: Database, pima: int, arguments: tuple[str, ...], sentence: str
) -> None:
    status, _, said = gridfleet("delete", *arguments, "--yes")

    assert status == 2
    assert sentence in " ".join(said.replace("│", " ").split())
    assert names(database) == ["pima"]


def test_a_handle_deletes_its_search_and_then_says_that_it_is_gone(
    database: Database, pima: int, fleet: Settings
) -> None:
    from gridfleet.scheduler.fleet.connection import read_only

    connected = read_only()
    handle = SearchHandle(connected, pima, "pima")
    handle.delete()

    with pytest.raises(SearchNotFoundError, match=f"search {pima} is not there any more: it was deleted"):
        handle.progress()
    with pytest.raises(SearchNotFoundError, match=f"no search has the id {pima}; there are none yet"):
        _ = handle.state
    running = SearchHandle(connected, store_search(fleet, database, "new", [{"C": 1}]), "new")
    with pytest.raises(SearchInUseError, match="cancel it first"):
        running.delete()


def test_the_size_of_the_database_is_told_by_search(gridfleet: Gridfleet, pima: int, database: Database) -> None:
    _, shown, _ = gridfleet("db", "size")
    told = json.loads(gridfleet("db", "size", "--json")[1])

    header, row, whole = shown.splitlines()
    assert header.split()[:6] == ["search", "state", "payloads", "its", "own", "curves"]
    assert row.split()[:2] == ["pima", "completed"]
    assert whole.startswith("the database has ")
    assert [search["name"] for search in told["searches"]] == ["pima"]
    assert told["searches"][0]["freed"] >= told["searches"][0]["curves"] > 0


def test_all_is_signed_with_a_new_key(
    gridfleet: Gridfleet, database: Database, fleet: Settings, pima: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gridfleet("rekey")[0] == 1
    assert "GRIDFLEET_NEW_SECRET_KEY is not set" in gridfleet("rekey")[2]
    monkeypatch.setenv("GRIDFLEET_NEW_SECRET_KEY", "the key from now on")
    assert "worker processes were seen in the last 60 s" in gridfleet("rekey")[2]
    workers.note_ended(database, None)

    status, shown, said = gridfleet("rekey")

    assert status == 0
    assert shown.startswith("6 payloads and 0 searches are signed with the new key\nnow give GRIDFLEET_SECRET_KEY")
    assert "GRIDFLEET_PUBLIC_KEY=ed25519:" in shown
    assert "the key from now on" not in shown + said
    assert "1 of them were signed by an older release" in said  # the search pima, whose payloads were
    assert "WRONG keys" in gridfleet("doctor")[1]
    monkeypatch.setenv("GRIDFLEET_SECRET_KEY", "the key from now on")
    monkeypatch.delenv("GRIDFLEET_NEW_SECRET_KEY")
    assert "ok    keys" in gridfleet("doctor")[1]


@pytest.fixture
def folder(embedded_home: Path) -> Any:
    """Make the folder of a fleet with a signed search, as a fleet leaves it that was stopped."""
    from gridfleet.scheduler.fleet.local.folder import Folder
    from gridfleet.storage import migrations
    from gridfleet.storage.settings import load_settings

    made = Folder(embedded_home / ".gridfleet")
    made.prepare()
    made.make_database()
    settings = made.settings(load_settings(), None)
    database = Database(settings)
    migrations.upgrade(database)
    store_signed_search(database, 1, name="first", signer=settings.signer())
    database.close()
    return made


def test_the_fleet_of_a_folder_makes_its_new_key_itself(gridfleet: Gridfleet, folder: Any) -> None:
    before = folder.key.read_text()

    status, shown, _ = gridfleet("rekey")

    assert (status, shown) == (0, "0 payloads and 1 search are signed with the new key\n")
    assert folder.key.read_text() != before
    assert not folder.new_key.exists()
    assert folder.key.stat().st_mode & 0o777 == 0o600
    assert gridfleet("rename", "first", "second")[0] == 0  # which checks and signs


def test_a_rekeying_of_a_folder_that_is_killed_between_database_and_file_goes_on(
    gridfleet: Gridfleet, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gridfleet.scheduler.fleet.local.folder import Folder
    from gridfleet.storage.errors import LocalFleetError

    def kill(_: Folder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Folder, "take_new_key", kill)
        assert gridfleet("rekey")[0] == 130
    assert "secret.key.new is there, for `gridfleet rekey` was interrupted; run it" in gridfleet("list")[2]
    with pytest.raises(LocalFleetError, match="was interrupted"):
        folder.prepare()

    assert gridfleet("rekey")[:2] == (0, "0 payloads and 0 searches are signed with the new key\n")
    assert gridfleet("rename", "first", "second")[0] == 0
    folder.prepare()


def test_a_fleet_of_a_folder_that_runs_keeps_its_key(gridfleet: Gridfleet, folder: Any) -> None:
    before = folder.key.read_text()
    with folder.owned():
        status, _, said = gridfleet("rekey")

    assert status == 1
    assert "a fleet runs in" in said
    assert "`gridfleet down` stops it" in said
    assert folder.key.read_text() == before


def test_the_row_of_a_search_says_whether_its_curves_are_kept(database: Database, pima: int) -> None:
    with database.read() as connection:
        assert connection.execute(select(Search.keep_curves).where(Search.id == pima)).scalar_one() is True
