"""The cache of a host: private, bounded, and fetched once for all its processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads import digest as digest_module
from gridfleet.storage.payloads import store as store_module
from gridfleet.storage.payloads.host_cache import HostCache, cache_folder
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import Settings
from tests.storage.conftest import cache_files, get_sum, race

RANDOM = np.random.default_rng(0)


C_ORDER = RANDOM.normal(size=(50, 6))


def test_processes_that_load_the_same_object_at_once_share_one_file(
    database_settings: Settings, store: PayloadStore
) -> None:
    array = RANDOM.normal(size=(500, 500))
    digest = store.put("X", array, what="X")

    sums = race(database_settings, get_sum, [(database_settings, digest)] * 4)

    assert set(sums) == {float(array.sum())}
    assert [file.name for file in cache_files(database_settings)] == [digest]


def test_a_content_is_hashed_once_in_each_process_as_it_is_fetched_or_from_the_cache(
    store: PayloadStore, another_store: Callable[..., PayloadStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put("X", C_ORDER, what="X")
    from_the_cache = []

    def digest_of(content: Sequence[memoryview]) -> str:
        from_the_cache.append(content)
        return digest_module.digest_of(content)

    monkeypatch.setattr(store_module, "digest_of", digest_of)

    another_store().get("X", digest)
    assert from_the_cache == []
    another_store().get("X", digest)
    assert len(from_the_cache) == 1


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


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_cache_that_others_can_write_to_is_refused(
    mode: int, database_settings: Settings, store: PayloadStore
) -> None:
    digest = store.put("X", C_ORDER, what="X")
    store.get("X", digest)
    store = PayloadStore(store._database, database_settings)
    database_settings.cache_dir.chmod(mode)

    with pytest.raises(PayloadError, match="GRIDFLEET_CACHE_DIR"):
        store.get("X", digest)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_cache_of_another_user_is_refused(database_settings: Settings, store: PayloadStore) -> None:
    digest = store.put("X", C_ORDER, what="X")
    database_settings.cache_dir.mkdir()
    os.chown(database_settings.cache_dir, 65_534, 65_534)

    with pytest.raises(PayloadError, match="belongs to another user"):
        store.get("X", digest)


def _let_others_write(file: Path) -> None:
    file.chmod(0o664)


def _put_a_link_in_its_place(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _put_a_pipe_in_its_place(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, mode=0o600)


@pytest.mark.parametrize("change", [_let_others_write, _put_a_link_in_its_place, _put_a_pipe_in_its_place])
def test_a_cached_file_that_others_could_change_is_fetched_again(
    change: Callable[[Path], None],
    database_settings: Settings,
    store: PayloadStore,
    another_store: Callable[..., PayloadStore],
) -> None:
    """What is mapped shows what is written into its file later, when it was checked."""
    digest = store.put("X", C_ORDER, what="X")
    another_store().get("X", digest)
    (file,) = cache_files(database_settings)
    change(file)

    assert np.array_equal(another_store().get("X", digest), C_ORDER)

    assert stat.S_IMODE(file.lstat().st_mode) == 0o600
    assert stat.S_ISREG(file.lstat().st_mode)


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


def test_what_a_killed_download_of_the_same_payload_left_is_removed(
    database_settings: Settings, store: PayloadStore
) -> None:
    digest = store.put("X", C_ORDER, what="X")
    database_settings.cache_dir.mkdir(mode=0o700)
    (database_settings.cache_dir / f"part-{digest}-abc").write_bytes(b"half")

    store.get("X", digest)

    assert not list(database_settings.cache_dir.glob("part-*"))


def test_a_payload_does_not_wait_for_another_that_is_being_fetched(database_settings: Settings, tmp_path: Path) -> None:
    cache = HostCache(tmp_path / "cache", 1_000_000)
    slow, quick = "0" * 64, "1" * 64

    def fill_slowly(file: IO[bytes]) -> None:
        file.write(b"slow")
        # meanwhile, to its end, with room made and what is left removed
        with cache.opened(quick, lambda other: other.write(b"quick") and None) as other:
            assert other.read() == b"quick"

    with cache.opened(slow, fill_slowly) as file:
        assert file.read() == b"slow"


def test_only_files_with_the_name_of_a_payload_are_removed(
    database_settings: Settings, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    store.get("X", store.put("X", C_ORDER, what="X"))
    others = [database_settings.cache_dir / name for name in ("Z" * 64, "notes of somebody".ljust(64, "."), "notes")]
    for other in others:
        other.write_bytes(b"x" * 1_500_000)

    another_store(cache_size_mb=1).get("X", store.put("X", RANDOM.bytes(400_000), what="X"))

    assert all(other.exists() for other in others)


def test_the_cache_folder_is_configured_or_the_users_own(database_settings: Settings) -> None:
    assert cache_folder(database_settings) == database_settings.cache_dir
    embedded = Settings(home=Path("somewhere"))
    assert cache_folder(embedded) == Path("somewhere/cache").absolute()
    fleet = database_settings.replace(cache_dir=None)
    assert cache_folder(fleet).name == "gridfleet"
