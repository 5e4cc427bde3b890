"""Contents are cut into chunks and joined again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads import contents
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Payload, PayloadChunk
from tests.storage.conftest import count

RANDOM = np.random.default_rng(0)


C_ORDER = RANDOM.normal(size=(50, 6))


@pytest.fixture
def travelled(store: PayloadStore, another_store: Callable[..., PayloadStore]) -> Callable[[Any], Any]:
    """Store an object and load it elsewhere."""

    def travel(obj: Any) -> Any:
        return another_store().get("X", store.put("X", obj, what="X"))

    return travel


def test_large_objects_are_cut_into_chunks(
    database: Database,
    store: PayloadStore,
    another_store: Callable[..., PayloadStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 1_000)
    value = {"a": C_ORDER, "b": b"\x01" * 777, "c": np.arange(1_000)}

    digest = store.put("X", value, what="X")

    with database.read() as connection:
        sizes = [
            len(content)
            for content in connection.execute(select(PayloadChunk.content).order_by(PayloadChunk.position)).scalars()
        ]
        size = connection.execute(select(Payload.size).where(Payload.digest == digest)).scalar_one()
    assert len(sizes) > 10
    assert set(sizes[:-1]) == {1_000}
    assert 0 < sizes[-1] <= 1_000
    assert sum(sizes) == size
    found = another_store().get("X", digest)
    assert np.array_equal(found["a"], C_ORDER)
    assert found["b"] == value["b"]
    assert np.array_equal(found["c"], value["c"])


@pytest.mark.parametrize("n_bytes", [999, 1_000, 1_001, 2_000])
def test_chunks_hold_whatever_the_remainder(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 1_000)
    content = [memoryview(bytes(range(100))), memoryview(np.arange(n_bytes - 100, dtype=np.uint8))]

    chunks = list(contents.chunks(content))

    assert b"".join(chunks) == b"".join(content)
    assert [len(chunk) for chunk in chunks[:-1]] == [1_000] * (len(chunks) - 1)


def test_chunks_of_a_large_array_are_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 1_000)
    large = np.arange(5_500, dtype=np.uint8)

    first, *whole, last = contents.chunks([memoryview(bytes(100)), memoryview(large)])

    assert all(np.shares_memory(np.frombuffer(chunk, np.uint8), large) for chunk in whole)
    assert (len(first), len(whole), len(last)) == (1_000, 4, 600)


@pytest.mark.parametrize("n_bytes", [0, 1, 999, 1_000, 1_001, 2_500, 5_000])
def test_no_more_is_read_of_a_content_than_was_signed(
    n_bytes: int, database: Database, store: PayloadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "CHUNK_BYTES", 1_000)
    digest = store.put("X", RANDOM.bytes(2_000), what="X")
    with database.write() as connection:
        connection.execute(update(PayloadChunk).where(PayloadChunk.position > 0).values(content=b"x" * 10_000_000))

    with database.read() as connection:
        read = [len(part) for part in contents.read_content(connection, digest, n_bytes)]

    assert read == ([1_000] if n_bytes >= 1_000 else [])


def test_forty_megabytes_travel(database: Database, travelled: Callable[[Any], Any]) -> None:
    array = RANDOM.integers(0, 255, size=(40, 1_000_000), dtype=np.uint8)

    found = travelled(array)

    assert np.array_equal(found, array)
    assert count(database, PayloadChunk) == 5
