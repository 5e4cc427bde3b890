"""Ways to use scikit-learn's searches that need no other library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn import model_selection
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer, make_scorer
from sklearn.model_selection import GroupKFold, HalvingGridSearchCV, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import gridfleet
from tests.same_results import assert_same_results

Compare = Callable[..., Any]

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


def test_metadata_is_routed_to_estimator_scorer_and_splitter(compare: Compare) -> None:
    weights, groups = np.linspace(0.1, 2, 150), np.arange(150) % 10
    with sklearn.config_context(enable_metadata_routing=True):
        model = LogisticRegression(max_iter=1000).set_fit_request(sample_weight=True)
        scorer = get_scorer("accuracy").set_score_request(sample_weight=True)
        weighted = compare(
            model,
            {"C": [0.001, 1.0]},
            *IRIS,
            cv=GroupKFold(3),
            scoring=scorer,
            fit={"sample_weight": weights, "groups": groups},
        )

    with sklearn.config_context(enable_metadata_routing=True):
        plain = compare(model, {"C": [0.001, 1.0]}, *IRIS, cv=GroupKFold(3), fit={"groups": groups})
    assert (weighted.cv_results_["mean_test_score"] != plain.cv_results_["mean_test_score"]).any()


def test_a_walk_forward_whose_last_rows_have_no_target_yet(compare: Compare) -> None:
    X, y = DIABETES[0][:120], DIABETES[1][:120].copy()
    y[-5:] = np.nan
    splits = list(TimeSeriesSplit(3, gap=2).split(X[:-5]))

    compare(Ridge(), {"alpha": [0.1, 10.0]}, X, y, cv=splits, refit=False)


def test_a_frame_of_arrows_types_and_categories(compare: Compare) -> None:
    frame = pd.DataFrame(IRIS[0], columns=list("abcd")).convert_dtypes(dtype_backend="pyarrow")
    frame["kind"] = pd.Categorical(np.arange(150) % 3)
    frame["text"] = pd.array(np.where(np.arange(150) % 2, "odd", "even"), dtype="string[pyarrow]")
    columns = make_column_transformer(
        (StandardScaler(), list("abcd")), (OneHotEncoder(handle_unknown="ignore"), ["kind", "text"])
    )

    compare(
        make_pipeline(columns, LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.01, 1.0]},
        frame,
        IRIS[1],
    )


class CostScorer:
    """A scorer of the script's own: an object, not a function."""

    def __init__(self, cost: float) -> None:
        self.cost = cost

    def __call__(self, estimator: Any, X: Any, y: Any) -> dict[str, float]:
        wrong = float((estimator.predict(X) != y).sum())
        return {"cost": -self.cost * wrong, "wrong": -wrong}


def mean_distance(y: Any, predicted: Any) -> float:
    return float(np.abs(y - predicted).mean())


def test_scorers_of_the_scripts_own(compare: Compare) -> None:
    compare(LogisticRegression(max_iter=1000), {"C": [0.001, 1.0]}, *IRIS, scoring=CostScorer(2.5), refit="cost")
    scorers = {"distance": make_scorer(mean_distance, greater_is_better=False), "r2": "r2"}
    compare(Ridge(), {"alpha": [0.1, 10.0]}, *DIABETES, scoring=scorers, refit="distance")


class FinerAroundTheBest(gridfleet.GridSearchCV):
    """A subclass of ours with a constructor and a way of searching of its own, in two rounds."""

    def __init__(self, estimator: Any, alphas: Any, factor: float = 2.0) -> None:
        super().__init__(estimator, {"alpha": alphas}, cv=3, verbose=0, n_jobs=2, name="finer")
        self.alphas = alphas
        self.factor = factor

    def _run_search(self, evaluate_candidates: Any) -> None:
        results = evaluate_candidates([{"alpha": alpha} for alpha in self.alphas])
        best = results["params"][int(np.argmax(results["mean_test_score"]))]["alpha"]
        evaluate_candidates([{"alpha": best / self.factor}, {"alpha": best * self.factor}])


class InParallel(Ridge):
    """A Ridge that notes by which of joblib's backends it is fitted."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> InParallel:
        self.backend_ = type(joblib.Parallel()._backend).__name__
        return super().fit(X, y, sample_weight)


def test_a_subclass_with_arguments_and_rounds_of_its_own(fleet_of_the_package: None) -> None:
    theirs = model_selection.GridSearchCV(InParallel(), {"alpha": [0.1, 10.0, 0.05, 0.2]}, cv=3).fit(*DIABETES)

    ours = sklearn.clone(FinerAroundTheBest(InParallel(), [0.1, 10.0])).fit(*DIABETES)

    assert_same_results(ours.cv_results_, theirs.cv_results_)
    np.testing.assert_array_equal(ours.predict(DIABETES[0]), theirs.predict(DIABETES[0]))
    assert gridfleet.open_search("finer-round-2").progress().completed == 2
    assert ours.best_estimator_.backend_ == theirs.best_estimator_.backend_  # the refit is not the fleet's
    assert "_run_search" not in vars(ours)


@pytest.mark.complete
def test_a_halving_search(fleet_of_the_package: None) -> None:
    search = HalvingGridSearchCV(
        LogisticRegression(max_iter=1000), {"C": [0.001, 0.1, 1.0]}, cv=3, min_resources=40, random_state=1
    )
    theirs = sklearn.clone(search).fit(*IRIS)
    gridfleet.register_joblib_backend()

    with joblib.parallel_config(backend="gridfleet"):
        search.fit(*IRIS)

    assert_same_results(search.cv_results_, theirs.cv_results_)
    assert search.best_params_ == theirs.best_params_
