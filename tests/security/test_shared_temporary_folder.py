"""What other users put into /tmp stops no service, and no file of theirs or of this user is touched through it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from gridfleet.scheduler.cli.main import main
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials.held import Held
from gridfleet.worker.guards.health_file import touch_for_ever
from gridfleet.worker.guards.sign_of_life import (
    FOLDER_VARIABLE,
    Found,
    SignOfLife,
    forget_signs_of_the_dead,
    signs_of_children,
)
from gridfleet.worker.guards.temporary_folder import temporary_folder
from gridfleet.worker.main_process.environment import prepare_environment, private_current_folder
from tests.conftest import give_to_another_user
from tests.faults.support import wait_for


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_variables: None) -> Path:
    """Make a folder as /tmp is, where a worker and its health file are."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def signs_folder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {**os.environ, "TF_XLA_FLAGS": ""})
        prepare_environment(settings, concurrency=1)
        return Path(os.environ[FOLDER_VARIABLE])


def a_file(path: Path) -> None:
    path.touch()


def a_link(path: Path) -> None:
    (path.parent / "own").mkdir(mode=0o700, exist_ok=True)
    path.symlink_to("own")


def an_open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("plant", [a_file, a_link, an_open_folder])
@pytest.mark.parametrize("health", [None, "gridfleet-health"])
def test_what_another_user_put_there_stops_no_worker(
    plant, health: str | None, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = shared / "gridfleet-health-signs"
    plant(planted)
    before = planted.lstat()

    folder = signs_folder(Settings(health_file=None if health is None else shared / health), monkeypatch)

    assert folder.parent == shared
    assert folder != planted
    assert (folder.lstat().st_mode & 0o777, folder.lstat().st_uid) == (0o700, os.geteuid())
    assert planted.lstat() == before


def test_the_signs_of_life_are_beside_a_health_file_in_a_folder_of_this_user_only(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    assert signs_folder(Settings(health_file=own / "health"), monkeypatch) == own / "health-signs"

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    assert signs_folder(Settings(), monkeypatch) == own / "gridfleet" / "health-signs"

    give_to_another_user(own, monkeypatch)
    assert signs_folder(Settings(), monkeypatch).parent == shared


def test_only_files_named_as_signs_of_life_are_removed_and_read(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    others = ["99999-notes.txt", "notes", "-1", f"{dead.pid}-", f"{dead.pid}-1-2", f"0{dead.pid}-1", f"{dead.pid}-1 "]
    for name in others:
        (tmp_path / name).write_text("12345678")
    (tmp_path / f"{dead.pid}-2").mkdir()
    (tmp_path / f"{dead.pid}-3").symlink_to("notes")
    (tmp_path / f"{os.getpid()}-4").symlink_to("notes")
    (tmp_path / f"{dead.pid}-5").touch()
    (tmp_path / f"{os.getpid()}-x").write_text("12345678")

    assert signs_of_children(tmp_path) == []
    forget_signs_of_the_dead(tmp_path)

    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {*others, f"{dead.pid}-2", f"{dead.pid}-3", f"{os.getpid()}-4", f"{os.getpid()}-x"}


def test_the_folders_of_killed_processes_go_when_the_next_one_starts(shared: Path, tmp_path: Path) -> None:
    def begin(purpose: str) -> tuple[subprocess.Popen[str], Path]:
        code = (
            "import sys; from gridfleet.worker.guards.temporary_folder import temporary_folder as made\n"
            f"with made({purpose!r}) as folder: print(folder, flush=True); sys.stdin.read()"
        )
        variables = {**os.environ, "TMPDIR": str(shared)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", code], env=variables, **pipes)
        return process, Path(process.stdout.readline().strip())

    (killed, of_killed), (living, of_living), (other, of_other) = begin("work"), begin("work"), begin("signs")
    (of_killed / "left").touch()
    killed.kill()
    killed.communicate()
    names = ("gridfleet-work-notes", "gridfleet-work-abcdefgh.txt", "gridfleet-work-open1234")
    not_ours = [shared / name for name in names]
    for folder in not_ours:
        folder.mkdir(mode=0o755 if "open" in folder.name else 0o700)
    (tmp_path / "precious").mkdir(mode=0o700)
    (shared / "gridfleet-work-alink123").symlink_to(tmp_path / "precious")
    (shared / "gridfleet-work-afile123").touch()
    for folder in (of_killed, of_living, of_other, *not_ours, tmp_path / "precious"):
        os.utime(folder, (0, 0))
    with temporary_folder("work") as young:
        pass
    young.mkdir(mode=0o700)  # of a process that does not hold it yet

    with temporary_folder("work") as own:
        left = {path.name for path in shared.iterdir()}

    planted = {*(folder.name for folder in not_ours), "gridfleet-work-alink123", "gridfleet-work-afile123"}
    assert left == {of_living.name, of_other.name, own.name, young.name, *planted}
    assert (tmp_path / "precious").is_dir()
    living.communicate()
    other.communicate()
    assert not of_living.exists()


def test_files_that_variables_name_are_the_same_ones_in_a_worker_s_private_folder(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGPASSFILE", "passwords")
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.crt")
    monkeypatch.delenv("PGSSLKEY", raising=False)

    with private_current_folder(Settings()):
        assert Path.cwd().parent == shared
        assert os.environ["PGPASSFILE"] == str(tmp_path / "passwords")
        assert os.environ["PGSSLROOTCERT"] == "system"
        assert os.environ["SSL_CERT_FILE"] == "/etc/ca.crt"
        assert "PGSSLKEY" not in os.environ


def test_a_sign_of_life_is_found_by_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)  # this process is its own child
    shown = SignOfLife(tmp_path)
    shown.begin(5.0, Held(7, "f" * 32), 300)

    (sign,) = signs_of_children(tmp_path)

    assert (sign.pid, sign.until, sign.holds_a_trial) == (os.getpid(), 5.0, True)
    assert (sign.held, sign.memory_mb) == (Held(7, "f" * 32), 300)
    assert shown.answer() is None
    sign.answer(Found.LOST)
    answer = shown.answer()
    assert answer is not None
    assert (answer.found, answer.token) == (Found.LOST, "f" * 32)
    shown.beat(301)
    assert signs_of_children(tmp_path)[0].beat > sign.beat
    assert shown.answer() == answer


def test_a_health_file_that_is_a_link_is_not_touched(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shared / "health").symlink_to(tmp_path / "made-by-nobody")

    touch_for_ever(shared / "health")

    wait_for(lambda: "can't be touched" in caplog.text, "it is said that the health file can't be touched")
    assert not (tmp_path / "made-by-nobody").exists()


def test_without_a_place_of_this_user_there_is_no_health_file(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_threads = psutil.Process().num_threads()
    touch_for_ever(Settings().health_path)
    assert psutil.Process().num_threads() == n_threads
    (shared / "gridfleet-health").touch()

    with pytest.raises(SystemExit):
        main(["health"])

    assert "there is no health file; set GRIDFLEET_HEALTH_FILE" in capsys.readouterr().err
    assert [path.name for path in shared.iterdir()] == ["gridfleet-health"]
