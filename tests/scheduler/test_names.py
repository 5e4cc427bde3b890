"""What a search is called that is run again, and what its name then stands for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC
from sqlalchemy import text

from gridfleet import GridSearchCV, open_search, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.store import store
from gridfleet.storage.errors import NameTakenError
from gridfleet.storage.searches import numbered_name
from gridfleet.storage.settings import Settings

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2


@pytest.fixture
def connected(fleet: Settings) -> Fleet:
    """Connect to the fleet; it has no workers."""
    return fleets.connect()


class StoredError(Exception):
    """Leaves fit once the search is stored."""


def run(connected: Fleet, name: str, space: dict[str, list[Any]] | None = None) -> SearchHandle:
    """Store a search as ``fit`` does, without waiting for it."""
    stored: list[SearchHandle] = []

    def store_only(request: Any) -> Any:
        stored.append(store(connected, request, name=name, options=SearchOptions(), numbered=True))
        raise StoredError

    with pytest.raises(StoredError):
        fit_with(FleetBackend(store_only), GridSearchCV(SVC(), space or {"C": [1, 10]}, cv=2, verbose=0), X, Y)
    return stored[0]


def in_view(connected: Fleet, name: str) -> list[tuple[Any, ...]]:
    with connected.database.read() as connection:
        query = 'SELECT t.search_id, COUNT(*) FROM "%s" v JOIN trials t ON t.id = v.trial_id GROUP BY t.search_id'
        return [tuple(row) for row in connection.execute(text(query % name))]


def test_a_search_run_again_gets_the_next_free_name_and_the_view_shows_it(connected: Fleet) -> None:
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="First-3")
    # by their names
    spaces = {"first": {"C": [1, 10]}, "first-2": {"C": [1]}, "first-4": {"kernel": ["rbf", "linear"], "gamma": [1, 2]}}

    names = [
        run(connected, name, space).name
        for name, space in zip(("first", "First", "first"), spaces.values(), strict=True)
    ]

    assert names == list(spaces)
    assert in_view(connected, "first") == in_view(connected, "first-4") == [(4, 4)]
    assert in_view(connected, "first-2") == [(3, 1)]
    # by name as in SQL; each by its own name and by its id as well
    assert [reader.find_search(connected.database, asked).id for asked in ("FIRST", "first-2", "first-4", 2)] == [
        4,
        3,
        4,
        2,
    ]
    assert open_search("first").name == "first-4"


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("x" * 63, "x" * 61 + "-2"),
        ("search", "search_2"),
        ("a_b", "a_b-2"),
    ],
)
def test_the_next_name_is_one_that_a_search_may_have(connected: Fleet, name: str, again: str) -> None:
    assert [run(connected, name).name for _ in range(2)] == [name, again]
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y)  # search-3 is free

    assert numbered_name("x" * 63, "-round-2") == "x" * 55 + "-round-2"


def test_searches_of_one_name_at_the_same_time_all_get_one(connected: Fleet) -> None:
    barrier = Barrier(6)

    def run_one(_: int) -> SearchHandle:
        barrier.wait()
        return run(connected, "racing")

    with ThreadPoolExecutor(6) as threads:
        handles = list(threads.map(run_one, range(6)))

    assert sorted(handle.name for handle in handles) == ["racing", *(f"racing-{number}" for number in range(2, 7))]
    newest = max(handles, key=lambda handle: handle.id)
    assert in_view(connected, "racing") == [(newest.id, 2)]
    assert newest.name == "racing-6"


def test_a_view_that_others_made_views_of_keeps_its_columns_and_warns(connected: Fleet) -> None:
    run(connected, "first")
    if connected.database.dialect == "sqlite":
        pytest.skip("SQLite's views are texts, which depend on nothing")
    with connected.database.write() as connection:
        connection.execute(text('CREATE VIEW mine AS SELECT "C", mean_test_score FROM first'))

    run(connected, "first")  # of the same hyperparameters
    assert in_view(connected, "first") == [(2, 2)]
    with pytest.warns(UserWarning, match="the view 'first' goes on to show an earlier search.*'first-3'") as warned:
        run(connected, "first", {"gamma": [1]})

    assert in_view(connected, "first") == [(2, 2)]
    assert in_view(connected, "first-3") == [(3, 1)]
    assert warned[0].filename == __file__


def test_submit_gives_the_handle_of_an_equal_search_where_it_may(connected: Fleet) -> None:
    first = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="pima")

    again = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="Pima", load_if_exists=True)
    other = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="iris", load_if_exists=True)

    assert (again.id, again.name) == (first.id, "pima")
    assert (other.id, other.name) == (first.id + 1, "iris")
    with pytest.raises(NameTakenError, match=r"name='pima' is taken by search 1 .*give load_if_exists=True"):
        submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="pima")


@pytest.mark.parametrize(
    ("search", "data", "differs"),
    [
        (GridSearchCV(SVC(), {"C": [1, 2]}, cv=2), X, "number of combinations: 1 there, 2 here"),
        (GridSearchCV(SVC(), {"C": [1]}, cv=3), X + 1, "X"),
        (GridSearchCV(SVC(gamma=1), {"C": [1]}, cv=2), X, "estimator's gamma: 'scale' there, 1 here"),
        (GridSearchCV(SVC(), {"C": [1]}, cv=2, fit_mode="xla"), X, "fit_mode: exact there, xla here"),
    ],
    ids=["combinations", "data", "estimator", "mode"],
)
def test_submit_says_what_differs_from_the_search_of_that_name(
    connected: Fleet, search: GridSearchCV, data: Any, differs: str
) -> None:
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="pima")

    with pytest.raises(NameTakenError, match=f"taken by search 1, which differs in {differs}; choose another$"):
        submit(search, data, Y, name="pima", load_if_exists=True)
