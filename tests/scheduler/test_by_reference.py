"""What a submission reads of data at a URL, and what travels in their place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gridfleet import DataRef
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.settings import Settings
from tests.storage.test_references import Elsewhere, elsewhere, sha256

__all__ = ["elsewhere"]
URL = "s3://bucket/x.parquet"


@pytest.fixture
def settings(tmp_path: Path, no_variables: None) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def test_a_file_without_a_digest_is_read_for_it_once(elsewhere: Elsewhere, settings: Settings) -> None:
    pd.DataFrame({"a": [1, 2, 3], "y": [0, 1, 0]}).to_parquet(elsewhere.folder / "x.parquet")
    digest = sha256(elsewhere.folder / "x.parquet")
    references = References(settings, reads_all=False)

    X = references.opened("X", DataRef(URL, columns=["a"]))
    y = references.opened("y", DataRef(URL, columns="y"))

    assert len(elsewhere.opened) == 3  # once for the digest, once for the rows of X, once for y
    assert (len(X), list(y)) == (3, [0, 1, 0])
    assert references.sent(X) == DataRef(URL, sha256=digest, columns=["a"])
    assert references.sent(y) == DataRef(URL, sha256=digest, columns="y")
    assert references.sent(settings) is settings


def test_files_at_urls_that_no_cache_holds_are_refused(elsewhere: Elsewhere, settings: Settings) -> None:
    for name in ("X.npy", "w.npy"):
        np.save(elsewhere.folder / name, np.zeros(70_000))
    references = References(settings.replace(cache_size_mb=1), reads_all=False)
    references.opened("X", DataRef("https://host/X.npy", sha256="a" * 64))

    with pytest.raises(InvalidSearchError, match=r"sample_weight: the files at URLs have 1.1 MB, above GRIDFLEET"):
        references.opened("sample_weight", DataRef("https://host/w.npy", sha256="b" * 64))


def test_without_fsspec_the_sentence_names_the_argument(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)

    with pytest.raises(InvalidSearchError, match=r"X: s3://.* run `pip install 'gridfleet\[remote\]'`"):
        References(settings, reads_all=False).opened("X", DataRef(URL))
