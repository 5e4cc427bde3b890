"""Trials whose computation was done before: which ones are found, what they take, and who is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import KFold, ShuffleSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sqlalchemy import select

from gridfleet import GridSearchCV, RandomizedSearchCV, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission import store
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.versions import installed_versions
from tests.scheduler.test_resume import finish, record, trials_of
from tests.warm_scripts import two_hash_seeds

X, Y = np.arange(48.0).reshape(24, 2), np.arange(24) % 2


@pytest.fixture
def connected(fleet: Settings) -> Fleet:
    """Connect to the fleet; it has no workers."""
    return fleets.connect()


def seeded(**params: Any) -> SVC:
    return SVC(random_state=0, **params)


def grid(estimator: Any = None, space: Any = None, **options: Any) -> GridSearchCV:
    options = {"cv": 2, "verbose": 0, "refit": False, "reuse": True, **options}
    return GridSearchCV(estimator or seeded(), space or {"C": [1, 2]}, **options)


def taken(fleet: Fleet, handle: SearchHandle) -> list[int | None]:
    with fleet.database.read() as connection:
        mine = select(Trial.reused_from).where(Trial.search_id == handle.id).order_by(Trial.number)
        return list(connection.execute(mine).scalars())


def no_reuse(fleet: Fleet, handle: SearchHandle) -> str | None:
    with fleet.database.read() as connection:
        return connection.execute(select(Search.no_reuse).where(Search.id == handle.id)).scalar_one()


def test_a_widened_grid_evaluates_what_is_new(
    connected: Fleet, gridfleet: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = submit(grid(reuse=False), X, Y, name="narrow")
    record(connected, narrow.id, 0)
    record(connected, narrow.id, 1, error="it raised")
    first = trials_of(connected, narrow.id)[0]
    capsys.readouterr()

    wide = submit(grid(space={"C": [0.5, 1, 2, 3]}, name="wide"), X, Y)

    assert capsys.readouterr().err == "gridfleet: 1 of 4 trials take results that are there\n"
    assert taken(connected, wide) == [None, first.id, None, None]
    assert [trial.state for trial in trials_of(connected, wide.id)] == ["queued", "completed", "queued", "queued"]
    finish(connected, wide.id)
    again = grid(space={"C": [3, 1]}).fit(X, Y)
    assert list(again.cv_results_["split0_test_score"]) == [3 / 8, 0.0]
    assert list(again.cv_results_["mean_fit_time"]) == [0.5, 0.5]
    _, report, _ = gridfleet("report", "wide")
    assert re.search(r"^  reused +1 result of narrow$", report, re.MULTILINE)
    assert f"the result of trial id {first.id}" in gridfleet("report", "wide", "--trial", "1")[1]


def test_a_search_that_takes_all_its_results_gives_the_same_cv_results(connected: Fleet) -> None:
    first = submit(grid(return_train_score=False), X, Y)
    finish(connected, first.id)

    second = submit(grid(), X, Y)

    assert second.state == "completed"
    assert second.cv_results_.keys() == first.cv_results_.keys()
    for name, values in first.cv_results_.items():
        assert np.array_equal(values, second.cv_results_[name]), name


@pytest.mark.parametrize(
    "other",
    [
        lambda: (grid(seeded(gamma=2)), X, Y),
        lambda: (grid(SVC(random_state=1)), X, Y),
        lambda: (grid(space={"C": [1.0, 2.0]}), X, Y),
        lambda: (grid(), X + 1, Y),
        lambda: (grid(), X, 1 - Y),
        lambda: (grid(cv=3), X, Y),
        lambda: (grid(cv=KFold(2, shuffle=True)), X, Y),
        lambda: (grid(scoring="f1"), X, Y),
        lambda: (grid(return_train_score=True), X, Y),
        lambda: (grid(error_score=0), X, Y),
        lambda: (grid(fit_mode="keras"), X, Y),
    ],
    ids=["parameter", "seed", "type", "X", "y", "cv", "drawn", "scoring", "train-scores", "error_score", "mode"],
)
def test_another_computation_takes_nothing(connected: Fleet, other: Callable[[], Any]) -> None:
    finish(connected, submit(grid(), X, Y).id)
    search, data, target = other()

    assert taken(connected, submit(search, data, target)) == [None, None]


def test_what_decides_no_result_changes_no_key(connected: Fleet) -> None:
    finish(connected, submit(grid(), X, Y).id)
    others = [
        grid(verbose=3, refit=True, n_jobs=2, name="other", trial_timeout=5),
        RandomizedSearchCV(seeded(), {"C": [2, 1]}, n_iter=2, cv=KFold(2), random_state=1, verbose=0, reuse=True),
    ]
    Z = np.array(X, copy=True)

    found = [taken(connected, submit(search, Z, Y)) for search in others]

    assert found == [[1, 2], [2, 1]]  # the splits of this KFold are those of cv=2


def test_another_release_takes_nothing(connected: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(connected, submit(grid(), X, Y).id)
    monkeypatch.setattr(store, "installed_versions", lambda: {**installed_versions(), "keras_version": "9.9"})

    assert taken(connected, submit(grid(), X, Y)) == [None, None]


REFUSED: dict[str, tuple[Any, Any, str | None]] = {
    "none": (SVC(), {"C": [1]}, "SVC has random_state=None, and draws other numbers each time; give it a seed"),
    "in a pipeline": (
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"logisticregression__C": [1]},
        "Pipeline has logisticregression__random_state=None, and draws other numbers each time; give it a seed",
    ),
    "in a combination": (SVC(), {"random_state": [None]}, "SVC has random_state=None, and draws other numbers"),
    "in a value": (
        make_pipeline(StandardScaler(), seeded()),
        {"svc": [RandomForestClassifier()]},
        "Pipeline has svc__random_state=None, and draws",
    ),
    "seed of the combination": (SVC(), {"random_state": [1]}, None),
    "seed of the value": (
        make_pipeline(StandardScaler(), SVC()),
        {"svc": [RandomForestClassifier(random_state=1)]},
        None,
    ),
    "draws nothing": (GaussianNB(), {"var_smoothing": [1e-9]}, None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_draws_without_a_seed_is_refused_with_the_reason(
    connected: Fleet, gridfleet: Callable[..., Any], what: str
) -> None:
    estimator, space, reason = REFUSED[what]
    if reason is None:
        finish(connected, submit(grid(estimator, space), X, Y).id)
        assert taken(connected, submit(grid(estimator, space), X, Y)) == [1]
        return

    with pytest.warns(UserWarning, match=f"reuse=True finds no results for {re.escape(reason)}") as warned:
        first = submit(grid(estimator, space, name="first"), X, Y)

    assert [one.filename for one in warned if one.category is UserWarning] == [__file__]
    assert (no_reuse(connected, first) or "").startswith(reason)
    assert f"no results are found for {reason[:40]}" in gridfleet("report", "first")[1]
    # who does not ask for it hears nothing of it
    submit(grid(estimator, space, name="second", reuse=False), X, Y)
    assert "no results" not in gridfleet("report", "second")[1]


def test_the_splitter_of_an_estimator_needs_a_seed_too(connected: Fleet) -> None:
    estimator = LogisticRegressionCV(cv=ShuffleSplit(2), random_state=0)

    with pytest.warns(UserWarning, match="LogisticRegressionCV has cv__random_state=None"):
        submit(grid(estimator, {"max_iter": [100]}), X, Y)


SCRIPT = """
import sys
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import FunctionTransformer
from sklearn.pipeline import make_pipeline
from gridfleet import GridSearchCV, submit
import own_models

KNOWN = {"alpha", "beta", "gamma", "delta"}

def scaled(X):
    return X * (2 if "alpha" in KNOWN else FACTOR)

class Own(ClassifierMixin, BaseEstimator):
    def __init__(self, value=1, random_state=None):
        self.value, self.random_state = value, random_state
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self
    def predict(self, X):
        return np.full(len(X), len(KNOWN & {"alpha", "delta", "zeta"}) % 2)

X, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
search = GridSearchCV(
    make_pipeline(FunctionTransformer(scaled), own_models.Kept(), Own(random_state=1)), {"own__value": [1, 2]},
    cv=2, reuse=True, verbose=0,
)
print(submit(search, X, y).id)
"""


def test_code_of_a_script_and_its_modules_is_found_from_another_process(connected: Fleet, tmp_path: Path) -> None:
    module = "from sklearn.preprocessing import StandardScaler\nclass Kept(StandardScaler):\n    pass\n"

    def run(start: Callable[[Path], CompletedProcess[str]], factor: int = 3, module: str = module) -> list[bool]:
        (tmp_path / "script.py").write_text(SCRIPT.replace("FACTOR", str(factor)))
        (tmp_path / "own_models.py").write_text(module)
        done = start(tmp_path / "script.py")
        assert done.returncode == 0, done.stderr
        handle = SearchHandle(connected, int(done.stdout), "")
        found = [trial is not None for trial in taken(connected, handle)]
        finish(connected, handle.id)
        return found

    with two_hash_seeds() as (first, second):
        assert run(first) == [False, False]
        assert run(second) == [True, True]
        assert run(second, factor=4) == [False, False]
        assert run(first, module=module + "\n    two = 2\n") == [False, False]
