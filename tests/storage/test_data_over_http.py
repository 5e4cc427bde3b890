"""Data at a URL, by fsspec itself: a real HTTP server on loopback, what a host fetches, what a script reads."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gridfleet import DataRef
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.storage.errors import DataNotThereError, InvalidSearchError
from gridfleet.storage.references.host_data import HostData
from gridfleet.storage.settings import Settings
from tests.storage.test_references import ARRAY, FRAME, saved, sha256


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, whole files and ranges of them, and notes the bytes that it sent of each."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, int] = {}
        super().__init__(("127.0.0.1", 0), _Answer)

    def url(self, name: str) -> str:
        """Return where a file of the folder is to be had."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        file = self.server.folder / self.path.rpartition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(content) - 1) if asked and asked[2] else len(content) - 1
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if with_body:
            self.wfile.write(content[first : last + 1])
            self.server.sent[file.name] = self.server.sent.get(file.name, 0) + last - first + 1

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, no_variables: None) -> Settings:
    return Settings(cache_dir=tmp_path / "cache")


def test_an_array_and_a_frame_at_urls_are_fetched_once_a_host_and_verified(server: Server, settings: Settings) -> None:
    FRAME.to_parquet(server.folder / "x.parquet")
    array = DataRef(server.url("X.npy"), sha256=saved(server.folder).sha256)
    frame = DataRef(server.url("x.parquet"), sha256=sha256(server.folder / "x.parquet"), columns=["a", "b"])
    sizes = {file.name: file.stat().st_size for file in server.folder.iterdir()}

    for _ in range(2):  # two processes of a host
        data = HostData(settings)
        found = data.get(array)
        assert np.array_equal(found, ARRAY)
        assert not found.flags.owndata  # mapped
        pd.testing.assert_frame_equal(data.get(frame), FRAME[["a", "b"]])

    assert server.sent == sizes


def test_what_a_url_has_with_another_digest_is_refused_and_not_kept(server: Server, settings: Settings) -> None:
    saved(server.folder)
    wrong = DataRef(server.url("X.npy"), sha256="a" * 64)

    with pytest.raises(DataNotThereError, match=f"has the digest {sha256(server.folder / 'X.npy')} here"):
        HostData(settings).get(wrong)

    assert not (settings.cache_dir / ("a" * 64)).exists()


def test_a_url_without_a_file_is_told_with_its_argument(server: Server, settings: Settings) -> None:
    missing = DataRef(server.url("X.npy"), sha256="a" * 64)

    with pytest.raises(DataNotThereError, match=r"http://127\.0\.0\.1:\d+/X\.npy can't be read here"):
        HostData(settings).get(missing)
    with pytest.raises(InvalidSearchError, match=r"X: http://127\.0\.0\.1:\d+/X\.npy can't be read here"):
        References(settings, reads_all=False).opened("X", missing)


def test_a_submission_reads_of_an_array_at_a_url_what_says_how_many_rows_it_has(
    server: Server, settings: Settings
) -> None:
    large = np.zeros((2_000_000, 8), np.float32)
    ref = DataRef(server.url("X.npy"), sha256=saved(server.folder, large).sha256)

    X = References(settings, reads_all=False).opened("X", ref)

    assert len(X) == len(large)
    assert 0 < server.sent["X.npy"] < large.nbytes / 4


def test_without_a_digest_the_file_is_read_for_it(server: Server, settings: Settings) -> None:
    digest = saved(server.folder).sha256

    references = References(settings, reads_all=False)
    y = references.opened("y", DataRef(server.url("X.npy")))

    assert np.array_equal(y, ARRAY)
    assert references.sent(y) == DataRef(server.url("X.npy"), sha256=digest)
