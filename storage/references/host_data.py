"""The data that references mean, as a host has them: the digest compared, remote files fetched once, arrays mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

from gridfleet.storage.errors import DataNotThereError
from gridfleet.storage.payloads.host_cache import HostCache, cache_folder
from gridfleet.storage.references import formats, source
from gridfleet.storage.references.checked_files import CheckedFiles
from gridfleet.storage.references.data_ref import DataRef
from gridfleet.storage.settings import PREFIX, Settings

#: Bytes of a remote file that are read at once.
BLOCK = 8 * 1024 * 1024


class HostData:
    """Reads data by reference.

    Parameters
    ----------
    settings : Settings
        The place and the bound of this host's cache.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.cache_size_mb * 1_000_000
        self._cache = HostCache(cache_folder(settings), self._max_bytes)
        self._checked = CheckedFiles(cache_folder(settings) / "checked")
        self._read: dict[DataRef, tuple[tuple[int, int], Any]] = {}

    def digest_of(self, ref: DataRef) -> str:
        """Return the digest of a file; all of it is read, one of this host only if it is another than the last time.

        Raises
        ------
        DataNotThereError
            If it can't be read.
        """
        with source.opened(ref) as file:
            if not ref.is_remote:
                return self._checked.digest_of(file, ref.location)
            sha = hashlib.sha256()
            for block in _blocks(ref, file):
                sha.update(block)
            return sha.hexdigest()

    def get(self, ref: DataRef) -> Any:
        """Return what a reference means, read from a file that has its digest.

        Arrays of ``.npy`` files are mapped, and can't be written to; the other formats take memory of this process.

        Raises
        ------
        DataNotThereError
            If the file can't be read here, or has another digest here.
        InvalidDataError
            If it has no such array or columns.
        """
        with self._opened(ref) as file:
            return formats.read(ref, file)

    def keep(self, wanted: Collection[DataRef]) -> dict[DataRef, Any]:
        """Return what references mean, as `get`; what was read last stays in memory for as long as it is asked for."""
        for ref in self._read.keys() - set(wanted):
            del self._read[ref]
        for ref in wanted:
            with self._opened(ref) as file:
                found = _identity(file)
                if ref not in self._read or self._read[ref][0] != found:
                    self._read[ref] = found, formats.read(ref, file)
        return {ref: value for ref, (_, value) in self._read.items()}

    @contextmanager
    def _opened(self, ref: DataRef) -> Iterator[IO[bytes]]:
        """Open a file of this host that has the digest of a reference."""
        if not ref.is_remote:
            with source.opened(ref) as file:
                self._require_digest(ref, self._checked.digest_of(file, ref.location))
                yield file
            return
        digest = ref.sha256 or ""
        with self._cache.opened(digest, lambda part: self._download(ref, part)) as file:
            if self._checked.digest_of(file, digest) == digest:
                yield file
                return
        self._cache.forget(digest)  # damaged in the cache, as by a power cut
        with self._cache.opened(digest, lambda part: self._download(ref, part)) as file:
            self._require_digest(ref, self._checked.digest_of(file, digest))
            yield file

    def _download(self, ref: DataRef, part: IO[bytes]) -> None:
        sha, size = hashlib.sha256(), 0
        with source.opened(ref) as file:
            for block in _blocks(ref, file):
                size += len(block)
                if size > self._max_bytes:
                    raise DataNotThereError(
                        f"{ref.location} has more than {PREFIX}CACHE_SIZE_MB={self._max_bytes // 1_000_000}, what this "
                        "worker keeps; raise it"
                    )
                sha.update(block)
                part.write(block)
        self._require_digest(ref, sha.hexdigest())
        part.flush()
        self._checked.remember(part, sha.hexdigest(), sha.hexdigest())  # so that nobody reads it once more

    def _require_digest(self, ref: DataRef, found: str) -> None:
        if found != ref.sha256:
            raise DataNotThereError(
                f"{ref.location} has the digest {found} here, the search wants {ref.sha256}: it was changed since, or "
                "is another file on this host"
            )


def _blocks(ref: DataRef, file: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            block = file.read(BLOCK)
        except Exception as error:  # each of fsspec's file systems raises its own
            raise source.not_read(ref.location, error) from error
        if not block:
            return
        yield block


def _identity(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
