"""Searches and search files of absurd size: one sentence, before memory is taken for them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.model_selection import (
    LeaveOneOut,
    LeavePOut,
    ParameterGrid,
    ParameterSampler,
    RepeatedKFold,
    ShuffleSplit,
)
from sklearn.svm import SVC

from gridfleet import GridSearchCV, RandomizedSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.search_file.description import parse
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.submission.sizes import MAX_COMBINATIONS, MAX_COUNTED, MAX_FITS, MAX_SPLITS
from gridfleet.storage.errors import InvalidSearchError
from tests.faults.support import X, Y

#: Seconds within which a refusal comes; making a billion combinations takes hours.
AT_ONCE_S = 30
#: MB by which a refusal may make this process grow.
LITTLE_MB = 100

BILLION = {f"a{number}": list(range(10)) for number in range(9)}


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first combination or split that is made: with all of them, a missing check would show in hours."""

    def make(*_: Any) -> Iterator[Any]:
        raise AssertionError("what should be counted is made")

    for kind in (ParameterGrid, ParameterSampler):
        monkeypatch.setattr(kind, "__iter__", make)
    for kind in (LeaveOneOut, LeavePOut, RepeatedKFold, ShuffleSplit):
        monkeypatch.setattr(kind, "split", make)


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize("start", [submit, lambda search, X, y: search.fit(X, y)], ids=["submit", "fit"])
@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GridSearchCV(SVC(), BILLION), "param_grid has 1000000000 combinations"),
        (lambda: GridSearchCV(SVC(), [{"C": [1]}, BILLION]), "param_grid has 1000000001 combinations"),
        (lambda: GridSearchCV(SVC(), {f"a{n}": [1, 2] for n in range(200)}), f"param_grid has {2**200} combinations"),
        (lambda: RandomizedSearchCV(SVC(), {"C": [1]}, n_iter=10**9), "n_iter=1000000000 draws"),
        (lambda: GridSearchCV(SVC(), {"C": [1]}, cv=ShuffleSplit(10**8)), "cv asks for 100000000 splits"),
        (lambda: GridSearchCV(SVC(), {"C": [1]}, cv=RepeatedKFold(n_repeats=10**8)), "cv asks for 500000000 splits"),
        (lambda: GridSearchCV(SVC(), {"C": [1]}, cv=10**5000), "cv asks for more than"),
        (lambda: GridSearchCV(SVC(), {"C": list(range(1, 1002))}, cv=ShuffleSplit(1000)), "are 1001000 fits"),
        (
            lambda: RandomizedSearchCV(SVC(), {"C": [1]}, n_iter=100_000, cv=RepeatedKFold(n_splits=11)),
            "100000 combinations on 110 splits are 11000000 fits",
        ),
        (lambda: RandomizedSearchCV(SVC(), {f"a{n}": [1, 2] for n in range(200)}), "can't draw"),
    ],
)
def test_an_absurdly_large_search_is_refused_before_it_is_expanded(
    fleet: Fleet, make: Callable[[], Any], sentence: str, start: Callable[..., Any]
) -> None:
    begin, before = time.monotonic(), _megabytes()

    with pytest.raises(InvalidSearchError, match=sentence) as refused:
        start(make(), X, Y)

    assert "\n" not in str(refused.value)
    assert any(str(bound) in str(refused.value) for bound in (MAX_COMBINATIONS, MAX_SPLITS, MAX_FITS, MAX_COUNTED))
    assert time.monotonic() - begin < AT_ONCE_S
    assert _megabytes() - before < LITTLE_MB


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize("backend", ["sqlite"])
def test_scikit_learn_s_own_search_is_refused_as_well_when_it_is_submitted(fleet: Fleet) -> None:
    with pytest.raises(InvalidSearchError, match="1000000000 combinations"):
        submit(model_selection.GridSearchCV(SVC(), BILLION), X, Y)


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("cv", "n_rows", "sentence"),
    [
        (LeavePOut(20_000), 50_000, "cv asks for more than"),
        (LeavePOut(3), 100, "cv asks for 161700 splits"),
        (LeaveOneOut(), 10_001, "cv asks for 10001 splits"),
        (ShuffleSplit(1_000), 1_000_001, "1000 splits of 1000001 rows"),
    ],
)
def test_splits_of_much_data_are_counted_and_not_made(fleet: Fleet, cv: Any, n_rows: int, sentence: str) -> None:
    begin, before = time.monotonic(), _megabytes()

    with pytest.raises(InvalidSearchError, match=sentence):
        submit(GridSearchCV(SVC(), {"C": [1]}, cv=cv), np.zeros((n_rows, 1)), np.arange(n_rows) % 2)

    assert time.monotonic() - begin < AT_ONCE_S
    assert _megabytes() - before < LITTLE_MB


@pytest.mark.parametrize(
    "cv",
    [
        "100000000",
        "9" * 900,
        "{splitter: ShuffleSplit, n_splits: 100000000}",
        "{splitter: RepeatedKFold, n_splits: 1000, n_repeats: 1000}",
        "{splitter: StratifiedShuffleSplit, n_splits: 1.0e+8}",
        "{splitter: ShuffleSplit, n_splits: many}",
    ],
)
def test_a_search_file_asks_for_no_more_splits_than_there_may_be(tmp_path: Path, cv: str) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(f"model: sklearn.svm:SVC\ndata: {{file: a.csv, target: b}}\nspace: {{C: [1]}}\ncv: {cv}\n")

    with pytest.raises(InvalidSearchError, match="line 4: `cv") as refused:
        parse(read_document(file))

    assert "splits" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: " + "9" * 5_000, "line 1, column 4: an integer of more than 1000 digits"),
        ("a: !!timestamp yesterday", "the tag 'tag:yaml.org,2002:timestamp' is not one of a search file"),
        ("a: !!int one", "'one' is no int"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!binary '%'", "the tag"),
        ("a: !!python/object/apply:os.system [id]", "the tag"),
        ("? [a]\n: b", "a key has to be a single value"),
        ("a: " + "x" * 5_000_000, "has more than 5000000 bytes"),
        (
            "a: &a [x, x]\n"
            + "".join(
                f"{c}: &{c} [*{p}, *{p}]\n"
                for p, c in zip("abcdefghijklmnopqrstuvwx", "bcdefghijklmnopqrstuvwxy", strict=True)
            ),
            "has more than 100000 values",
        ),
        ("a: &a [*a]", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        ("a: b\x00", "is not YAML: unacceptable character #x0000"),
        ("a: \x1b[2J", "is not YAML: unacceptable character #x001b"),
        ("a: \ud83d", "is not"),
    ],
    ids=[
        *("an integer", "a time", "no integer", "no truth", "bytes", "Python", "a key of several", "five megabytes"),
        "aliases of aliases",
        "an alias in itself",
        "deep",
        "a NUL",
        "an escape sequence",
        "half a character",
    ],
)
def test_a_search_file_that_is_a_trap_is_refused_in_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "search.yaml"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    begin = time.monotonic()

    with pytest.raises(InvalidSearchError, match=sentence) as refused:
        read_document(file)

    assert str(refused.value).isprintable()
    assert time.monotonic() - begin < AT_ONCE_S


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
