"""Folders and files that no other user of the host can put anything into, or read."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

#: Name of the health file in the folder of this user's running processes.
HEALTH_FILE = "health"

#: What a path can be, and how lstat shows it.
_KINDS = {"folder": stat.S_IFDIR, "file": stat.S_IFREG, "socket": stat.S_IFSOCK}
_WRITE = 0o022
_READ_OR_WRITE = 0o077


def make_private_folder(folder: Path) -> bool:
    """Make a folder, with those above it; returns whether it is one that only this user can write to."""
    return why_not_made(folder) is None


def why_not_made(folder: Path) -> str | None:
    """Make a folder, with those above it; returns why it is not one that only this user can write to, None if it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:  # no right to, a read-only file system; a file or a dangling link, maybe another user's
        if not os.path.lexists(folder):
            return f"the folder {folder} can't be made ({error.strerror})"
    try:
        return why_not_private(folder, "folder", others_may_read=True)
    except OSError as error:  # it is gone again, or below one that lets this user in no more
        return f"the folder {folder} can't be used ({error.strerror})"


def make_runtime_folder() -> Path | None:
    """Make the folder of this user's running processes, which ends with the login; None where no login gave one."""
    above = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    try:
        if not above.is_absolute() or why_not_private(above, "folder") is not None:
            return None
    except OSError:  # it is gone, or another user's
        return None
    folder = above / "gridfleet"
    return folder if make_private_folder(folder) else None


def why_not_private(path: Path, kind: str, *, others_may_read: bool = False) -> str | None:
    """Say why a path is not this user's own.

    Parameters
    ----------
    path : Path
        What has to be there. A link is not followed: whoever made it chose where it leads.
    kind : {"folder", "file", "socket"}
        What it has to be.
    others_may_read : bool, default=False
        Whether it is enough that others can't change it.

    Returns
    -------
    str or None
        A sentence that names the path; None if it is this user's.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    return _why_not_private(path.lstat(), path, kind, others_may_read=others_may_read)


def read_private_file(path: Path) -> str:
    """Return the text of a file that nobody else could read or write.

    What is checked is the file that was opened, so that another can't take its place in between.

    Raises
    ------
    PermissionError
        If others can, or if it is no file; the sentence says why.
    FileNotFoundError
        If nothing is there.
    """
    try:
        # not blocking: a pipe of this name would have no writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PermissionError(why_not_private(path, "file") or f"{path} can't be read ({error.strerror})") from error
    with os.fdopen(descriptor, encoding="utf-8") as file:
        reason = _why_not_private(os.fstat(descriptor), path, "file")
        if reason is not None:
            raise PermissionError(reason)
        return file.read()


def is_locked(file: Path) -> bool:
    """Whether another process holds a lock on a file, which has to be there; those that look do not see each other."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _why_not_private(found: os.stat_result, path: Path, kind: str, *, others_may_read: bool = False) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a link, not a {kind}: whoever made it chose where it leads"
    if stat.S_IFMT(found.st_mode) != _KINDS[kind]:
        return f"{path} is no {kind}"
    if found.st_uid != os.geteuid():
        return f"the {kind} {path} belongs to another user (uid {found.st_uid}), who could have put anything there"
    mode = stat.S_IMODE(found.st_mode)
    if mode & (_WRITE if others_may_read else _READ_OR_WRITE):
        may = "change" if mode & _WRITE else "read"
        fix = f"chmod {'-R ' if kind == 'folder' else ''}go= {path}"
        return f"other users may {may} the {kind} {path} (mode {mode:04o}); run `{fix}` if all of it is yours"
    return None
