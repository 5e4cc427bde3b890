"""The payloads that a host has: files that all its processes share, fetched once, bounded in size."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.settings import PREFIX, Settings

#: Writes the content of a missing file; what it raises leaves no file.
Fill = Callable[[IO[bytes]], None]


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
        path = self._folder / digest
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_another_users_folder()
        try:
            file: IO[bytes] = path.open("rb")
        except FileNotFoundError:
            file = self._fetch(path, fill)
        with file:
            os.utime(file.fileno())
            yield file

    def forget(self, digest: str) -> None:
        """Remove a file."""
        (self._folder / digest).unlink(missing_ok=True)

    def _refuse_another_users_folder(self) -> None:
        stat = self._folder.stat()
        if stat.st_uid != os.geteuid() or stat.st_mode & 0o002:
            raise PayloadError(
                f"the cache folder {self._folder} belongs to another user, or others may write to it, who could put "
                f"code there; set {PREFIX}CACHE_DIR to a private one"
            )

    def _fetch(self, path: Path, fill: Fill) -> IO[bytes]:
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for part in self._folder.glob("part-*"):  # of processes that were killed in here
                part.unlink()
            if not path.exists():
                self._write(path, fill)
                self._evict(keep=path)
            return path.open("rb")

    def _write(self, path: Path, fill: Fill) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="part-", delete=False) as part:
            try:
                fill(part)
                part.flush()
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink()
                raise

    def _evict(self, keep: Path) -> None:
        # mapped files live on until their last process lets go of them
        files = [(file.stat(), file) for file in self._folder.iterdir() if len(file.name) == 64]
        total = sum(stat.st_size for stat, _ in files)
        for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime):
            if total <= self._max_bytes:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total -= stat.st_size
