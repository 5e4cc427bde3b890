"""The archives of sources that a host has unpacked: a private folder each, by digest, checked whenever it is used."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.digest import is_digest
from gridfleet.storage.private_folder import why_not_made, why_not_private
from gridfleet.storage.settings import PREFIX
from gridfleet.storage.sources.archive import unpack

#: Folders that a host keeps; those that a process uses stay beyond that.
KEPT = 16
#: What Python writes beside sources, in a folder that nobody else can write to.
BYTECODE = "__pycache__"


class UnpackedSources:
    """Holds one unpacked archive of this host for this process.

    Parameters
    ----------
    folder : Path
        Where the host's processes unpack them; made when it is first needed.
    digest : str
        The archive's.
    archive : bytes
        Its content: what is in the folder already has to be this.

    Raises
    ------
    PayloadError
        If the folder is not this user's alone, or the archive none of ours.
    """

    def __init__(self, folder: Path, digest: str, archive: bytes) -> None:
        reason = why_not_made(folder)
        if reason is not None:
            raise PayloadError(f"the folder for sources is not private: {reason}; or set {PREFIX}CACHE_DIR to another")
        files = unpack(archive)
        self.names = list(files)
        self.path = folder / digest
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_as_packed(self.path, files):
                _write(self.path, files)
            os.utime(self.path)
            # for as long as this process uses it; the kernel lets go of what a killed one held
            self._held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._held, fcntl.LOCK_SH)
            _remove_unused(folder)

    def close(self) -> None:
        """Let go of it: it may be removed when others are needed."""
        os.close(self._held)


def _is_as_packed(path: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder is this user's alone, and has these files and no others."""
    try:
        if why_not_private(path, "folder") is not None:
            return False
    except FileNotFoundError:
        return False
    found = {}
    for above, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name != BYTECODE]
        for name in (*names, *(name for name in folders if Path(above, name).is_symlink())):
            file = Path(above, name)
            found[file.relative_to(path).as_posix()] = file
    if found.keys() != files.keys():
        return False
    return all(_read(found[name]) == content for name, content in files.items())


def _read(file: Path) -> bytes | None:
    if why_not_private(file, "file") is not None:
        return None
    try:
        return file.read_bytes()
    except OSError:
        return None


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """Put the files of an archive into a new folder, in place of whatever is there."""
    for left in path.parent.glob("part-*"):  # of processes that were killed in here
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=path.parent))  # for this user only
    for name, content in files.items():
        file = part / name
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
        file.write_bytes(content)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
    part.rename(path)


def _remove_unused(folder: Path) -> None:
    """Remove the folders that were used longest ago, but for those that a process holds."""
    paths = [path for path in folder.iterdir() if is_digest(path.name) and not path.is_symlink() and path.is_dir()]
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime)[:-KEPT]:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
        finally:
            os.close(held)
