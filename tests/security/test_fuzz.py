"""Whatever is in a file, a message, a payload's header, a URL or a name: it is taken, or refused in one clear sentence.

A few examples of each in every run, the same each time; ten minutes of new ones in a complete run. What the long one
finds is mended, and kept in `KEPT`.
"""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridfleet.scheduler.reports.plain import plain
from gridfleet.scheduler.reports.reader import find_search
from gridfleet.scheduler.search_file.data import DataFile, read_data
from gridfleet.scheduler.search_file.description import parse
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.submission.checks import _check_param_names, check_name
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, PayloadError, SearchNotFoundError, SettingsError
from gridfleet.storage.params import column_kinds, params_digest, params_to_json
from gridfleet.storage.payloads.format import ALIGNMENT, MAGIC, load
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.message import new_message, why_malformed
from tests.conftest import KEYS as FLEET_KEYS

#: Examples of each target in every run.
FEW = 60
#: Seconds that a complete run looks for new ones, all targets together; examples between looks at the clock.
LONG_S = 600
BETWEEN_LOOKS = 500
#: Words that no error may show.
SECRET = "pl4nted"

INTEGERS = st.integers() | st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**20, 10**400])
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=20) | st.binary(max_size=5).map(str)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
#: How many bytes of a file are changed, and where: a place as a part of its length.
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)


def _changed(content: bytes, changes: list[tuple[float, int]], cut: float = 1.0) -> bytes:
    changed = bytearray(content)
    for place, byte in changes:
        changed[int(place * len(changed))] = byte
    return bytes(changed[: int(cut * len(changed))])


def _one_sentence(error: Exception) -> None:
    assert str(error)
    assert SECRET not in str(error)
    assert plain(str(error)).isprintable()


# ---- payload headers: the pickle behind them is a harmless one, for only what is signed is loaded

HEADERS = (
    JSON
    | st.fixed_dictionaries({"parts": st.lists(INTEGERS, max_size=3) | JSON, "python": st.none() | JSON})
    | st.fixed_dictionaries({"parts": st.lists(st.integers(-100, 100), max_size=4), "python": st.none()})
)


def check_payload_header(drawn: tuple[Any, int, bytes], folder: Path) -> None:
    header, length, magic = drawn
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = magic + (len(written) + length).to_bytes(8, "little", signed=True) + written
    content = start + bytes(-len(start) % ALIGNMENT) + b"N." * 10
    try:
        load(memoryview(content))
    except PayloadError as error:
        _one_sentence(error)


# ---- broker messages

MESSAGE = json.loads(new_message(1, FLEET_KEYS.queue))


@st.composite
def _messages(draw: Any) -> bytes:
    """A message in which one value is another, or that lacks one or has one more."""
    message = json.loads(json.dumps(MESSAGE))
    place = message
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not place[key] or not isinstance(place[key], dict) or draw(st.booleans()):
            break
        place = place[key]
    change = draw(st.sampled_from(["other", "missing", "more"]))
    if change == "missing":
        del place[key]
    else:
        place[draw(st.text(max_size=8)) if change == "more" else key] = draw(JSON)
    return json.dumps(message).encode()


def check_message(raw: bytes, folder: Path) -> None:
    reason = why_malformed(raw, FLEET_KEYS.queue)
    assert reason is None or (reason and reason.isprintable())


# ---- search files

KEYS = (
    *("name", "model", "wrapper", "fit", "random_state", "data", "strategy", "n_iter", "space", "cv", "scoring"),
    *("refit", "fit_mode", "trial_timeout", "search_timeout", "nonsense"),
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["sklearn.svm:SVC", "random", "accuracy", "KFold", "xla", "LeavePOut"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["splitter", "n_splits", "uniform", "randint", "loguniform", "file", "target", "C", "p"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
WHOLE = st.fixed_dictionaries(
    {
        "model": st.just("sklearn.svm:SVC"),
        "data": st.just({"file": "a.csv", "target": 0}),
        "space": st.dictionaries(
            st.sampled_from(["C", "tol"]),
            VALUES
            | st.dictionaries(st.sampled_from(["uniform", "randint", "loguniform"]), st.lists(INTEGERS | st.floats())),
            max_size=2,
        ),
    },
    optional={
        "cv": VALUES
        | st.fixed_dictionaries(
            {"splitter": st.sampled_from(["KFold", "ShuffleSplit", "LeavePOut", "RepeatedKFold", "TimeSeriesSplit"])},
            optional=dict.fromkeys(("n_splits", "n_repeats", "p", "test_size", "random_state", "shuffle"), SCALARS),
        ),
        **{key: VALUES for key in KEYS if key not in ("model", "data", "space", "cv")},
    },
)
YAML_SIGNS = st.text(st.sampled_from("ab01:-,[]{}&*!|>?%@`'\"#\n \t.~<=éx\x85\u2028"), max_size=60)
TAGS = st.sampled_from(
    ["!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!binary", "!!set", "!!omap", "!x", "!"]
)
TAGGED = st.builds("a: {} {}".format, TAGS, st.text(st.sampled_from("0123456789abx-:. []{}"), max_size=12))


def _as_yaml(content: Any) -> str:
    return yaml.safe_dump(content, allow_unicode=True)


SEARCH_FILES = YAML_SIGNS | TAGGED | WHOLE.map(_as_yaml) | st.dictionaries(st.sampled_from(KEYS), VALUES).map(_as_yaml)


def check_search_file(content: str, folder: Path) -> None:
    file = folder / "search.yaml"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        parse(read_document(file))
    except InvalidSearchError as error:
        _one_sentence(error)


# ---- data files


def _samples() -> dict[str, bytes]:
    frame = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [1, 2, 3, 4], "kind": list("xyxy")})
    samples = {}
    for name, options in {"plain": {"compression": None}, "zstd": {"compression": "zstd"}}.items():
        buffer = io.BytesIO()
        frame.to_parquet(buffer, **options)
        samples[f"{name}.parquet"] = buffer.getvalue()
    for name, save in {"stored": np.savez, "deflated": np.savez_compressed}.items():
        buffer = io.BytesIO()
        save(buffer, X=np.arange(8.0).reshape(4, 2), y=np.array([0, 1, 0, 1]))
        samples[f"{name}.npz"] = buffer.getvalue()
    samples["table.csv"] = frame.to_csv(index=False).encode()
    return samples


SAMPLES = _samples()


def _with_footer_byte(place: int, byte: int) -> bytes:
    content = bytearray(SAMPLES["plain.parquet"])
    content[len(content) - 8 - int.from_bytes(content[-8:-4], "little") + place] = byte
    return bytes(content)


CSV_SIGNS = st.text(st.sampled_from("ab01,;\"'\n\r\t -.eE+Nx\x00é"), max_size=80).map(
    lambda text: ("table.csv", text.encode())
)


def _npy(header: str, version: int, tail: bytes) -> bytes:
    head = header.encode("latin-1", "replace")
    size = len(head).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + tail


def _in_archive(entry: bytes) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("X.npy", entry)
        archive.writestr("y.npy", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", 1, bytes(8)))
    return "stored.npz", buffer.getvalue()


NPY_HEADERS = st.builds(
    "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}, }}".format,
    st.sampled_from(
        ["<f8", "|S0", "<U9", "|O", "<M8[s]", "(2,)f8", "nonsense", [("a", "<f8")], [("a", "<f8", (2**40,))]]
    )
    | st.text(max_size=5),
    st.booleans() | st.integers(0, 2),
    st.tuples() | st.tuples(INTEGERS) | st.tuples(INTEGERS, INTEGERS) | st.tuples(st.booleans()) | st.none(),
) | st.text(max_size=40)
DATA_FILES = (
    st.builds(
        lambda name, changes, cut: (name, _changed(SAMPLES[name], changes, cut)),
        st.sampled_from(sorted(SAMPLES)),
        CHANGES,
        st.just(1.0) | st.floats(0, 1),
    )
    | CSV_SIGNS
    | st.builds(_npy, NPY_HEADERS, st.integers(1, 3), st.binary(max_size=16)).map(_in_archive)
)


def check_data_file(drawn: tuple[str, bytes], folder: Path) -> None:
    name, content = drawn
    (folder / name).write_bytes(content)
    target = None if name.endswith(".npz") else -1
    try:
        X, y = read_data(DataFile(file=name, target=target), folder)
    except InvalidSearchError as error:
        _one_sentence(error)
    else:
        assert len(X) == len(y) > 0


# ---- URLs

PARTS = st.text(max_size=8) | st.sampled_from(["host", "[::1", "[::1]", "127.0.0.1", "a%zz", SECRET, "%00", "é"])
URLS = st.text(max_size=20) | st.builds(
    "{}://{}:{}@{}:{}/{}?{}={}".format,
    st.sampled_from(["postgresql", "postgresql+psycopg", "postgresql+x", "sqlite", "sqlite+x", "redis", "rediss", "x"]),
    PARTS.filter(lambda part: SECRET not in part),
    st.just(SECRET),
    PARTS.filter(lambda part: SECRET not in part),
    st.sampled_from(["", "5432", "0", "70000", "-1", "x", "9" * 5_000]),
    PARTS.filter(lambda part: SECRET not in part),
    st.sampled_from(["password", "Password", "sslpassword", "options", "ssl_cert_reqs", "ssl_ca_certs"])
    | st.text(max_size=4).filter(lambda name: name not in ("host", "port")),
    st.just(SECRET),
)


def check_url(url: str, folder: Path) -> None:
    found = Settings(database_url=url, broker_url=url)
    assert SECRET not in repr(found)
    for read in (found.database, found.broker):
        try:
            read()
        except SettingsError as error:
            _one_sentence(error)


# ---- names

NAMES = st.text(max_size=80) | st.sampled_from(["search-1", "pg_x", "trials"]) | INTEGERS


def check_search_name(name: str | int, folder: Path) -> None:
    with suppress(InvalidSearchError):
        check_name(name)
    with suppress(InvalidSearchError):
        _check_param_names([str(name)[:2_000]])
    assert plain(str(name)).isprintable()
    database = closing(Database(Settings(database_url=f"sqlite:///{folder}/names.db")))
    with database as opened, pytest.raises(SearchNotFoundError) as missing:
        find_search(opened, name)
    _one_sentence(missing.value)


def check_params(params: dict[str, Any], folder: Path) -> None:
    shown = params_to_json(params)
    json.dumps(shown, allow_nan=False)
    params_digest(shown)
    column_kinds([shown])


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]] = {
    "payload headers": (
        st.tuples(
            HEADERS, st.just(0) | INTEGERS.filter(lambda n: abs(n) < 2**62), st.just(MAGIC) | st.binary(max_size=12)
        ),
        check_payload_header,
    ),
    "broker messages": (
        _messages() | st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
        check_message,
    ),
    "search files": (SEARCH_FILES, check_search_file),
    "data files": (DATA_FILES, check_data_file),
    "URLs": (URLS, check_url),
    "names": (NAMES, check_search_name),
    "values of hyperparameters": (st.dictionaries(st.text(max_size=8), JSON, max_size=3), check_params),
}

#: What was found once, by target.
KEPT: list[tuple[str, Any]] = [
    ("payload headers", (None, 0, MAGIC)),
    ("payload headers", ({"parts": [-1, 2**40], "python": None}, 0, MAGIC)),
    ("payload headers", ({"parts": [], "python": None}, 2**40, MAGIC)),
    ("search files", "a: !!timestamp yesterday"),
    ("search files", "a: " + "9" * 5_000),
    ("search files", _as_yaml({"model": "a:b", "data": {"file": "a"}, "space": {"C": {"uniform": [0, 10**400]}}})),
    ("search files", _as_yaml({"model": "a:b", "data": {"file": "a"}, "space": {"C": {"randint": [0, 10**30]}}})),
    ("search files", _as_yaml({"cv": {"splitter": "KFold", 5: 5}})),
    # pyarrow's own objects of such a footer end the process
    *(("data files", ("plain.parquet", _with_footer_byte(place, byte))) for place, byte in ((20, 18), (28, 34))),
    ("data files", _in_archive(_npy("(" * 9_000, 1, b""))),
    ("data files", _in_archive(_npy(" " * 70_000, 2, b""))),
    ("URLs", "redis://host:99999/0"),
    ("URLs", f"postgresql:///:{SECRET}@host/fleet"),
    ("URLs", f"rediss://host/0?ssl_keyfile=a&Password={SECRET}"),
    ("names", "half \udcff"),
    ("names", 10**400),
    ("values of hyperparameters", {"C": 10**5_000}),
]


@pytest.fixture(autouse=True)
def _names(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Give the folder a database without searches."""
    template: Path = request.getfixturevalue("sqlite_template")
    (tmp_path / "names.db").write_bytes(template.read_bytes())


def _fuzz(target: str, folder: Path, *, examples: int, seed: int | None = None) -> None:
    strategy, check = TARGETS[target]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        check(drawn, folder)

    (run if seed is None else hypothesis.seed(seed)(run))()


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_clear_refusals(target: str, tmp_path: Path) -> None:
    _fuzz(target, tmp_path, examples=FEW)


@pytest.mark.complete
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_clear_refusals_for_ten_minutes(target: str, tmp_path: Path) -> None:
    until = time.monotonic() + LONG_S / len(TARGETS)
    while time.monotonic() < until:
        seed = random.randrange(2**32)
        print(f"{target}: seed {seed}")
        _fuzz(target, tmp_path, examples=BETWEEN_LOOKS, seed=seed)


@pytest.mark.parametrize(("target", "drawn"), KEPT)
def test_what_was_found_once_is_refused_clearly(target: str, drawn: Any, tmp_path: Path) -> None:
    TARGETS[target][1](drawn, tmp_path)
