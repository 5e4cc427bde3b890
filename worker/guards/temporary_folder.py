"""Private folders in the temporary one: gone with their process or, if that was killed, when the next one starts."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gridfleet.storage.errors import SettingsError

#: Seconds for which a folder that nobody holds is left alone: its process may be about to hold it.
YOUNG_S = 60
#: What a folder's name has after what it is for.
_END = re.compile("[a-z0-9_]{8}")


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a private folder, and remove it at the end; those of processes that were killed go first.

    Parameters
    ----------
    purpose : str
        What it is for, a part of its name.

    Raises
    ------
    SettingsError
        If there is no temporary folder at all, as under a read-only root.
    """
    prefix = f"gridfleet-{purpose}-"
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SettingsError(
            f"there is no temporary folder that this process can write to ({error.strerror}); mount one at /tmp, or "
            "set TMPDIR to another"
        ) from error
    _remove_those_of_the_dead(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # held by this process and those that it forks, and let go by the kernel however they end; process ids would not do,
    # for containers that share a temporary folder number theirs alike
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_those_of_the_dead(prefix: str) -> None:
    above = Path(tempfile.gettempdir())
    for path in above.glob(f"{prefix}*"):
        if _END.fullmatch(path.name.removeprefix(prefix)):
            with suppress(OSError):  # no folder, another user's, or held
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(held)
        is_ours = found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700
        if is_ours and time.time() - found.st_mtime > YOUNG_S:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)
