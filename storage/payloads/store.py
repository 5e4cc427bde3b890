"""Puts objects into the database and gets them out again: content-addressed, signed, checked before they are loaded."""

from __future__ import annotations

import hashlib
import hmac
import io
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.errors import PayloadError, PayloadSignatureError
from gridfleet.storage.payloads import contents
from gridfleet.storage.payloads.format import dump, load, size_of
from gridfleet.storage.payloads.host_cache import HostCache, cache_folder
from gridfleet.storage.schema import Payload
from gridfleet.storage.settings import PREFIX, Settings

#: Unpickled objects that one process keeps; arrays in them are shared pages of the cache.
LOADED_OBJECTS = 32


@dataclass(frozen=True)
class PreparedPayload:
    """An object as it is going to be stored."""

    digest: str
    kind: str
    content: Sequence[memoryview]
    signature: str
    is_stored: bool


class PayloadStore:
    """Puts objects into the database and gets them out of it.

    Parameters
    ----------
    database : Database
        The fleet's.
    settings : Settings
        The secret key, and the folder and bound of the local cache.

    Raises
    ------
    SettingsError
        If the secret key is missing or too short.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._key = settings.key()
        self._cache = HostCache(cache_folder(settings), settings.cache_size_mb * 1_000_000)
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def put(self, kind: str, obj: Any, *, what: str) -> str:
        """Store an object, once however often it is put.

        Parameters
        ----------
        kind : str
            What it is: ``evaluation``, ``X``, ``y``, ``splits``, ``candidates``.
        obj : object
            The object.
        what : str
            What it is called in an error.

        Returns
        -------
        str
            Its digest.

        Raises
        ------
        NotPicklableError
            If it can't travel.
        """
        return self.insert(self.prepare(kind, obj, what=what))

    def prepare(self, kind: str, obj: Any, *, what: str) -> PreparedPayload:
        """Pickle and sign an object without storing it, so that all of a search can be refused before any is stored.

        Parameters
        ----------
        kind, obj, what
            As for `put`.

        Returns
        -------
        PreparedPayload
            For `insert`. Large arrays in it are the object's own memory.

        Raises
        ------
        NotPicklableError
            If it can't travel.
        PayloadSignatureError
            If it is stored already, signed with another key.
        """
        content = dump(kind, obj, what=what)
        digest = _sha256(content)
        signature = self._sign(kind, digest, content)
        with self._database.read() as connection:
            stored = connection.execute(select(Payload.signature).where(Payload.digest == digest)).scalar()
        if stored is not None and not _is_same(stored, signature):
            raise self._wrong_key(kind, digest)
        return PreparedPayload(digest, kind, content, signature, is_stored=stored is not None)

    def insert(self, payload: PreparedPayload) -> str:
        """Store a prepared payload, once however often it is inserted; returns its digest."""
        if not payload.is_stored:
            self._insert(payload)
        return payload.digest

    def get(self, kind: str, digest: str) -> Any:
        """Return an object, from this process, this host's cache, or the database.

        Its arrays are memory-mapped, copy on write: all processes of a host share one copy.

        Raises
        ------
        PayloadError
            If it is missing or damaged, or its code is not to be had here.
        PayloadSignatureError
            If its signature does not hold. It is not unpickled then.
        """
        if digest in self._loaded:
            self._loaded.move_to_end(digest)
            return self._loaded[digest]
        found_kind, obj = load(self._mapped(kind, digest))
        if found_kind != kind:
            raise PayloadError(f"payload {digest[:12]} is a {found_kind!r}, not a {kind!r}")
        self._loaded[digest] = obj
        while len(self._loaded) > LOADED_OBJECTS:
            self._loaded.popitem(last=False)
        return obj

    def _mapped(self, kind: str, digest: str) -> memoryview:
        for _ in range(2):
            with self._cache.opened(digest, lambda file: self._download(kind, digest, file)) as file:
                # a power cut may leave an empty file, which can't be mapped
                if os.fstat(file.fileno()).st_size:
                    mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
                    if _sha256([mapped]) == digest:
                        return mapped
            self._cache.forget(digest)
        raise PayloadError(f"payload {digest[:12]} ({kind}) is damaged in the local cache, time and again")

    def check_key(self) -> None:
        """Make sure that this process's key is the one that the newest payload was signed with.

        Raises
        ------
        PayloadSignatureError
            If it is another.
        """
        with self._database.read() as connection:
            newest = connection.execute(
                select(Payload.kind, Payload.digest)
                .where(Payload.size < contents.CHUNK_BYTES)
                .order_by(Payload.created_at.desc())
                .limit(1)
            ).one_or_none()
        if newest is not None:
            self._download(newest.kind, newest.digest, io.BytesIO())

    @retried  # of two that store the same, one waits for the other
    def _insert(self, payload: PreparedPayload) -> None:
        # a transaction of its own, before the search's: hundreds of MB would hold SQLite's only write lock
        # for seconds. Killed in between, what stays is a payload that nobody names and the next one reuses.
        with self._database.write() as connection:
            row = {
                "digest": payload.digest,
                "kind": payload.kind,
                "size": size_of(payload.content),
                "signature": payload.signature,
            }
            inserted = connection.execute(self._insert_once().values(row).returning(Payload.digest)).scalar()
            if inserted is None:  # another process was faster
                return
            contents.insert_content(connection, payload.digest, payload.content)

    def _insert_once(self) -> Any:
        dialect = sqlite if self._database.dialect == "sqlite" else postgresql
        return dialect.insert(Payload).on_conflict_do_nothing()

    def _download(self, kind: str, digest: str, file: IO[bytes]) -> None:
        with self._database.read() as connection:
            row = connection.execute(
                select(Payload.kind, Payload.signature).where(Payload.digest == digest)
            ).one_or_none()
            if row is None:
                raise PayloadError(f"payload {digest[:12]} ({kind}) is not in the database")
            if row.kind != kind:
                raise PayloadSignatureError(f"payload {digest[:12]} is a {row.kind!r}, not a {kind!r}")
            sha, mac = hashlib.sha256(), self._mac(kind, digest)
            for part in contents.read_content(connection, digest):
                sha.update(part)
                mac.update(part)
                file.write(part)
        if sha.hexdigest() != digest:
            raise PayloadSignatureError(f"payload {digest[:12]} ({kind}) is damaged: its content has another digest")
        if not _is_same(mac.hexdigest(), row.signature):
            raise self._wrong_key(kind, digest)

    def _wrong_key(self, kind: str, digest: str) -> PayloadSignatureError:
        return PayloadSignatureError(
            f"payload {digest[:12]} ({kind}) was not signed with this process's key; "
            f"give {PREFIX}SECRET_KEY the same value where searches are submitted and where they run"
        )

    def _sign(self, kind: str, digest: str, content: Sequence[memoryview]) -> str:
        mac = self._mac(kind, digest)
        for part in content:
            mac.update(part)
        return mac.hexdigest()

    def _mac(self, kind: str, digest: str) -> hmac.HMAC:
        return hmac.new(self._key, f"{kind}\n{digest}\n".encode(), hashlib.sha256)


def _is_same(signature: str, other: str) -> bool:
    # as bytes: of texts, compare_digest takes none but ASCII
    return hmac.compare_digest(signature.encode(), other.encode())


def _sha256(content: Sequence[memoryview]) -> str:
    sha = hashlib.sha256()
    for part in content:
        sha.update(part)
    return sha.hexdigest()
