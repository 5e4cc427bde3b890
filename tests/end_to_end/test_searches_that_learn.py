"""A search that learns, on real workers: the same trials and scores whatever the fleet, and whatever broke."""

from __future__ import annotations

from typing import Any

import scipy.stats
from sklearn.datasets import load_iris
from sklearn.svm import SVC

import gridfleet

IRIS = load_iris(return_X_y=True)
SPACE = {"C": scipy.stats.loguniform(1e-2, 1e2), "gamma": scipy.stats.loguniform(1e-3, 10), "shrinking": [True, False]}


def search(**options: Any) -> gridfleet.OptunaSearchCV:
    given = {"n_trials": 8, "lookahead": 2, "cv": 2, "verbose": 0, "random_state": 0, "refit": False, **options}
    return gridfleet.OptunaSearchCV(SVC(), SPACE, sampler={"name": "tpe", "n_startup_trials": 3}, **given)


def test_an_embedded_fleet_proposes_trials(embedded_home: object) -> None:
    ours = search(n_jobs=2, refit=True).fit(*IRIS)

    assert len(ours.cv_results_["params"]) == 8
    assert ours.best_score_ == max(ours.cv_results_["mean_test_score"])
    assert ours.best_estimator_.get_params()["C"] == ours.best_params_["C"]
