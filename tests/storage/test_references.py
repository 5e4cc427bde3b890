"""Data by reference: what a reference may be, what a host reads of it, and when it looks at the digest again."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gridfleet import DataRef
from gridfleet.storage.errors import DataNotThereError, InvalidDataError, InvalidSearchError, MissingCodeError
from gridfleet.storage.references.host_data import HostData
from gridfleet.storage.settings import Settings
from tests.storage.conftest import race

ARRAY = np.random.default_rng(0).normal(size=(50, 6))
FRAME = pd.DataFrame({"b": [0.1, 0.2, 1 / 3], "a": [1, 2, 3], "kind": ["x", "y", "x"]})


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def saved(folder: Path, array: np.ndarray = ARRAY, name: str = "X.npy") -> DataRef:
    np.save(folder / name, array)
    return DataRef(folder / name, sha256=sha256(folder / name))


@pytest.fixture
def settings(tmp_path: Path, no_variables: None) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


@pytest.fixture
def data(settings: Settings) -> HostData:
    return HostData(settings)


@pytest.mark.parametrize(
    ("location", "options", "sentence"),
    [
        ("X.pickle", {}, "is none of .npy, .npz, .parquet, .csv"),
        ("X", {}, "is none of"),
        ("", {}, "is no path and no URL"),
        (7, {}, "is no path and no URL"),
        ("a\x00.npy", {}, "is no path and no URL"),
        ("X.npz", {}, "name the array"),
        ("X.npz", {"key": 1}, "name the array"),
        ("X.npy", {"key": "X"}, "has no meaning"),
        ("X.npz", {"key": "X", "columns": "a"}, "has no meaning"),
        ("X.csv", {"columns": []}, "give the name of one column"),
        ("X.csv", {"columns": ["a", "a"]}, "different names"),
        ("X.csv", {"columns": [1]}, "give the name of one column"),
        ("X.npy", {"sha256": "abc"}, "sha256sum"),
        ("X.npy", {"sha256": 5}, "sha256sum"),
        ("ftp://host/X.npy", {}, "may be at https, http, s3, gs"),
        ("file:///X.npy", {}, "a path that the workers see"),
        ("https:///X.npy", {}, "names no host"),
    ],
)
def test_what_is_no_reference_is_refused_in_a_sentence(location: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSearchError, match=sentence):
        DataRef(location, **options)


def test_a_path_stays_the_same_wherever_a_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert DataRef("X.npy").location == str(tmp_path / "X.npy")
    assert DataRef(Path("X.npy"), sha256="A" * 64) == DataRef(tmp_path / "X.npy", sha256="a" * 64)
    assert DataRef("s3://bucket/a/X.NPY").format == ".npy"


def test_equal_references_are_equal_pickles() -> None:
    name = "column"
    one = DataRef("/data/x.csv", columns=[name, "other"], sha256="a" * 64)
    same = DataRef("/data/x.csv", columns=("".join(["col", "umn"]), "".join(["oth", "er"])), sha256="A" * 64)

    assert pickle.dumps(one) == pickle.dumps(same)
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    "array",
    [ARRAY, np.asfortranarray(ARRAY), ARRAY.astype(">f4"), np.array(["a", "bc"]), np.arange(5), np.zeros((0, 3))],
    ids=["C", "Fortran", "big-endian", "texts", "integers", "empty"],
)
def test_an_array_is_mapped_as_it_was_saved(array: np.ndarray, tmp_path: Path, data: HostData) -> None:
    found = data.get(saved(tmp_path, array))

    assert type(found) is np.ndarray
    assert (found.dtype, found.flags.f_contiguous) == (array.dtype, array.flags.f_contiguous)
    assert np.array_equal(found, array)
    assert not found.flags.writeable
    assert not found.flags.owndata


def test_the_other_formats_are_read_as_numpy_and_pandas_read_them(tmp_path: Path, data: HostData) -> None:
    np.savez(tmp_path / "stored.npz", X=ARRAY, y=ARRAY[:, 0])
    np.savez_compressed(tmp_path / "packed.npz", X=ARRAY)
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    FRAME.to_parquet(tmp_path / "x.parquet")

    def get(name: str, **part: Any) -> Any:
        return data.get(DataRef(tmp_path / name, sha256=sha256(tmp_path / name), **part))

    assert np.array_equal(get("stored.npz", key="y"), ARRAY[:, 0])
    assert np.array_equal(get("packed.npz", key="X"), ARRAY)
    for name in ("x.csv", "x.parquet"):
        pd.testing.assert_frame_equal(get(name), FRAME)
        pd.testing.assert_frame_equal(get(name, columns=["a", "b"]), FRAME[["a", "b"]])
        pd.testing.assert_series_equal(get(name, columns="kind"), FRAME["kind"])


@pytest.mark.parametrize(
    ("name", "part", "sentence"),
    [
        ("x.npz", {"key": "Y"}, "has no array 'Y'; there are X, y"),
        ("x.csv", {"columns": "kinds"}, "has no column 'kinds'; did you mean 'kind'"),
        ("x.parquet", {"columns": ["a", "bb"]}, "has no column 'bb'"),
        ("objects.npy", {}, "holds Python objects"),
        ("objects.npz", {"key": "X"}, "holds Python objects"),
        ("number.npy", {}, "is a single value"),
        ("cut.npy", {}, "says that it has 2400 bytes, but 2390 are there"),
        ("text.npy", {}, "is no array of numpy that can be read"),
        ("text.npz", {"key": "X"}, "is no .npz file that can be read"),
        ("text.parquet", {}, "is no .parquet file that can be read"),
        ("empty.csv", {}, "is no .csv file that can be read"),
    ],
)
def test_what_a_file_has_not_is_said_in_a_sentence(
    name: str, part: dict[str, Any], sentence: str, tmp_path: Path, data: HostData
) -> None:
    np.savez(tmp_path / "x.npz", X=ARRAY, y=ARRAY)
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    FRAME.to_parquet(tmp_path / "x.parquet")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]))
    np.savez(tmp_path / "objects.npz", X=np.array([{}, {}]))
    np.save(tmp_path / "number.npy", np.float64(1))
    np.save(tmp_path / "cut.npy", ARRAY)
    os.truncate(tmp_path / "cut.npy", (tmp_path / "cut.npy").stat().st_size - 10)
    for kind in ("npy", "npz", "parquet"):
        (tmp_path / f"text.{kind}").write_text("this is none")
    (tmp_path / "empty.csv").touch()

    with pytest.raises(InvalidDataError, match=sentence):
        data.get(DataRef(tmp_path / name, sha256=sha256(tmp_path / name), **part))


def test_a_file_that_is_not_there_or_is_none_is_this_hosts_trouble(tmp_path: Path, data: HostData) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")

    for name, reason in (("X.npy", "No such file"), ("folder.npy", "no regular file"), ("pipe.npy", "no regular file")):
        with pytest.raises(DataNotThereError, match=reason):
            data.get(DataRef(tmp_path / name, sha256="a" * 64))


def test_another_content_is_said_with_both_digests(tmp_path: Path, data: HostData) -> None:
    ref = saved(tmp_path)
    data.get(ref)
    now = saved(tmp_path, ARRAY + 1)

    with pytest.raises(DataNotThereError, match=f"has the digest {now.sha256} here, the search wants {ref.sha256}"):
        data.get(ref)
    with pytest.raises(DataNotThereError, match="another file on this host"):
        data.keep([ref])


def test_a_file_is_read_for_its_digest_once_as_long_as_it_stays(tmp_path: Path, settings: Settings) -> None:
    ref = saved(tmp_path)
    file = tmp_path / "X.npy"
    HostData(settings).get(ref)
    before = file.stat()
    np.save(file, ARRAY + 1)  # in place, of the same size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    changed = HostData(settings).get(ref)  # what nobody can see is not looked for: it was not read again

    assert np.array_equal(changed, ARRAY + 1)
    os.utime(file)
    with pytest.raises(DataNotThereError):
        HostData(settings).get(ref)


def test_a_record_that_is_damaged_is_made_again(tmp_path: Path, settings: Settings) -> None:
    ref = saved(tmp_path)
    HostData(settings).get(ref)
    for record in (settings.cache_dir / "checked").glob("[0-9a-f]*"):
        record.write_bytes(b"\xff\xfe" if record.stat().st_size else b"")

    assert np.array_equal(HostData(settings).get(ref), ARRAY)


def _digest(_: Any, arguments: tuple[Settings, DataRef]) -> str:
    settings, ref = arguments
    return HostData(settings).digest_of(ref)


def test_processes_that_ask_at_once_get_one_digest(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("sqlite")
    ref = saved(tmp_path)

    assert set(race(settings, _digest, [(settings, ref)] * 3)) == {ref.sha256}
    assert len(list((settings.cache_dir / "checked").glob("[0-9a-f]*"))) == 1


def test_what_was_read_stays_for_as_long_as_it_is_asked_for(tmp_path: Path, data: HostData) -> None:
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    ref, other = DataRef(tmp_path / "x.csv", sha256=sha256(tmp_path / "x.csv")), saved(tmp_path)

    first = data.keep([ref])[ref]

    assert data.keep([ref, other])[ref] is first
    data.keep([other])
    assert data.keep([ref])[ref] is not first


class Elsewhere:
    """What stands in for fsspec, which is not installed everywhere: URLs are files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[str] = []

    def open(self, url: str, *, mode: str) -> Any:
        self.opened.append(url)
        return SimpleNamespace(open=lambda: (self.folder / url.rpartition("/")[2]).open(mode))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    stands_in = Elsewhere(folder)
    monkeypatch.setitem(sys.modules, "fsspec", stands_in)
    return stands_in


def test_a_remote_file_is_downloaded_once_a_host_and_mapped(elsewhere: Elsewhere, settings: Settings) -> None:
    ref = DataRef("s3://bucket/X.npy", sha256=saved(elsewhere.folder).sha256)

    found = [HostData(settings).get(ref) for _ in range(3)]

    assert elsewhere.opened == ["s3://bucket/X.npy"]
    assert [file.name for file in settings.cache_dir.iterdir() if len(file.name) == 64] == [ref.sha256]
    assert all(np.array_equal(array, ARRAY) and not array.flags.owndata for array in found)


def test_a_damaged_download_is_fetched_again_and_a_wrong_one_never_kept(
    elsewhere: Elsewhere, settings: Settings
) -> None:
    ref = DataRef("https://host/X.npy", sha256=saved(elsewhere.folder).sha256)
    HostData(settings).get(ref)
    (settings.cache_dir / ref.sha256).write_bytes(b"")

    assert np.array_equal(HostData(settings).get(ref), ARRAY)
    assert len(elsewhere.opened) == 2
    wrong = DataRef("https://host/X.npy", sha256="a" * 64)
    with pytest.raises(DataNotThereError, match=ref.sha256):
        HostData(settings).get(wrong)
    assert not (settings.cache_dir / wrong.sha256).exists()


def test_downloads_stay_within_the_bound_of_the_cache(elsewhere: Elsewhere, settings: Settings) -> None:
    large = saved(elsewhere.folder, np.zeros(200_000))
    with pytest.raises(DataNotThereError, match="more than GRIDFLEET_CACHE_SIZE_MB=1"):
        HostData(settings.replace(cache_size_mb=1)).get(DataRef("gs://bucket/X.npy", sha256=large.sha256))
    for number in range(3):
        half = saved(elsewhere.folder, np.full(70_000, number), f"{number}.npy")
        HostData(settings.replace(cache_size_mb=1)).get(DataRef(f"gs://bucket/{number}.npy", sha256=half.sha256))

    assert len([file for file in settings.cache_dir.iterdir() if len(file.name) == 64]) == 1


def test_a_remote_file_that_can_not_be_read_is_this_hosts_trouble(elsewhere: Elsewhere, settings: Settings) -> None:
    with pytest.raises(DataNotThereError, match=r"s3://bucket/X.npy can't be read here: No such file"):
        HostData(settings).get(DataRef("s3://bucket/X.npy", sha256="a" * 64))


def test_without_fsspec_a_url_names_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)

    with pytest.raises(MissingCodeError, match=r"pip install 'gridfleet\[remote\]'"):
        HostData(settings).digest_of(DataRef("s3://bucket/X.npy"))
