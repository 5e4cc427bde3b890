"""What a search is called that is run again, and what its name then stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.svm import SVC
from sqlalchemy import text

from gridfleet import GridSearchCV, open_search, register_joblib_backend, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.store import store
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, NameTakenError
from gridfleet.storage.searches import numbered_name
from gridfleet.storage.settings import Settings, load_settings
from tests.stored_searches import store_pima

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2


@pytest.fixture
def connected(fleet: Settings) -> Fleet:
    """Connect to the fleet; it has no workers."""
    return fleets.connect()


#: What is said of the name of a search that waits.
TAKEN = (
    r"^name 'pima' is taken \(waiting \(no fleet\), 0/1 scored, 1 queued\); read that one with "
    r"open_search\('pima'\), go on with it with "
    r"load_if_exists=True, or give name='pima-2'$"
)


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
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y, name="First-3")
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
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y)  # search-3 is free

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
    first = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y, name="pima")

    again = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y, name="Pima", load_if_exists=True)
    other = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y, name="iris", load_if_exists=True)

    assert (again.id, again.name) == (first.id, "pima")
    assert (other.id, other.name) == (first.id + 1, "iris")
    with pytest.raises(NameTakenError, match=TAKEN):
        submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, refit=False), X, Y, name="pima")


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


@pytest.fixture
def pima_of_before(embedded_home: Path) -> Iterator[None]:
    """Leave the search ``pima`` in a folder whose fleet does not run."""
    folder = Folder(embedded_home / ".gridfleet")
    folder.prepare()
    folder.make_database()
    settings = folder.settings(load_settings(), None)
    database = Database(settings)
    migrations.upgrade(database)
    store_pima(settings, database)
    database.close()


@pytest.mark.usefixtures("pima_of_before")
def test_a_taken_name_is_refused_before_a_fleet_starts(embedded_home: Path, gridfleet: Any) -> None:
    known = r"name 'pima' is taken \(completed \d+ s ago, best 0\.7500\); read that one with "

    with pytest.raises(NameTakenError, match=rf"^{known}open_search\('pima'\), .* or give name='pima-2'$"):
        submit(GridSearchCV(SVC(), {"C": [1]}, cv=2), X, Y, name="pima")
    Path("pima.yaml").write_text('{"model": "sklearn.svm:SVC", "data": {"file": "no.csv"}, "space": {"C": [1]}}')
    status, _, said = gridfleet("submit", "pima.yaml")

    assert (status, bool(re.match(rf"gridfleet: {known}`gridfleet report pima`, .* or give --name pima-2$", said))) == (
        1,
        True,
    )
    assert not (embedded_home / ".gridfleet" / "fleet.log").exists()


def with_joblib(search: GridSearchCV) -> None:
    register_joblib_backend()
    with joblib.parallel_config(backend="gridfleet", name=search.name):
        pass


@pytest.mark.parametrize(
    "run_search",
    [lambda search: search.fit(X, Y), lambda search: submit(search, X, Y), with_joblib],
    ids=["fit", "submit", "joblib"],
)
def test_what_is_no_name_is_refused_before_a_fleet_starts(
    embedded_home: Path, run_search: Callable[[GridSearchCV], object]
) -> None:
    search = GridSearchCV(SVC(), {"C": [1]}, cv=2, name="a/b")

    with pytest.raises(InvalidSearchError, match="'a/b' can't be a search's name"):
        run_search(search)

    assert list(embedded_home.iterdir()) == []
