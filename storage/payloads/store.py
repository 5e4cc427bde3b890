"""Puts objects into the database and gets them out again: content-addressed, signed, checked before they are loaded."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.errors import InvalidSearchError, PayloadError, PayloadGoneError, PayloadSignatureError
from gridfleet.storage.payloads import contents
from gridfleet.storage.payloads.digest import check_digest, digest_of
from gridfleet.storage.payloads.format import dump, load, pickle_of, python_of, size_of
from gridfleet.storage.payloads.host_cache import HostCache, cache_folder
from gridfleet.storage.schema import BestModel, Payload
from gridfleet.storage.settings import PREFIX, SAME_KEYS, Settings
from gridfleet.storage.signer import Signer

#: Unpickled objects that one process keeps; arrays in them are shared pages of the cache.
LOADED_OBJECTS = 32
#: What a signature of a payload begins with.
SIGNED_AS = "payload"
#: The payload without content by which a process knows the fleet's key: signed and stored with the first one.
KEY_CHECK = hashlib.sha256(b"gridfleet: key check").hexdigest()


@dataclass(frozen=True)
class PreparedPayload:
    """An object as it is going to be stored."""

    digest: str
    kind: str
    content: Sequence[memoryview]
    signature: str
    is_stored: bool

    @property
    def needs_python(self) -> str | None:
        """The minor version of Python that can load it; None: any."""
        return python_of(self.content)


@dataclass(frozen=True)
class _Loaded:
    """An object that this process keeps, and the pickle that it is from."""

    obj: Any
    pickled: memoryview


class PayloadStore:
    """Puts objects into the database and gets them out of it.

    Parameters
    ----------
    database : Database
        The fleet's.
    settings : Settings
        The keys, the folder and bound of the local cache, the bound of all that is stored. With the public key
        alone, objects can be had and none can be put.
    make_room : callable, optional
        Called with the bytes of each payload before it is mapped, and with their negative when nothing is left of it:
        what is mapped is shared by the processes of a host, and is not to count as this one's memory.

    Raises
    ------
    SettingsError
        If there is no key, or one that is none.
    """

    def __init__(
        self, database: Database, settings: Settings, make_room: Callable[[int], None] = lambda _: None
    ) -> None:
        self._database = database
        self._make_room = make_room
        self._settings = settings
        self._verifier = settings.verifier()
        self._max_bytes = settings.payloads_size_mb * 1_000_000
        self._cache = HostCache(cache_folder(settings), settings.cache_size_mb * 1_000_000)
        self._loaded: OrderedDict[tuple[str, str], _Loaded] = OrderedDict()

    @cached_property
    def _signer(self) -> Signer:
        return self._settings.signer()

    def put(self, kind: str, obj: Any, *, what: str) -> str:
        """Store an object, once however often it is put.

        Parameters
        ----------
        kind : str
            What it is: ``evaluation``, ``X``, ``y``, ``splits``, ``candidates``, ``sources``.
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

    def prepare(self, kind: str, obj: Any, *, what: str, modules: Iterable[str] = ()) -> PreparedPayload:
        """Pickle and sign an object without storing it, so that all of a search can be refused before any is stored.

        Parameters
        ----------
        kind, obj, what
            As for `put`.
        modules : iterable of str
            Top-level modules that are needed beside those that the pickle names.

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
        SettingsError
            If there is no secret key to sign with.
        """
        content = dump(kind, obj, what=what, modules=modules)
        digest = digest_of(content)
        signature = self._sign(kind, digest, size_of(content))
        with self._database.read() as connection:
            stored = connection.execute(select(Payload.signature).where(Payload.digest == digest)).scalar()
        if stored is not None and not self._is_signed(stored, kind, digest, size_of(content)):
            raise _wrong_signature(kind, digest)
        return PreparedPayload(digest, kind, content, signature, is_stored=stored is not None)

    def require_room(self, payloads: Sequence[PreparedPayload]) -> None:
        """Make sure that prepared payloads, all stored ones and all best models stay below ``payloads_size_mb``.

        Nothing removes payloads by itself, and a full disk stops the whole fleet.

        Raises
        ------
        InvalidSearchError
            If they do not.
        """
        all_of_it = sum(size_of(payload.content) for payload in payloads)
        if all_of_it > self._settings.cache_size_mb * 1_000_000:
            raise InvalidSearchError(
                f"the search's estimator and data take {all_of_it / 1e6:,.1f} MB, above {PREFIX}CACHE_SIZE_MB="
                f"{self._settings.cache_size_mb}, what workers keep of payloads: they would fetch them again and "
                "again; raise it, here and for the workers"
            )
        new = sum(size_of(payload.content) for payload in payloads if not payload.is_stored)
        with self._database.read() as connection:
            stored = sum(
                int(connection.execute(select(func.coalesce(func.sum(table.size), 0))).scalar_one())
                for table in (Payload, BestModel)
            )
        if new and stored + new > self._max_bytes:
            raise InvalidSearchError(
                f"the search's estimator and data take {new / 1e6:,.1f} MB more, where payloads of "
                f"{stored / 1e6:,.1f} MB are stored: together above {PREFIX}PAYLOADS_SIZE_MB="
                f"{self._max_bytes // 1_000_000}; raise it, or make room as docs/operations.md says"
            )

    def insert(self, payload: PreparedPayload) -> str:
        """Store a prepared payload, once however often it is inserted; returns its digest."""
        if not payload.is_stored:
            self._insert(payload)
        return payload.digest

    def insert_again(self, connection: Connection, payloads: Collection[PreparedPayload]) -> None:
        """Store prepared payloads that are not there any more, in the transaction that goes on to name them."""
        for payload in sorted(payloads, key=lambda payload: payload.digest):
            self._insert_in(connection, payload)

    def require_stored(self, connection: Connection, digests: Collection[str | None]) -> None:
        """Make sure that payloads are there until a transaction ends that goes on to name them.

        Raises
        ------
        PayloadGoneError
            If one was removed since it was prepared or stored, for nothing named it yet.
        PayloadSignatureError
            If the fleet got another key since.
        """
        wanted = {digest for digest in digests if digest is not None}
        stored = select(Payload.digest).where(Payload.digest.in_(wanted)).order_by(Payload.digest)
        if len(connection.execute(stored.with_for_update(key_share=True, read=True)).all()) < len(wanted):
            raise PayloadGoneError("a payload was removed while the search that names it was being stored")
        self._check_key(connection)

    def get(self, kind: str, digest: str) -> Any:
        """Return an object, from this process, this host's cache, or the database.

        Its arrays are memory-mapped, copy on write: all processes of a host share one copy.

        Raises
        ------
        PayloadError
            If it is missing or damaged, or its code is not to be had here.
        PayloadSignatureError
            If its signature does not hold. It is neither fetched nor unpickled then.
        """
        if (kind, digest) in self._loaded:
            self._loaded.move_to_end((kind, digest))
            return self._loaded[kind, digest].obj
        check_digest(digest)
        # also for what is in the cache: who could write there once may have had another key, or none
        size = self._signed_size(kind, digest)
        content = self._mapped(kind, digest, size)
        found_kind, obj = load(content)
        if found_kind != kind:
            raise PayloadError(f"payload {digest[:12]} is a {found_kind!r}, not a {kind!r}")
        self._loaded[kind, digest] = _Loaded(obj, pickle_of(content))
        while len(self._loaded) > LOADED_OBJECTS:
            self._loaded.popitem(last=False)
        return obj

    def check_readable(self) -> None:
        """Fetch the smallest payload into the cache, as a trial does, without unpickling it; none need be there.

        Raises
        ------
        PayloadError
            If it can't be fetched, or the cache is not private.
        OSError
            If the cache can't be written.
        """
        smallest = select(Payload.kind, Payload.digest).where(Payload.size > 0).order_by(Payload.size).limit(1)
        with self._database.read() as connection:
            row = connection.execute(smallest).one_or_none()
        if row is not None:
            self._mapped(row.kind, row.digest, self._signed_size(row.kind, row.digest))

    def forget(self, modules: Collection[str]) -> None:
        """Let go of the loaded objects that may hold functions or classes of some modules, for these have changed."""
        if not modules:
            return
        names = re.compile("|".join(map(re.escape, modules)).encode())
        for key, loaded in list(self._loaded.items()):
            if names.search(loaded.pickled):
                del self._loaded[key]

    def check_key(self) -> None:
        """Make sure that this process's key, secret or public, is the fleet's.

        Raises
        ------
        PayloadSignatureError
            If it is another.
        """
        with self._database.read() as connection:
            self._check_key(connection)

    def _check_key(self, connection: Connection) -> None:
        stored = connection.execute(select(Payload.signature).where(Payload.digest == KEY_CHECK)).scalar()
        if stored is not None and not self._is_signed(stored, "key", KEY_CHECK, 0):
            raise PayloadSignatureError(f"the fleet's payloads were not signed with this process's key; {SAME_KEYS}")

    def _signed_size(self, kind: str, digest: str) -> int:
        """Return the bytes of a payload, of which its signature says the same as SQL."""
        with self._database.read() as connection:
            row = connection.execute(
                select(Payload.kind, Payload.size, Payload.signature).where(Payload.digest == digest)
            ).one_or_none()
        if row is None:
            raise PayloadError(f"payload {digest[:12]} ({kind}) is not in the database")
        if row.kind != kind:
            raise PayloadSignatureError(f"payload {digest[:12]} is a {row.kind!r}, not a {kind!r}")
        # the content need not be looked at: what is loaded has this digest
        if not self._is_signed(row.signature, kind, digest, row.size):
            raise _wrong_signature(kind, digest)
        return int(row.size)

    def _mapped(self, kind: str, digest: str, size: int) -> memoryview:
        is_new = False

        def download(file: IO[bytes]) -> None:
            nonlocal is_new
            self._download(kind, digest, size, file)
            is_new = True  # and has the digest: of a gigabyte it takes as long as all else

        for _ in range(2):
            with self._cache.opened(digest, download) as file:
                # a power cut may leave an empty file, which can't be mapped
                if 0 < os.fstat(file.fileno()).st_size == size:
                    mapped = self._map(file)
                    if is_new or digest_of([mapped]) == digest:
                        return mapped
            self._cache.forget(digest)
        raise PayloadError(f"payload {digest[:12]} ({kind}) is damaged in the local cache, time and again")

    def _map(self, file: IO[bytes]) -> memoryview:
        size = os.fstat(file.fileno()).st_size
        self._make_room(size)
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            self._make_room(-size)
            if error.errno == errno.ENOMEM:
                raise MemoryError(f"{size / 1e6:,.0f} MB can't be mapped") from error
            raise
        weakref.finalize(mapped, self._make_room, -size).atexit = False
        return memoryview(mapped)

    @retried  # of two that store the same, one waits for the other
    def _insert(self, payload: PreparedPayload) -> None:
        # a transaction of its own, before the search's: hundreds of MB would hold SQLite's only write lock
        # for seconds. Killed in between, what stays is a payload that nobody names and the next one reuses.
        with self._database.write() as connection:
            self._insert_in(connection, payload)

    def _insert_in(self, connection: Connection, payload: PreparedPayload) -> None:
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
        self._insert_key_check(connection)

    def _insert_key_check(self, connection: Connection) -> None:
        """Let the first payload's key be the fleet's, and refuse to store what is signed with another."""
        row = {"digest": KEY_CHECK, "kind": "key", "size": 0, "signature": self._sign("key", KEY_CHECK, 0)}
        connection.execute(self._insert_once().values(row))
        self._check_key(connection)

    def _insert_once(self) -> Any:
        dialect = sqlite if self._database.dialect == "sqlite" else postgresql
        return dialect.insert(Payload).on_conflict_do_nothing()

    def _download(self, kind: str, digest: str, size: int, file: IO[bytes]) -> None:
        """Write the content into a file: never more than the bytes that were signed."""
        sha, written = hashlib.sha256(), 0
        with self._database.read() as connection:
            for part in contents.read_content(connection, digest, size):
                sha.update(part)
                written += file.write(part)
        if written != size or sha.hexdigest() != digest:
            raise PayloadSignatureError(f"payload {digest[:12]} ({kind}) is damaged: its content has another digest")

    def _sign(self, kind: str, digest: str, size: int) -> str:
        return self._signer.sign(SIGNED_AS, kind, digest, size)

    def _is_signed(self, signature: str, kind: str, digest: str, size: int) -> bool:
        return self._verifier.is_signed(signature, SIGNED_AS, kind, digest, size)


def _wrong_signature(kind: str, digest: str) -> PayloadSignatureError:
    return PayloadSignatureError(
        f"payload {digest[:12]} ({kind}) was not signed with this process's key, or was signed by an older release; "
        f"{SAME_KEYS}, and submit searches of an older release again"
    )
