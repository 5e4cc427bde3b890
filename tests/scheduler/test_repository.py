"""The commit of the script's folder: asked without waiting for long, and absent where nobody knows it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gridfleet.scheduler.submission import repository
from gridfleet.scheduler.submission.repository import Commit, commit_of

IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", *command], cwd=folder, check=True, env={**os.environ, **IDENTITY}, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None  # there is no commit yet
    (tmp_path / "script.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_folder_below_a_repository_has_its_commit(clone: Path) -> None:
    below = clone / "below"
    below.mkdir()
    (below / "new.py").write_text("not tracked")

    assert commit_of(below) == Commit(git(clone, "rev-parse", "HEAD"), is_dirty=False)
    (clone / "script.py").write_text("changed")
    assert commit_of(below) == Commit(git(clone, "rev-parse", "HEAD"), is_dirty=True)


def test_programs_that_a_repository_names_are_not_run(clone: Path) -> None:
    program, trace = clone / "monitor", clone / "ran"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o700)
    git(clone, "config", "core.fsmonitor", str(program))
    git(clone, "-c", "core.fsmonitor=false", "update-index", "--fsmonitor")

    assert commit_of(clone) is not None
    assert not trace.exists()


@pytest.mark.parametrize("program", ["exec sleep 60", "sleep 60 & wait", "exit 1", None])
def test_a_git_that_hangs_fails_or_is_not_there_says_nothing(
    program: str | None, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if program is not None:
        (folder / "git").write_text(f"#!/bin/sh\n{program}\n")
        (folder / "git").chmod(0o700)
    monkeypatch.setattr(repository, "GIT_S", 0.4)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if program else str(folder))

    assert commit_of(clone) is None


def test_a_folder_that_is_in_no_repository_or_gone_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "gone") is None
