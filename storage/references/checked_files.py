"""The digests of files that this host has read: each is computed once for as long as the file stays as it is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.digest import is_digest
from gridfleet.storage.private_folder import why_not_made
from gridfleet.storage.settings import PREFIX

#: Files whose digests a host remembers.
REMEMBERED = 1_000
#: What the names of locks begin with; a file has the one of its name's first two digits.
LOCK = "lock-"


class CheckedFiles:
    """Digests of files by path, inode, size and time of the last change, in a private folder.

    Parameters
    ----------
    folder : Path
        The folder, made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest_of(self, file: IO[bytes], path: str) -> str:
        """Return the SHA-256 of an open file; of several processes of the host that ask at once, one reads it.

        Raises
        ------
        OSError
            If it can't be read, or the folder not be written.
        PayloadError
            If the folder is not this user's alone.
        """
        self._make_private()
        found = self._remembered(file, path)
        if found is not None:
            return found
        with self._locked(_name(file, path)):
            return self._remembered(file, path) or self._read(file, path)

    def remember(self, file: IO[bytes], path: str, digest: str) -> None:
        """Note the digest of a file, all of which is written."""
        self._make_private()
        self._write(_name(file, path), _state(file), digest)

    def _make_private(self) -> None:
        reason = why_not_made(self._folder)
        if reason is not None:
            raise PayloadError(f"the cache is not private: {reason}; or set {PREFIX}CACHE_DIR to another folder")

    def _read(self, file: IO[bytes], path: str) -> str:
        before = _state(file)
        file.seek(0)
        # a binary file of the system, which has readinto
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
        if _state(file) == before:  # nobody wrote to it meanwhile
            self._write(_name(file, path), before, digest)
        return digest

    def _remembered(self, file: IO[bytes], path: str) -> str | None:
        try:
            state, _, digest = (self._folder / _name(file, path)).read_text().partition(" ")
        except (OSError, UnicodeDecodeError):  # none, or damaged
            return None
        return digest if state == _state(file) and is_digest(digest) else None

    def _write(self, name: str, state: str, digest: str) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self._folder, prefix="part-", delete=False) as part:
            part.write(f"{state} {digest}")
        Path(part.name).replace(self._folder / name)
        self._forget_the_oldest()

    def _forget_the_oldest(self) -> None:
        files = [file for file in self._folder.iterdir() if not file.name.startswith(LOCK)]
        if len(files) <= REMEMBERED:
            return
        with suppress(FileNotFoundError):  # another process does the same
            for file in sorted(files, key=lambda file: file.lstat().st_mtime)[:-REMEMBERED]:
                file.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._folder / f"{LOCK}{name[:2]}").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _name(file: IO[bytes], path: str) -> str:
    """Return the name of what is remembered of a file."""
    status = os.fstat(file.fileno())
    return hashlib.sha256(f"{path}\0{status.st_dev}\0{status.st_ino}".encode(errors="surrogateescape")).hexdigest()


def _state(file: IO[bytes]) -> str:
    """Return what changes when somebody writes to a file."""
    status = os.fstat(file.fileno())
    return f"{status.st_size}-{status.st_mtime_ns}"
