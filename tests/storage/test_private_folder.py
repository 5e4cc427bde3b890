"""Folders and files of one user: what is one, and what is not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from gridfleet.storage.private_folder import make_private_folder, read_private_file, why_not_made, why_not_private
from tests.conftest import give_to_another_user


def test_a_new_private_folder_is_for_its_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"

    assert make_private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert why_not_private(folder, "folder") is None
    assert make_private_folder(folder), "it is there already"


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o755, "may read"), (0o710, "may read"), (0o770, "may change"), (0o702, "may change"), (0o2750, "may read")],
)
def test_a_folder_with_rights_for_others_is_not_private(tmp_path: Path, mode: int, said: str) -> None:
    tmp_path.chmod(mode)

    reason = why_not_private(tmp_path, "folder")

    assert reason is not None
    assert said in reason
    assert f"(mode {mode:04o}); run `chmod -R go= {tmp_path}`" in reason
    assert make_private_folder(tmp_path) == (said == "may read")


def test_a_link_is_nobodys_folder_wherever_it_leads(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    for name, target in (("link", "own"), ("dangling", "nowhere")):
        link = tmp_path / name
        link.symlink_to(tmp_path / target)

        assert f"{link} is a link" in str(why_not_private(link, "folder"))
        assert not make_private_folder(link)


def test_a_file_where_a_folder_is_wanted_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)

    assert why_not_private(file, "folder") == f"{file} is no folder"
    assert not make_private_folder(file)
    assert not make_private_folder(file / "below")


def test_a_folder_that_can_not_be_made_is_told_with_the_reason() -> None:
    folder = Path("/proc/cache/gridfleet")  # where not even root makes one

    assert why_not_made(folder) == f"the folder {folder} can't be made (No such file or directory)"
    assert not make_private_folder(folder)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_private(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / kind
    path.mkdir(mode=0o700) if kind == "folder" else path.touch(mode=0o600)
    give_to_another_user(path, monkeypatch)

    assert f"the {kind} {path} belongs to another user" in str(why_not_private(path, kind))
    if kind == "folder":
        assert not make_private_folder(path)


def test_a_private_file_is_read_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    file.write_text("content")
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe", mode=0o600)

    assert read_private_file(file) == "content"
    with pytest.raises(PermissionError, match="is a link, not a file"):
        read_private_file(tmp_path / "link")
    with pytest.raises(PermissionError, match="pipe is no file"):
        read_private_file(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_private_file(tmp_path / "missing")
    file.chmod(0o640)
    with pytest.raises(PermissionError, match=r"other users may read .* run `chmod go= "):
        read_private_file(file)
    file.chmod(0o600)
    give_to_another_user(file, monkeypatch)
    with pytest.raises(PermissionError, match="belongs to another user"):
        read_private_file(file)


def test_a_socket_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        (tmp_path / "s").chmod(0o600)

        assert why_not_private(tmp_path / "s", "socket") is None
        assert why_not_private(tmp_path / "s", "file") == f"{tmp_path / 's'} is no file"
        with pytest.raises(PermissionError, match="is no file"):
            read_private_file(tmp_path / "s")
