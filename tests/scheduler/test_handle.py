"""What a handle shows of a search, in words, as a table and as frames, while it goes on too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchNotFinishedError
from tests.stored_searches import TRACEBACK, claim, record

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
SPACE = {"C": [1, 2, 3, 4], "kernel": ["rbf"]}


@pytest.fixture
def half_done(fleet: Any, database: Database) -> SearchHandle:
    """Submit a search of four trials, of which two are scored and one has failed."""
    handle = submit(
        GridSearchCV(SVC(), SPACE, cv=2, scoring="accuracy", refit=False, error_score="raise"), X, Y, name="half"
    )
    for number, scores in ((0, (0.5, 0.75)), (1, None), (3, (0.75, 1.0))):
        record(database, claim(database, handle.id, number, "host/7"), scores)
    return handle


def test_a_frame_of_what_is_done_ranks_it_among_itself(half_done: SearchHandle) -> None:
    with pytest.raises(SearchNotFinishedError):
        half_done.to_frame()

    frame = half_done.to_frame(partial=True)

    assert list(frame.index) == [3, 0, 1]  # the trials' numbers, the best first
    assert list(frame["param_C"]) == [4, 1, 2]
    assert list(frame["rank_test_score"]) == [1, 2, 3]
    np.testing.assert_array_equal(frame["mean_test_score"], [0.875, 0.625, np.nan])


def test_before_the_first_trial_has_ended_the_frame_is_empty(fleet: Any) -> None:
    assert submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y).to_frame(partial=True).empty


def test_failures_are_told_as_sql_has_them(half_done: SearchHandle) -> None:
    (failed,) = half_done.failures().to_dict("records")

    assert failed == {
        "number": 1,
        "params": {"C": 2, "kernel": "rbf"},
        "error_type": "ValueError",
        "cause": "ValueError: Could not interpret optimizer identifier: adan",
        "error": TRACEBACK,
        "attempt": 1,
        "worker_id": "host/7",
    }


def test_without_failures_their_frame_has_its_columns(fleet: Any) -> None:
    failures = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y).failures()

    assert failures.empty
    assert "cause" in failures.columns


def test_a_handle_says_what_it_is(half_done: SearchHandle) -> None:
    assert repr(half_done) == (
        "<SearchHandle 'half' (id 1): waiting (no fleet), 2/4 scored, 1 failed, 1 queued, "
        "best accuracy 0.8750 ± 0.1250>"
    )
    assert half_done.state == "waiting"


def test_a_notebook_shows_a_column_for_each_hyperparameter(fleet: Any, database: Database) -> None:
    grid = GridSearchCV(SVC(), [{"kernel": ["<img src=x>"]}, {"C": [None, 7]}], cv=2, refit=False)
    handle = submit(grid, X, Y, name="shown")
    for number in range(3):
        record(database, claim(database, handle.id, number, "host/7"), (0.5, 1 - number / 8))

    shown = handle._repr_html_()

    assert "<th>kernel</th><th>C</th></tr><tr><td>1</td><td>0</td><td>0.7500</td><td>0.2500</td>" in shown
    assert "<td>&lt;img src=x&gt;</td><td></td></tr>" in shown
    assert "<td></td><td>None</td></tr>" in shown
    assert "<img" not in shown
