"""A `.gridfleet` that somebody else made, or that others can reach into, is refused by every command and reader."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from sklearn.svm import SVC

from gridfleet import GridSearchCV, open_search, submit
from gridfleet.scheduler.cli.main import main
from gridfleet.scheduler.fleet.local import broker, client
from gridfleet.scheduler.fleet.local.broker import LocalBroker
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.worker.broker.app import create_app
from gridfleet.worker.broker.message import TASK
from gridfleet.worker.broker.publisher import Publisher
from tests.conftest import KEYS, give_to_another_user

#: Every command that looks into the folder of an embedded fleet.
COMMANDS = [
    ["up"],
    ["down"],
    ["submit", "search.yaml"],
    ["list"],
    ["watch"],
    ["report", "search-1"],
    ["best", "search-1"],
    ["cancel", "search-1"],
    ["pause", "search-1"],
    ["resume", "search-1"],
    ["retry-failed", "search-1"],
    ["sql", "SELECT 1"],
    ["db", "upgrade"],
    ["db", "current"],
    ["doctor"],
]
X, Y = [[0.0], [1.0]] * 6, [0, 1] * 6


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_variables: None) -> Path:
    """Go to a folder where a fleet ran once; its files are as they should be."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".gridfleet"
    folder = Folder(home)
    folder.prepare()
    folder.make_database()
    folder.broker.mkdir(mode=0o700)
    folder.open_log().close()
    return home


def planted_by_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    give_to_another_user(home, monkeypatch)
    return home


def that_is_a_link(home: Path, _: pytest.MonkeyPatch) -> Path:
    home.rename(home.with_name("elsewhere"))
    home.symlink_to("elsewhere")
    return home


def that_others_can_read(home: Path, _: pytest.MonkeyPatch) -> Path:
    home.chmod(0o755)
    return home


@pytest.mark.parametrize("make", [planted_by_another_user, that_is_a_link, that_others_can_read])
def test_no_command_uses_a_folder_that_is_not_this_users_alone(
    make: Callable[..., Path],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    described = {"model": "sklearn.svm:SVC", "data": {"file": "data.csv", "target": "y"}, "space": {"C": [1]}}
    Path("search.yaml").write_text(yaml.safe_dump(described))
    before = {path: path.lstat().st_mtime_ns for path in home.iterdir()}
    refused = make(home, monkeypatch)

    for command in COMMANDS:
        with pytest.raises(SystemExit) as exited:
            main(command)
        shown, said = capsys.readouterr()
        assert exited.value.code == 1, command
        assert str(refused) in shown + said, command
        assert "GRIDFLEET_HOME" in shown + said, command
    for use in (
        lambda: open_search("search-1"),
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), X, Y),
        lambda: GridSearchCV(SVC(), {"C": [1]}, verbose=0).fit(X, Y),
    ):
        with pytest.raises(LocalFleetError, match="GRIDFLEET_HOME"):
            use()

    assert {path: path.lstat().st_mtime_ns for path in home.iterdir()} == before


@pytest.mark.parametrize(
    "name",
    ["secret.key", "gridfleet.db", "gridfleet.db-wal", "fleet.json", "fleet.lock", "fleet.log", "broker", "work"],
)
def test_no_file_of_the_folder_is_used_that_is_not_this_users_alone(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / name
    if not path.exists():
        path.touch(mode=0o600)
    mode = path.stat().st_mode
    Folder(home)

    path.chmod(mode | 0o040)
    with pytest.raises(LocalFleetError, match=f"other users may read .*{name} .*; run `chmod "):
        client.is_running(load_settings())
    path.chmod(mode)
    path.rename(home / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(LocalFleetError, match=f"{name} is a link"):
        client.has_database(load_settings())
    path.unlink()
    (home / "elsewhere").rename(path)
    give_to_another_user(path, monkeypatch)
    with pytest.raises(LocalFleetError, match="belongs to another user"):
        client.stored(load_settings())


def test_doctor_says_that_the_folder_is_as_it_should_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor"])

    assert f"ok    folder    {home} and what is in it are this user's alone" in capsys.readouterr().out


def test_all_files_of_a_folder_are_made_for_this_user_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        folder = Folder(tmp_path / ".gridfleet")
        folder.prepare()
        folder.make_database()
        folder.open_log().close()
        with folder.owned() as got_it:
            assert got_it
        folder.announce({})
        started = LocalBroker(folder)
        started.stop()
    finally:
        os.umask(before)

    Folder(folder.home)  # which refuses what others can read
    rights = {path.name: path.lstat().st_mode & 0o077 for path in folder.home.iterdir()}
    assert {"secret.key", "gridfleet.db", "fleet.log", "fleet.lock", "fleet.json", "broker", "work"} <= rights.keys()
    assert set(rights.values()) == {0}


@pytest.mark.parametrize("name", ["plain", "with ; % ü # ?", "deep" * 25])
def test_the_broker_of_a_folder_listens_where_no_other_user_gets(name: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path / name / ".gridfleet")
    folder.prepare()
    started = LocalBroker(folder)
    try:
        (process,) = [child for child in psutil.Process().children() if child.pid == started.pid]
        assert process.net_connections(kind="inet") == []
        with folder.owned():
            folder.announce({"broker_url": started.url, "socket": str(started.socket)})
            running = folder.running()
            assert running is not None
            settings = Settings(broker_url=running["broker_url"])

            Publisher(settings, KEYS).publish([7])
            with create_app(settings, KEYS).connection_for_read() as connection:
                message = connection.SimpleQueue(KEYS.queue).get(timeout=10)
            assert message.headers["task"] == TASK

            started.socket.chmod(0o666)
            with pytest.raises(LocalFleetError, match=r"other users may change the socket"):
                folder.running()
    finally:
        started.stop()
    assert len(os.fsencode(started.socket)) <= broker.MAX_SOCKET_PATH
    assert started.socket.is_relative_to(folder.broker) or not started.socket.parent.exists()


def test_a_fleet_whose_socket_another_user_put_there_is_not_used(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "e"
    elsewhere.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(elsewhere)
        listener.bind("s")
        (elsewhere / "s").chmod(0o600)
        folder = Folder(home)
        with folder.owned():
            folder.announce({"broker_url": "redis+socket:///s", "socket": str(elsewhere / "s")})
            assert client.is_running(load_settings().replace(home=home))
            give_to_another_user(elsewhere / "s", monkeypatch)
            with pytest.raises(LocalFleetError, match="belongs to another user"):
                client.is_running(load_settings().replace(home=home))
