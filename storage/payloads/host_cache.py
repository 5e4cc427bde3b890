"""The payloads that a host has: files that all its processes share, fetched once, bounded in size."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.digest import check_digest, is_digest
from gridfleet.storage.private_folder import why_not_made
from gridfleet.storage.settings import PREFIX, Settings

#: Writes the content of a missing file; what it raises leaves no file.
Fill = Callable[[IO[bytes]], None]
#: Rights of group and of others to write.
_OTHERS_WRITE = 0o022
#: What the names of files begin with that are being written.
PART = "part-"
#: Digits of a digest that choose its lock: files of different locks are fetched at once, and there are 256 locks.
LOCK_DIGITS = 2


def cache_folder(settings: Settings) -> Path:
    """Return the folder of the local cache."""
    if settings.cache_dir is not None:
        return settings.cache_dir
    if settings.is_embedded:
        return settings.home / "cache"
    return Path(platformdirs.user_cache_dir("gridfleet"))


class HostCache:
    """Files named by digest in a private folder, the longest unused removed first.

    Parameters
    ----------
    folder : Path
        The folder, made when it is first needed.
    max_bytes : int
        Above this, files are removed; the one that is asked for stays, however large.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def opened(self, digest: str, fill: Fill) -> Iterator[IO[bytes]]:
        """Open a cached file; where it is missing, `fill` writes it, in one process of the host only."""
        path = self._path(digest)
        self._make_private()
        with self._opened_own(path) or self._fetch(path, fill) as file:
            # when it was used is the time of access; that of the last change says whether it was changed
            os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
            yield file

    def forget(self, digest: str) -> None:
        """Remove a file."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        check_digest(digest)
        return self._folder / digest

    def _opened_own(self, path: Path) -> IO[bytes] | None:
        """Open a file that nobody else can change; None if there is none.

        What is mapped shows later changes of its file, so that a check of the content alone would not do.
        """
        try:
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
        except OSError:  # none, a link, a folder: `_fetch` puts a file of ours there, or says why it can't
            return None
        if _is_own(os.fstat(file.fileno())):
            return file
        file.close()
        return None

    def _make_private(self) -> None:
        reason = why_not_made(self._folder)
        if reason is not None:
            raise PayloadError(f"the cache is not private: {reason}; or set {PREFIX}CACHE_DIR to another folder")

    def _fetch(self, path: Path, fill: Fill) -> IO[bytes]:
        with self._locked(f"lock-{path.name[:LOCK_DIGITS]}"):
            file = self._opened_own(path)
            if file is None:
                self._write(path, fill)
                # what is open lives on, whoever removes it
                file = path.open("rb")
                self._make_room(keep=path)
            return file

    @contextmanager
    def _locked(self, name: str, *, waits: bool = True) -> Iterator[bool]:
        with (self._folder / name).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _write(self, path: Path, fill: Fill) -> None:
        for left in self._folder.glob(f"{PART}{path.name}-*"):  # by processes that were killed in here
            left.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=f"{PART}{path.name}-", delete=False) as part:
            try:
                fill(part)
                part.flush()
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink()
                raise

    def _make_room(self, keep: Path) -> None:
        with self._locked("lock"):
            self._remove_what_is_left(keep)
            self._evict(keep)

    def _remove_what_is_left(self, keep: Path) -> None:
        """Remove the parts of other files whose writers are dead; who lives has the lock."""
        for left in self._folder.glob(f"{PART}*"):
            digits = left.name.removeprefix(PART)[:LOCK_DIGITS]
            if digits == keep.name[:LOCK_DIGITS]:  # whose lock this process holds
                left.unlink(missing_ok=True)
                continue
            with self._locked(f"lock-{digits}", waits=False) as is_dead:
                if is_dead:
                    left.unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        # mapped files live on until their last process lets go of them
        files = [(file.lstat(), file) for file in self._folder.iterdir() if is_digest(file.name)]
        total = sum(status.st_size for status, _ in files)
        for status, file in sorted(files, key=lambda pair: pair[0].st_atime):
            if total <= self._max_bytes:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total -= status.st_size


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE
