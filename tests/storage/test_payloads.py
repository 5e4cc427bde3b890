"""Objects travel whole, once, and memory-mapped."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import BaseEstimator
from sqlalchemy import select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NotPicklableError, PayloadError
from gridfleet.storage.payloads import contents
from gridfleet.storage.payloads import store as payloads
from gridfleet.storage.payloads.format import _PYTHON, dump, load, size_of
from gridfleet.storage.payloads.host_cache import cache_folder
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Payload, PayloadChunk
from gridfleet.storage.settings import Settings
from tests.storage.conftest import cache_files, count, get_sum, put_array, race

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


def test_code_beside_the_script_travels_by_value(
    database: Database, database_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "layers_of_ours.py").write_text("WIDTH = 20\n\ndef width(n):\n    return WIDTH + n\n")
    (project / "model_of_ours.py").write_text(
        "from layers_of_ours import width\n\nclass Model:\n    def fit(self, n):\n        return width(n) * 2\n"
    )
    monkeypatch.syspath_prepend(project)
    import model_of_ours

    digest = PayloadStore(database, database_settings).put("evaluation", model_of_ours.Model(), what="estimator")

    script = """
        from importlib.util import find_spec
        from gridfleet.storage.database.connection import Database
        from gridfleet.storage.payloads.store import PayloadStore
        from gridfleet.storage.settings import load_settings
        assert find_spec("model_of_ours") is None and find_spec("layers_of_ours") is None
        settings = load_settings()
        print(PayloadStore(Database(settings), settings).get("evaluation", %r).fit(1))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) % digest],
        env={**os.environ, **database_settings.as_variables()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.stdout, answer.stderr) == ("42\n", "")


def test_installed_packages_travel_by_name() -> None:
    content = b"".join(dump("evaluation", scipy.sparse.csr_array, what="class"))

    assert len(content) < 1_000
    assert b"scipy.sparse" in content


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
        size = connection.execute(select(Payload.size)).scalar_one()
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

    chunks = list(contents._chunks(content))

    assert b"".join(chunks) == b"".join(content)
    assert [len(chunk) for chunk in chunks[:-1]] == [1_000] * (len(chunks) - 1)


def test_forty_megabytes_travel(database: Database, travelled: Callable[[Any], Any]) -> None:
    array = RANDOM.integers(0, 255, size=(40, 1_000_000), dtype=np.uint8)

    found = travelled(array)

    assert np.array_equal(found, array)
    assert count(database, PayloadChunk) == 5


def test_processes_that_store_the_same_object_at_once_store_it_once(
    database: Database, database_settings: Settings, another_store: Callable[..., PayloadStore]
) -> None:
    digests = set(race(database_settings, put_array, [(database_settings, 1)] * 4))

    assert len(digests) == count(database, Payload) == count(database, PayloadChunk) == 1
    assert another_store().get("X", digests.pop()).shape == (500, 500)


def test_processes_that_load_the_same_object_at_once_share_one_file(
    database_settings: Settings, store: PayloadStore
) -> None:
    array = RANDOM.normal(size=(500, 500))
    digest = store.put("X", array, what="X")

    sums = race(database_settings, get_sum, [(database_settings, digest)] * 4)

    assert set(sums) == {float(array.sum())}
    assert [file.name for file in cache_files(database_settings)] == [digest]


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


def test_the_cache_removes_the_longest_unused_first(
    database_settings: Settings, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digests = [store.put("X", RANDOM.bytes(400_000), what="X") for _ in range(4)]
    for age, digest in zip((300, 200), digests[:2], strict=True):
        another_store(cache_size_mb=1).get("X", digest)
        file = database_settings.cache_dir / digest
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    another_store(cache_size_mb=1).get("X", digests[0])  # used again: now the second is the longest unused

    another_store(cache_size_mb=1).get("X", digests[2])

    assert {file.name for file in cache_files(database_settings)} == {digests[0], digests[2]}


def test_a_payload_larger_than_the_cache_is_loaded_all_the_same(
    store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    value = RANDOM.bytes(1_500_000)

    assert another_store(cache_size_mb=1).get("X", store.put("X", value, what="X")) == value


def test_an_evicted_array_stays_readable_where_it_is_used(
    database_settings: Settings, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    array = RANDOM.normal(size=100_000)
    small = another_store(cache_size_mb=1)
    used = small.get("X", store.put("X", array, what="X"))

    small.get("X", store.put("X", RANDOM.bytes(900_000), what="X"))

    assert len(cache_files(database_settings)) == 1
    assert np.array_equal(used, array)


def test_the_cache_is_private(database_settings: Settings, store: PayloadStore) -> None:
    store.get("X", store.put("X", C_ORDER, what="X"))

    assert database_settings.cache_dir.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in cache_files(database_settings))


def test_a_cache_that_others_can_write_to_is_refused(database_settings: Settings, store: PayloadStore) -> None:
    digest = store.put("X", C_ORDER, what="X")
    store.get("X", digest)
    store = PayloadStore(store._database, database_settings)
    database_settings.cache_dir.chmod(0o777)

    with pytest.raises(PayloadError, match="GRIDFLEET_CACHE_DIR"):
        store.get("X", digest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_cache_of_another_user_is_refused(database_settings: Settings, store: PayloadStore) -> None:
    digest = store.put("X", C_ORDER, what="X")
    database_settings.cache_dir.mkdir()
    os.chown(database_settings.cache_dir, 65_534, 65_534)

    with pytest.raises(PayloadError, match="belongs to another user"):
        store.get("X", digest)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_cached_file_is_fetched_again(
    damage: str, database_settings: Settings, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digest = store.put("X", C_ORDER, what="X")
    another_store().get("X", digest)
    (file,) = cache_files(database_settings)
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": content[:-100], "flipped": content[:-1] + bytes([content[-1] ^ 1])}[damage])

    assert np.array_equal(another_store().get("X", digest), C_ORDER)
    assert file.read_bytes() == content


def test_what_a_killed_download_left_is_removed(database_settings: Settings, store: PayloadStore) -> None:
    database_settings.cache_dir.mkdir(mode=0o700)
    left = database_settings.cache_dir / "part-of-a-killed-process"
    left.write_bytes(b"half")

    store.get("X", store.put("X", C_ORDER, what="X"))

    assert not left.exists()


# what can't travel


class Optimizer:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Estimator(BaseEstimator):
    def __init__(self, optimizer: Any = None, callbacks: Any = None) -> None:
        self.optimizer = optimizer
        self.callbacks = callbacks


@pytest.mark.parametrize(
    ("estimator", "path"),
    [
        (Estimator(Optimizer()), "optimizer.lock is a lock"),
        (Estimator(callbacks={"log": sys.stderr}), "callbacks.log is a "),
        (Estimator(callbacks=(number for number in range(3))), "callbacks is a generator"),
        (threading.Lock(), "it is a lock"),
    ],
    ids=["attribute of an attribute", "dict", "generator", "itself"],
)
def test_an_object_that_can_not_be_pickled_is_named(estimator: Any, path: str, store: PayloadStore) -> None:
    with pytest.raises(NotPicklableError, match="estimator can't be pickled") as refused:
        store.put("evaluation", estimator, what="estimator")

    assert path in str(refused.value)


def test_code_that_is_not_installed_here_is_named(
    store: PayloadStore, another_store: Callable[..., PayloadStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("a_package_of_the_submitter")
    exec("class Layer: pass\nclass Other: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    layer = store.put("evaluation", module.Layer(), what="estimator")
    other = store.put("evaluation", module.Other(), what="estimator")
    del module.Other

    with pytest.raises(PayloadError, match="Other"):
        another_store().get("evaluation", other)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(PayloadError, match="a_package_of_the_submitter"):
        another_store().get("evaluation", layer)


def test_nothing_is_stored_of_an_object_that_can_not_be_pickled(database: Database, store: PayloadStore) -> None:
    with pytest.raises(NotPicklableError):
        store.put("evaluation", threading.Lock(), what="estimator")

    assert count(database, Payload) == count(database, PayloadChunk) == 0


def test_the_cache_folder_is_configured_or_the_users_own(database_settings: Settings) -> None:
    assert cache_folder(database_settings) == database_settings.cache_dir
    embedded = Settings(home=Path("somewhere"))
    assert cache_folder(embedded) == Path("somewhere/cache")
    fleet = database_settings.replace(cache_dir=None)
    assert cache_folder(fleet).name == "gridfleet"


def test_bytecode_of_another_python_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    by_value = b"".join(dump("X", lambda: 1, what="X"))
    data_only = b"".join(dump("X", np.arange(3), what="X"))
    assert _PYTHON.encode() not in data_only[:200]
    foreign = by_value.replace(f'"python": "{_PYTHON}"'.encode(), b'"python": "2.07"'.ljust(16))

    with pytest.raises(PayloadError, match=r"ran on Python 2\.07, whose bytecode this Python .* can't run"):
        load(memoryview(foreign))
