"""Data by reference: nothing runs that lies in them, nothing secret is stored of where they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridfleet import DataRef
from gridfleet.storage.errors import GridfleetError, InvalidDataError, InvalidSearchError, PayloadError
from gridfleet.storage.references.host_data import HostData
from gridfleet.storage.settings import Settings
from tests.conftest import give_to_another_user

SECRETS = ("hunter2", "AKIA123", "c2lnbmF0dXJl")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/X.npy",
        "https://hunter2@host/X.npy",
        "s3://AKIA123:hunter2@bucket/X.npy",
        "https://host/X.npy?X-Amz-Signature=c2lnbmF0dXJl",
        "https://host/X.npy?sig=c2lnbmF0dXJl&se=2030",
        "https://host/X.npy#hunter2",
        "HTTPS://user:hunter2@host/X.npy",
        "https://user:hunter2@[host/X.npy",
        "ftp://user:hunter2@host/X.npy",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidSearchError) as refused:
        DataRef(url)

    assert not [secret for secret in SECRETS if secret in str(refused.value)]
    assert refused.value.__cause__ is None


class Runs:
    """A pickle that makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self._file,)


@pytest.fixture
def data(tmp_path: Path, no_variables: None) -> HostData:
    return HostData(Settings(cache_dir=tmp_path / "cache"))


def ref_of(file: Path, **part: Any) -> DataRef:
    return DataRef(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), **part)


def test_no_pickle_in_a_data_file_is_loaded(tmp_path: Path, data: HostData) -> None:
    objects = np.array([Runs(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "X.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "X.npz", X=objects)

    for ref in (ref_of(tmp_path / "X.npy"), ref_of(tmp_path / "X.npz", key="X")):
        with pytest.raises(InvalidDataError, match="could run code"):
            data.get(ref)

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -8), }",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (5,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"(" * 3_000 + b"), }",
        b"__import__('os').abort()",
    ],
    ids=["huge", "negative", "nothing", "nested", "code"],
)
def test_a_header_that_lies_is_refused(header: bytes, tmp_path: Path, data: HostData) -> None:
    file = tmp_path / "X.npy"
    header = header.ljust(118) + b"\n"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))

    with pytest.raises(InvalidDataError):
        data.get(ref_of(file))


def test_digests_are_remembered_in_a_folder_of_this_users_alone(
    tmp_path: Path, data: HostData, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "X.npy", np.arange(3))
    ref = ref_of(tmp_path / "X.npy")
    data.get(ref)
    checked = tmp_path / "cache" / "checked"

    assert {entry.stat().st_mode & 0o077 for entry in checked.iterdir() if len(entry.name) == 64} == {0}
    checked.chmod(0o777)
    with pytest.raises(PayloadError, match="GRIDFLEET_CACHE_DIR"):
        data.get(ref)
    checked.chmod(0o700)
    give_to_another_user(checked, monkeypatch)
    with pytest.raises(GridfleetError, match="another user"):
        data.get(ref)


def test_a_remembered_digest_is_never_that_of_another_file(tmp_path: Path, data: HostData) -> None:
    """Who may write the cache could write a record; whoever renames files must not get one."""
    np.save(tmp_path / "X.npy", np.arange(3))
    np.save(tmp_path / "other.npy", np.arange(3, 6))
    ref = ref_of(tmp_path / "X.npy")
    data.get(ref)
    (tmp_path / "other.npy").replace(tmp_path / "X.npy")

    with pytest.raises(GridfleetError, match=ref.sha256):
        data.get(ref)
