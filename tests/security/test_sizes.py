"""Searches and search files of absurd size: one sentence, before memory is taken for them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn import model_selection
from sklearn.svm import SVC

from gridfleet import GridSearchCV, RandomizedSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.submission.checks import MAX_COMBINATIONS
from gridfleet.storage.errors import InvalidSearchError
from tests.faults.support import X, Y

#: Seconds within which a refusal comes; making a billion combinations takes hours.
AT_ONCE_S = 30
#: MB by which a refusal may make this process grow.
LITTLE_MB = 100

BILLION = {f"a{number}": list(range(10)) for number in range(9)}


@pytest.mark.parametrize("start", [submit, lambda search, X, y: search.fit(X, y)], ids=["submit", "fit"])
@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GridSearchCV(SVC(), BILLION), "param_grid has 1000000000 combinations"),
        (lambda: GridSearchCV(SVC(), [{"C": [1]}, BILLION]), "param_grid has 1000000001 combinations"),
        (lambda: GridSearchCV(SVC(), {f"a{n}": [1, 2] for n in range(200)}), f"param_grid has {2**200} combinations"),
        (lambda: RandomizedSearchCV(SVC(), {"C": [1]}, n_iter=10**9), "n_iter=1000000000 draws"),
    ],
)
def test_an_absurdly_large_search_is_refused_before_it_is_expanded(
    fleet: Fleet, make: Callable[[], Any], sentence: str, start: Callable[..., Any]
) -> None:
    begin, before = time.monotonic(), _megabytes()

    with pytest.raises(InvalidSearchError, match=sentence) as refused:
        start(make(), X, Y)

    assert "\n" not in str(refused.value)
    assert str(MAX_COMBINATIONS) in str(refused.value)
    assert time.monotonic() - begin < AT_ONCE_S
    assert _megabytes() - before < LITTLE_MB


@pytest.mark.parametrize("backend", ["sqlite"])
def test_scikit_learn_s_own_search_is_refused_as_well_when_it_is_submitted(fleet: Fleet) -> None:
    with pytest.raises(InvalidSearchError, match="1000000000 combinations"):
        submit(model_selection.GridSearchCV(SVC(), BILLION), X, Y)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
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
    ids=["aliases of aliases", "an alias in itself", "deep", "a NUL", "an escape sequence", "half a character"],
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
