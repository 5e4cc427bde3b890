"""What is said of the code that travels with a search, and which combinations travel with the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.submission.store import _may_share_objects, _say_size
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.payloads.store import PreparedPayload
from gridfleet.storage.schema import Search
from gridfleet.storage.settings import Settings
from gridfleet.storage.tags import tags_of
from gridfleet.storage.texts import text_of
from gridfleet.storage.versions import THIS_PYTHON

FEATURES, CLASSES = np.zeros((12, 2)), np.arange(12) % 2


@pytest.mark.parametrize(
    ("size", "is_stored", "said"),
    [(2_500_000, False, True), (2_500_000, True, False), (900_000, False, False)],
    ids=["much", "much and stored", "little"],
)
def test_the_size_of_much_code_is_said_once(
    size: int, is_stored: bool, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_size(PreparedPayload("0" * 64, "sources", [memoryview(bytes(size))], "", is_stored=is_stored), 12)

    sentence = "gridfleet: the script's own modules and packages travel to the workers once, 2.5 MB in 12 files; "
    assert capsys.readouterr().err.startswith(sentence) is said


@pytest.mark.parametrize(
    ("value", "may"),
    [
        (1, False),
        (None, False),
        (np.float32(0.5), False),
        ((10, (5, "a")), False),
        ((10, len), True),
        (len, True),
        ([1], True),
        (object(), True),
    ],
)
def test_functions_and_objects_travel_with_the_estimator_that_may_compare_them(value: Any, may: bool) -> None:
    assert _may_share_objects({"value": value}) is may


def test_only_functions_of_the_script_need_the_python_that_they_were_made_by(
    fleet: Settings, database: Database
) -> None:
    function = eval("lambda X: X", {"__name__": "__main__"})

    plain = submit(GridSearchCV(SVC(), {"C": [1]}), FEATURES, CLASSES)
    own = submit(GridSearchCV(make_pipeline(FunctionTransformer(function), SVC()), {"svc__C": [1]}), FEATURES, CLASSES)

    with database.read() as connection:
        needs = [
            connection.execute(select(Search.needs_python).where(Search.id == handle.id)).scalar_one()
            for handle in (plain, own)
        ]
    assert needs == [None, THIS_PYTHON]


def test_what_a_search_is_found_by_and_ran_is_stored_with_it(fleet: Settings, database: Database) -> None:
    grid = GridSearchCV(SVC(), {"C": [1]}, tags={"dataset": "zeros", "by": "grid"}, keep_curves=False)

    handle = submit(grid, FEATURES, CLASSES, tags={"by": "submit", "run": 1})

    assert tags_of(database, [handle.id]) == {handle.id: {"dataset": "zeros", "by": "submit", "run": "1"}}
    with database.read() as connection:
        columns = (Search.keep_curves, Search.packages_digest)
        keeps, digest = connection.execute(select(*columns).where(Search.id == handle.id)).one()
    assert keeps is False
    assert "scikit-learn==" in (text_of(database, digest) or "")
    for wrong, sentence in (({"tags": {"a b": 1}}, "has the key 'a b'"), ({"keep_curves": 0}, "keep_curves=0 must be")):
        with pytest.raises(InvalidSearchError, match=sentence):
            submit(GridSearchCV(SVC(), {"C": [1]}, **wrong), FEATURES, CLASSES)
    with pytest.raises(InvalidSearchError, match="tags=7 is no dict"):
        submit(GridSearchCV(SVC(), {"C": [1]}), FEATURES, CLASSES, tags=7)
