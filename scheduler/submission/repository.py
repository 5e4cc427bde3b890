"""The git commit of the script's folder, so that people find the code that ran; nothing depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: Seconds that git may take, for both questions together.
GIT_S = 3.0
#: Nobody is asked for a password, nothing is fetched, no lock is taken, and no program of the repository's is run.
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a repository is: a commit, and whether files that git tracks differ from it; None: git did not say."""

    commit: str
    is_dirty: bool | None


def commit_of_script() -> Commit | None:
    """Return the commit of the folder of this process's script; None without git, a repository or a commit."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    folder = Path(file).absolute().parent if file else Path.cwd()
    return commit_of(folder)


def commit_of(folder: Path) -> Commit | None:
    """Return the commit of a folder, within `GIT_S`."""
    commit = _ask(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _ask(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return Commit(commit.strip(), None if changes is None else bool(changes.strip()))


def _ask(folder: Path, *question: str) -> str | None:
    try:
        done = subprocess.run(
            [*_GIT, *question],
            cwd=folder,
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_S / 2,
        )
    except (OSError, subprocess.TimeoutExpired):  # there is no git, no such folder, or it hangs
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
