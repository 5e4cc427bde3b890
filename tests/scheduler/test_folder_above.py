"""A folder inside a project uses the project's fleet, as git finds its own folder; nothing of it gets into git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.settings import Settings, nearest_home
from tests.conftest import NOBODY


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_variables: None) -> Path:
    """Go to a folder inside of a project with a fleet."""
    Folder(tmp_path / ".gridfleet").prepare()
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_inside_uses_the_fleet_of_the_project(notebooks: Path) -> None:
    assert Settings().home == notebooks.parent / ".gridfleet"


def test_a_folder_of_its_own_comes_first(notebooks: Path) -> None:
    (notebooks / ".gridfleet").mkdir()

    assert Settings().home == notebooks / ".gridfleet"


def test_without_one_it_is_made_here(embedded_home: Path) -> None:
    assert Settings().home == embedded_home / ".gridfleet"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_the_folder_of_somebody_else_is_not_taken(notebooks: Path) -> None:
    os.chown(notebooks.parent / ".gridfleet", NOBODY, NOBODY)

    assert nearest_home() == notebooks / ".gridfleet"


def test_a_link_is_not_taken(notebooks: Path) -> None:
    above = notebooks.parent / ".gridfleet"
    above.rename(notebooks.parent / "elsewhere")
    above.symlink_to("elsewhere")

    assert nearest_home() == notebooks / ".gridfleet"


def test_it_is_said_once_which_one_was_taken(
    gridfleet: Callable[..., tuple[int, str, str]], embedded_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (embedded_home / "below").mkdir()
    Folder(embedded_home / ".gridfleet").prepare()
    monkeypatch.chdir(embedded_home / "below")

    _, _, said = gridfleet("list")

    which, none = said.splitlines()
    assert which == (
        f"gridfleet: the fleet of {embedded_home} is that of this folder as well, which is in it; for one of its own, "
        f"`mkdir {embedded_home / 'below' / '.gridfleet'}`"
    )
    assert f"no search was ever run in {embedded_home / '.gridfleet'}" in none
    monkeypatch.setenv("GRIDFLEET_HOME", str(embedded_home / ".gridfleet"))
    assert len(gridfleet("list")[2].splitlines()) == 1


def test_git_sees_nothing_of_it(embedded_home: Path) -> None:
    Folder(embedded_home / ".gridfleet").prepare()
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=embedded_home)

    shown = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, cwd=embedded_home)

    assert shown.stdout == b""


def test_what_its_owner_wrote_into_gitignore_stays(embedded_home: Path) -> None:
    home = embedded_home / ".gridfleet"
    home.mkdir(mode=0o700)
    (home / ".gitignore").write_text("*\n!notes\n")

    Folder(home).prepare()

    assert (home / ".gitignore").read_text() == "*\n!notes\n"
