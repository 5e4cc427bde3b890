"""Inside ``parallel_config(backend="gridfleet")``, calls that are no search's run as they do without it."""

from __future__ import annotations

import os
import threading

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import RFECV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridfleet import GridSearchCV, register_joblib_backend

register_joblib_backend()


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_other_calls_give_their_results_in_order(no_variables: None, batch_size: object) -> None:
    with joblib.parallel_config(backend="gridfleet"):
        results = joblib.Parallel(batch_size=batch_size)(joblib.delayed(pow)(number, 2) for number in range(10))

    assert results == [number**2 for number in range(10)]


def test_a_forest_and_a_cross_validation_are_the_same_as_without_it(no_variables: None) -> None:
    X, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(5, random_state=0, n_jobs=2)
    expected = cross_val_score(forest, X, y)

    with joblib.parallel_config(backend="gridfleet"):
        scores = cross_val_score(forest, X, y)

    np.testing.assert_array_equal(scores, expected)


def test_a_cross_validation_and_a_selection_of_features_run_in_processes_of_this_machine(no_variables: None) -> None:
    X, y = load_iris(return_X_y=True)
    selection = RFECV(LogisticRegression(max_iter=500), cv=3, n_jobs=2)
    expected = selection.fit(X, y).cv_results_

    with joblib.parallel_config(backend="gridfleet"):
        processes = cross_val_score(DummyClassifier(), X, y, cv=4, n_jobs=2, scoring=lambda *_: os.getpid())
        found = selection.fit(X, y).cv_results_

    assert os.getpid() not in processes
    assert all((found[name] == expected[name]).all() for name in expected)


def test_who_prefers_threads_gets_them_and_one_job_stays_here(no_variables: None) -> None:
    def here() -> tuple[int, int]:
        return os.getpid(), threading.get_ident()

    with joblib.parallel_config(backend="gridfleet"):
        threads = joblib.Parallel(n_jobs=2, prefer="threads")(joblib.delayed(here)() for _ in range(4))
        one = joblib.Parallel(n_jobs=1)(joblib.delayed(here)() for _ in range(2))

    assert {process for process, _ in threads} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in threads}
    assert set(one) == {here()}


class Noting(GridSearchCV):
    """One of gridfleet's searches that notes where it is fitted."""

    def fit(self, X, y=None, **params):
        self.process_ = os.getpid()
        return self

    def score(self, X, y=None):
        return self.process_


def test_a_search_of_the_fleet_inside_a_cross_validation_stays_in_this_process(no_variables: None) -> None:
    X, y = load_iris(return_X_y=True)
    search = make_pipeline(StandardScaler(), Noting(LogisticRegression(), {"C": [1]}))

    with joblib.parallel_config(backend="gridfleet"):
        processes = cross_val_score(search, X, y, cv=3)

    assert set(processes) == {os.getpid()}


def test_an_error_of_such_a_call_is_raised(no_variables: None) -> None:
    with joblib.parallel_config(backend="gridfleet"), pytest.raises(ZeroDivisionError):
        joblib.Parallel()(joblib.delayed(divmod)(1, number) for number in (1, 0))
