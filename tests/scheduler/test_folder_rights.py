"""The embedded fleet's folder where this user may not do what a fleet does: one sentence, in every command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from tests.conftest import NOBODY


def as_nobody(action: Callable[[], object]) -> str:
    """Do something as a user without a name or rights; returns what the fleet's error says, or else what happened."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            said = "nothing"
        except LocalFleetError as error:
            said = str(error)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as pipe:
        return pipe.read()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a folder that a fleet may be in, below one that everybody may enter."""
    Folder(tmp_path / ".gridfleet").prepare()
    return tmp_path / ".gridfleet"


def test_a_folder_below_one_that_is_closed_to_this_user(home: Path) -> None:
    home.parent.chmod(0)
    try:
        said = as_nobody(lambda: Folder(home))
    finally:
        home.parent.chmod(0o700)

    assert said.startswith(f"{home} can't be looked at (Permission denied)")
    assert said.endswith("or set GRIDFLEET_HOME to a folder of your own")


@pytest.mark.parametrize("use", [Folder.is_locked, Folder.prepare, Folder.open_log, Folder.is_used])
def test_a_folder_that_nothing_can_be_written_to(use: Callable[[Folder], object]) -> None:
    # /proc takes no files, not even of root
    folder = Folder(Path("/tmp/nowhere"))
    for name in ("home", "database", "key", "log", "work", "_lock", "_users", "_state"):
        setattr(folder, name, Path("/proc/self") / getattr(folder, name).name)
    folder._lock = Path("/proc/kmsg")  # one that is there, and that only root may read

    said = as_nobody(lambda: use(folder))

    assert "can't be" in said
    assert "GRIDFLEET_HOME" in said


@pytest.mark.parametrize("command", [("list",), ("up",), ("doctor",), ("report", "x"), ("down",)])
def test_every_command_says_it_in_one_line(gridfleet, embedded_home, monkeypatch, command):
    (embedded_home / "file").touch()
    monkeypatch.setenv("GRIDFLEET_HOME", str(embedded_home / "file" / ".gridfleet"))

    status, shown, said = gridfleet(*command)

    assert status == 1
    (line,) = [line for line in (shown + said).splitlines() if "can't be looked at (Not a directory)" in line]
    assert "GRIDFLEET_HOME" in line
