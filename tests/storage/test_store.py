"""Objects travel whole, once, and memory-mapped."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NotPicklableError, PayloadError
from gridfleet.storage.payloads import store as payloads
from gridfleet.storage.payloads.format import size_of
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Payload, PayloadChunk
from gridfleet.storage.settings import Settings
from tests.storage.conftest import count, put_array, race

RANDOM = np.random.default_rng(0)


C_ORDER = RANDOM.normal(size=(50, 6))


ARRAYS = {
    "C order": C_ORDER,
    "Fortran order": np.asfortranarray(C_ORDER),
    "strided": C_ORDER[::2, ::-2],
    "broadcast": np.broadcast_to(C_ORDER[0], (50, 6)),
    "no dimension": np.array(3.5),
    "no rows": np.empty((0, 4)),
    "float32": C_ORDER.astype(np.float32),
    "big-endian": C_ORDER.astype(">f8"),
    "booleans": C_ORDER > 0,
    "texts": np.array(["a", "bcd"]),
    "times": np.array(["2026-01-01", "NaT"], dtype="datetime64[ns]"),
    "records": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
}


FRAME = pd.DataFrame(
    {
        "number": [1.5, np.nan, 3.0],
        "count": [1, 2, 3],
        "text": ["a", None, "ü"],
        "kind": pd.Categorical(["x", "y", "x"]),
        "day": pd.to_datetime(["2026-01-01", "2026-01-02", None]),
    },
    index=["r0", "r1", "r2"],
)


@pytest.fixture
def travelled(store: PayloadStore, another_store: Callable[..., PayloadStore]) -> Callable[[Any], Any]:
    """Store an object and load it elsewhere."""

    def travel(obj: Any) -> Any:
        return another_store().get("X", store.put("X", obj, what="X"))

    return travel


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


# what travels


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_travel(name: str, travelled: Callable[[Any], Any]) -> None:
    array = ARRAYS[name]

    found = travelled(array)

    assert (type(found), found.dtype, found.shape) == (np.ndarray, array.dtype, array.shape)
    assert np.array_equal(found, array, equal_nan=array.dtype.kind in "fM")


def test_arrays_of_objects_travel(travelled: Callable[[Any], Any]) -> None:
    array = np.array([1, "two", None, (3, 4)], dtype=object)

    found = travelled(array)

    assert found.dtype == object
    assert found.tolist() == [1, "two", None, (3, 4)]


def test_frames_travel(travelled: Callable[[Any], Any]) -> None:
    pd.testing.assert_frame_equal(travelled(FRAME), FRAME)


@pytest.mark.parametrize("column", FRAME.columns)
def test_series_travel(column: str, travelled: Callable[[Any], Any]) -> None:
    pd.testing.assert_series_equal(travelled(FRAME[column]), FRAME[column])


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix", "csr_array", "coo_array"])
def test_sparse_matrices_travel(kind: str, travelled: Callable[[Any], Any]) -> None:
    matrix = getattr(scipy.sparse, kind)(np.where(C_ORDER > 1, C_ORDER, 0))

    found = travelled(matrix)

    assert type(found) is type(matrix)
    assert (found != matrix).nnz == 0


@pytest.mark.parametrize("obj", [None, [], [[1, 2], [3, 4]], ["a", "ü"], (1, 2.5, None), {"a": [1]}, b"\x00" * 70, ""])
def test_plain_objects_travel(obj: Any, travelled: Callable[[Any], Any]) -> None:
    found = travelled(obj)

    assert type(found) is type(obj)
    assert found == obj


def test_dicts_of_arrays_travel(travelled: Callable[[Any], Any]) -> None:
    found = travelled({"image": C_ORDER, "text": C_ORDER.T})

    assert list(found) == ["image", "text"]
    assert np.array_equal(found["image"], C_ORDER)
    assert np.array_equal(found["text"], C_ORDER.T)


# stored once


def test_the_same_object_is_stored_once(
    database: Database, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digests = {
        store.put("X", C_ORDER, what="X"),
        store.put("X", C_ORDER.copy(), what="X"),
        another_store().put("X", C_ORDER, what="X"),
    }

    assert len(digests) == 1
    assert count(database, Payload) == count(database, PayloadChunk) == 1


def test_objects_that_differ_in_a_bit_or_in_kind_are_stored_apart(database: Database, store: PayloadStore) -> None:
    changed = C_ORDER.copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.inf)

    digests = {
        store.put("X", C_ORDER, what="X"),
        store.put("X", changed, what="X"),
        store.put("y", C_ORDER, what="y"),
    }

    assert len(digests) == count(database, Payload) == 3


def test_a_payload_is_of_the_kind_that_is_asked_for(
    store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digest = store.put("X", C_ORDER, what="X")

    with pytest.raises(PayloadError, match="is a 'X', not a 'evaluation'"):
        another_store().get("evaluation", digest)


def test_processes_that_store_the_same_object_at_once_store_it_once(
    database: Database, database_settings: Settings, another_store: Callable[..., PayloadStore]
) -> None:
    digests = set(race(database_settings, put_array, [(database_settings, 1)] * 4))

    assert len(digests) == count(database, Payload) == count(database, PayloadChunk) == 1
    assert another_store().get("X", digests.pop()).shape == (500, 500)


def test_a_prepared_object_is_stored_only_when_it_is_inserted(
    database: Database, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    prepared = store.prepare("X", C_ORDER, what="X")
    assert count(database, Payload) == 0

    assert store.insert(prepared) == prepared.digest == store.insert(prepared)

    assert count(database, Payload) == 1
    assert np.array_equal(another_store().get("X", prepared.digest), C_ORDER)


@pytest.mark.parametrize("make", [np.asarray, pd.DataFrame, lambda large: {"a": large}], ids=["array", "frame", "dict"])
def test_preparing_large_arrays_copies_none(store: PayloadStore, make: Callable[[Any], Any]) -> None:
    large = make(np.ones((1_000, 5_000)))

    tracemalloc.start()
    prepared = store.prepare("X", large, what="X")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size_of(prepared.content) > 40_000_000
    assert peak < 4_000_000


# memory-mapped and cached


@pytest.mark.parametrize(
    "make",
    [
        lambda large: large,
        np.asfortranarray,
        lambda large: large[:, ::2],
        lambda large: {"a": large, "b": 1},
        pd.DataFrame,
        scipy.sparse.csr_array,
    ],
    ids=["C order", "Fortran order", "strided", "dict", "frame", "sparse"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_arrays_are_pages_of_the_cached_file(make: Callable[[Any], Any], travelled: Callable[[Any], Any]) -> None:
    found = travelled(make(RANDOM.normal(size=(1_000, 10))))

    if isinstance(found, dict):
        array = found["a"]
    elif isinstance(found, pd.DataFrame):
        array = found.to_numpy()
    else:
        array = found if isinstance(found, np.ndarray) else found.data
    assert any(start <= array.ctypes.data < end for start, end in _mappings_of_payloads())


def _mappings_of_payloads() -> Iterator[tuple[int, int]]:
    for line in mapped_files().splitlines():
        if len(line.rpartition("/")[2]) == 64:
            start, _, end = line.split()[0].partition("-")
            yield int(start, 16), int(end, 16)


def test_what_a_model_writes_into_its_data_stays_in_its_process(
    store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digest = store.put("X", C_ORDER, what="X")

    another_store().get("X", digest)[:] = 0

    assert np.array_equal(another_store().get("X", digest), C_ORDER)


def test_an_object_is_loaded_once_per_process(store: PayloadStore) -> None:
    digest = store.put("X", C_ORDER, what="X")

    assert store.get("X", digest) is store.get("X", digest)


def test_a_process_keeps_a_bounded_number_of_objects(store: PayloadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "LOADED_OBJECTS", 2)
    digests = [store.put("X", [number], what="X") for number in range(3)]
    first = store.get("X", digests[0])
    second = store.get("X", digests[1])
    assert store.get("X", digests[0]) is first

    store.get("X", digests[2])

    assert store.get("X", digests[0]) is first
    assert store.get("X", digests[1]) is not second


# what can't travel


def test_nothing_is_stored_of_an_object_that_can_not_be_pickled(database: Database, store: PayloadStore) -> None:
    with pytest.raises(NotPicklableError):
        store.put("evaluation", threading.Lock(), what="estimator")

    assert count(database, Payload) == count(database, PayloadChunk) == 0
