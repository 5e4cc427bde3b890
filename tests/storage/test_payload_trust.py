"""Payloads that were changed, forged or signed with another key: refused before anything is unpickled."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import delete, func, insert, select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadError, PayloadSignatureError, SettingsError
from gridfleet.storage.payloads import contents
from gridfleet.storage.payloads.format import load
from gridfleet.storage.payloads.host_cache import HostCache
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Payload, PayloadChunk
from gridfleet.storage.settings import Settings
from tests.storage.conftest import cache_files, count


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "unpickled")


@pytest.fixture
def armed(store: PayloadStore, bomb: Bomb, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a bomb in several chunks."""
    monkeypatch.setattr(contents, "CHUNK_BYTES", 50)
    return store.put("evaluation", bomb, what="estimator")


def _flip_content(connection: Any, digest: str) -> None:
    where = (PayloadChunk.digest == digest, PayloadChunk.position == 1)
    content = connection.execute(select(PayloadChunk.content).where(*where)).scalar_one()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    connection.execute(update(PayloadChunk).where(*where).values(content=flipped))


def _flip_signature(connection: Any, digest: str) -> None:
    signature = connection.execute(select(Payload.signature).where(Payload.digest == digest)).scalar_one()
    flipped = ("0" if signature[0] != "0" else "1") + signature[1:]
    connection.execute(update(Payload).where(Payload.digest == digest).values(signature=flipped))


def _lose_chunk(position: int) -> Callable[[Any, str], None]:
    return lambda connection, _: connection.execute(delete(PayloadChunk).where(PayloadChunk.position == position))


def _lose_last_chunk(connection: Any, digest: str) -> None:
    last = connection.execute(select(func.max(PayloadChunk.position))).scalar_one()
    _lose_chunk(last)(connection, digest)


def _lose_everything(connection: Any, _: str) -> None:
    connection.execute(delete(PayloadChunk))
    connection.execute(delete(Payload))


def _swap_chunks(connection: Any, _: str) -> None:
    for old, new in ((0, 1_000), (1, 0), (1_000, 1)):
        connection.execute(update(PayloadChunk).where(PayloadChunk.position == old).values(position=new))


def _enlarge_a_chunk(connection: Any, digest: str) -> None:
    where = (PayloadChunk.digest == digest, PayloadChunk.position == 1)
    connection.execute(update(PayloadChunk).where(*where).values(content=b"x" * 10_000))


def _declare_another_size(connection: Any, digest: str) -> None:
    connection.execute(update(Payload).where(Payload.digest == digest).values(size=10_000_000))


def _rename_kind(connection: Any, digest: str) -> None:
    connection.execute(update(Payload).where(Payload.digest == digest).values(kind="X"))


TAMPERING = {
    "a flipped bit in the content": _flip_content,
    "a flipped bit in the signature": _flip_signature,
    "the first chunk lost": _lose_chunk(0),
    "a chunk lost": _lose_chunk(1),
    "the last chunk lost": _lose_last_chunk,
    "chunks swapped": _swap_chunks,
    "a chunk enlarged": _enlarge_a_chunk,
    "another size": _declare_another_size,
    "another kind": _rename_kind,
    "everything lost": _lose_everything,
}


def test_an_untouched_payload_is_unpickled(armed: str, bomb: Bomb, another_store: Callable[..., PayloadStore]) -> None:
    assert not bomb.file.exists()

    another_store().get("evaluation", armed)

    assert bomb.file.exists()


@pytest.mark.parametrize("how", TAMPERING)
def test_a_payload_that_was_tampered_with_is_refused_before_unpickling(
    how: str,
    armed: str,
    bomb: Bomb,
    database: Database,
    database_settings: Settings,
    another_store: Callable[..., PayloadStore],
) -> None:
    with database.write() as connection:
        TAMPERING[how](connection, armed)

    with pytest.raises(PayloadError, match=armed[:12]) as refused:
        another_store().get("evaluation", armed)

    assert isinstance(refused.value, PayloadSignatureError) == (how != "everything lost")
    assert not bomb.file.exists()
    assert cache_files(database_settings) == []


def test_a_payload_signed_with_another_key_is_refused(
    bomb: Bomb, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digest = store.put("evaluation", bomb, what="estimator")
    stranger = another_store(secret_key=SecretStr("another key of the fleet"))

    for action in (
        lambda: stranger.get("evaluation", digest),
        lambda: stranger.put("evaluation", bomb, what="estimator"),
        stranger.check_key,
    ):
        with pytest.raises(PayloadSignatureError, match="GRIDFLEET_SECRET_KEY"):
            action()
    assert not bomb.file.exists()


def test_the_right_key_passes_the_check(store: PayloadStore, another_store: Callable[..., PayloadStore]) -> None:
    another_store().check_key()  # nothing is stored yet
    store.put("X", np.ones((50, 6)), what="X")
    another_store().check_key()


def test_a_forged_payload_of_someone_who_can_write_to_the_database_is_refused(
    bomb: Bomb, database: Database, another_store: Callable[..., PayloadStore]
) -> None:
    forger = another_store(secret_key=SecretStr("the key of somebody else"))
    digest = forger.put("evaluation", bomb, what="estimator")

    with pytest.raises(PayloadSignatureError):
        another_store().get("evaluation", digest)
    assert not bomb.file.exists()


def test_a_chunk_that_was_added_is_not_read(
    armed: str, bomb: Bomb, database: Database, another_store: Callable[..., PayloadStore]
) -> None:
    with database.write() as connection:
        last = connection.execute(select(func.max(PayloadChunk.position))).scalar_one()
        connection.execute(insert(PayloadChunk).values(digest=armed, position=last + 1, content=b"x"))

    another_store().get("evaluation", armed)

    assert bomb.file.exists()


# what lies in the cache


def test_what_another_key_signed_is_refused_from_the_cache_as_well(
    bomb: Bomb, database_settings: Settings, another_store: Callable[..., PayloadStore]
) -> None:
    forger = another_store(secret_key=SecretStr("the key of somebody else"))
    digest = forger.put("evaluation", bomb, what="estimator")
    forger.get("evaluation", digest)
    bomb.file.unlink()
    assert [file.name for file in cache_files(database_settings)] == [digest]

    with pytest.raises(PayloadSignatureError, match=digest[:12]):
        another_store().get("evaluation", digest)

    assert not bomb.file.exists()


def test_a_forged_signature_is_refused_though_the_cache_has_the_content(
    armed: str, bomb: Bomb, database: Database, another_store: Callable[..., PayloadStore]
) -> None:
    another_store().get("evaluation", armed)
    bomb.file.unlink()
    with database.write() as connection:
        _flip_signature(connection, armed)

    with pytest.raises(PayloadSignatureError, match=armed[:12]):
        another_store().get("evaluation", armed)

    assert not bomb.file.exists()


def test_an_object_that_is_loaded_is_no_object_of_another_kind(store: PayloadStore) -> None:
    digest = store.put("X", np.ones(3), what="X")
    store.get("X", digest)

    with pytest.raises(PayloadSignatureError, match="is a 'X', not a 'evaluation'"):
        store.get("evaluation", digest)


# names out of SQL that become names of files


@pytest.mark.parametrize(
    "name", ["{folder}/precious", "../precious", "precious", "", ".", "A" * 64, "0" * 63, "0" * 64 + "\n", "０" * 64]
)
def test_what_is_no_digest_names_no_file(
    name: str, tmp_path: Path, database_settings: Settings, database: Database
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    precious = [tmp_path / "precious", tmp_path / "cache" / "precious"]
    for file in precious:
        file.write_text("kept")
    name = name.format(folder=tmp_path)

    with pytest.raises(PayloadError, match="can't be the digest of a payload, which has 64 hexadecimal digits"):
        PayloadStore(database, database_settings).get("candidates", name)
    cache = HostCache(tmp_path / "cache", 1_000)
    for use in (cache.forget, lambda name: cache.opened(name, lambda _: None).__enter__()):
        with pytest.raises(PayloadError, match="can't be the digest of a payload"):
            use(name)

    assert [file.read_text() for file in precious] == ["kept", "kept"]


# the check of the key, at every start


def test_a_forged_payload_stops_no_start_and_is_not_fetched(
    store: PayloadStore, database: Database, another_store: Callable[..., PayloadStore]
) -> None:
    store.put("X", np.ones(3), what="X")
    with database.write() as connection:
        connection.execute(insert(Payload).values(digest="f" * 64, kind="X", size=1, signature="f" * 64))
        chunk = {"digest": "f" * 64, "content": b"x" * 20_000_000}
        connection.execute(insert(PayloadChunk).values([{**chunk, "position": position} for position in range(3)]))
    starting = another_store()
    tracemalloc.start()
    try:
        starting.check_key()
        with pytest.raises(PayloadSignatureError, match="ffffffffffff"):
            starting.get("X", "f" * 64)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 5_000_000


def test_the_first_payload_says_which_key_is_the_fleet_s(
    bomb: Bomb, store: PayloadStore, database: Database, another_store: Callable[..., PayloadStore]
) -> None:
    store.put("X", np.ones(3), what="X")
    stranger = another_store(secret_key=SecretStr("another key of the fleet"))

    with pytest.raises(PayloadSignatureError, match="the fleet's payloads were not signed with this process's key"):
        stranger.put("evaluation", bomb, what="estimator")

    assert count(database, Payload) == count(database, PayloadChunk) == 1


def test_a_store_needs_a_key(another_store: Callable[..., PayloadStore]) -> None:
    with pytest.raises(SettingsError, match="neither GRIDFLEET_PUBLIC_KEY nor GRIDFLEET_SECRET_KEY is set"):
        another_store(secret_key=None)


def test_content_of_another_format_is_refused() -> None:
    with pytest.raises(PayloadError, match="not a payload"):
        load(memoryview(pickle.dumps(1)))
