"""Scores are those of scikit-learn's own searches, split by split, whatever the number of workers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
from scikeras.wrappers import KerasClassifier
from sklearn import model_selection
from sklearn.datasets import load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

import gridfleet
from gridfleet import register_joblib_backend
from gridfleet.storage.settings import Settings
from tests.end_to_end.conftest import REPOSITORY
from tests.end_to_end.models import create_model, create_model_of_two_inputs
from tests.same_results import assert_same_results

DATA = np.loadtxt(REPOSITORY / "data" / "pima-indians-diabetes.csv", delimiter=",")[:200]
PIMA = DATA[:, 0:8], DATA[:, 8]
IRIS = load_iris(return_X_y=True)


def keras() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=2, batch_size=16, verbose=0, random_state=42)


@pytest.mark.parametrize(("backend", "concurrency"), [("sqlite", 1), ("postgresql", 2)])
def test_keras_scores_equal_those_of_scikit_learn_split_by_split(
    configured: Settings, start_worker: Callable[..., Any], concurrency: int
) -> None:
    worker = start_worker(configured, concurrency=concurrency)
    space = {"model__optimizer": ["adam", "rmsprop"], "model__units": [3]}
    options = {"cv": 3, "scoring": ["accuracy", "neg_log_loss"], "refit": "accuracy", "return_train_score": True}
    theirs = model_selection.GridSearchCV(keras(), space, **options).fit(*PIMA)

    ours = gridfleet.GridSearchCV(keras(), space, **options, verbose=0).fit(*PIMA)

    assert_same_results(ours.cv_results_, theirs.cv_results_)
    assert ours.best_params_ == theirs.best_params_
    assert ours.best_score_ == theirs.best_score_
    np.testing.assert_array_equal(ours.predict(PIMA[0]), theirs.predict(PIMA[0]))
    assert b"gridfleet" not in pickle.dumps(ours.to_sklearn())
    assert not re.search("oneDNN|absl|retracing", worker.log.read_text())


class TwoInputs(KerasClassifier):
    """Makes the dict of a model's inputs of one array, as scikeras' documentation does."""

    @property
    def feature_encoder(self) -> FunctionTransformer:
        return FunctionTransformer(lambda X: {"left": X[:, :3], "right": X[:, 3:]})


def test_a_keras_model_of_two_inputs_scores_as_in_scikit_learn(module_fleet: None, no_variables: None) -> None:
    model = TwoInputs(model=create_model_of_two_inputs, epochs=2, batch_size=16, verbose=0, random_state=42)
    space, options = {"model__units": [2, 4]}, {"cv": 2, "scoring": "neg_log_loss", "error_score": "raise"}
    theirs = model_selection.GridSearchCV(model, space, **options).fit(*PIMA)

    ours = gridfleet.GridSearchCV(model, space, **options, verbose=0, n_jobs=2).fit(*PIMA)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


SEARCHES: dict[str, tuple[Any, ...]] = {
    "a grid": (SVC(), {"C": [1, 10], "kernel": ["rbf", "linear"]}, IRIS, {}, {}),
    "two grids": (SVC(), [{"kernel": ["linear"]}, {"C": [1, 10], "gamma": [0.1, 1.0]}], IRIS, {}, {}),
    "a pandas frame": (
        LogisticRegression(max_iter=1000),
        {"C": [0.1, 1.0]},
        (pd.DataFrame(IRIS[0], columns=list("abcd")), pd.Series(IRIS[1], name="kind")),
        {},
        {},
    ),
    "a sparse matrix": (SVC(), {"C": [0.1, 1.0]}, (scipy.sparse.csr_matrix(IRIS[0]), IRIS[1]), {}, {}),
    "lists": (SVC(), {"C": [0.1, 1.0]}, (IRIS[0].tolist(), IRIS[1].tolist()), {}, {}),
    "a pipeline": (make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10]}, IRIS, {}, {}),
    "sample weights": (SVC(), {"C": [0.1, 1.0]}, IRIS, {}, {"sample_weight": np.linspace(0.1, 1, 150)}),
    "groups": (SVC(), {"C": [0.1, 1.0]}, IRIS, {"cv": GroupKFold(3)}, {"groups": np.arange(150) % 10}),
    "metrics in an order of their own": (
        SVC(),
        {"C": [0.1, 1.0]},
        IRIS,
        {"scoring": ["recall_macro", "accuracy"], "refit": "accuracy", "return_train_score": True},
        {},
    ),
    "a score that is no number, under error_score raise": (
        SVC(),
        {"C": [0.1, 1.0, 10.0]},
        IRIS,
        {"scoring": lambda model, X, y: float("nan") if model.C == 0.1 else model.score(X, y), "error_score": "raise"},
        {},
    ),
    "a callable scorer of two metrics": (
        SVC(),
        {"C": [0.1, 1.0]},
        IRIS,
        {"scoring": lambda model, X, y: {"a": model.score(X, y), "b": -0.0}, "refit": "a"},
        {},
    ),
}


@pytest.fixture(scope="module")
def module_fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start one embedded fleet for the searches that need no Keras."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("same-answer"))
    yield
    patch.undo()


@pytest.mark.parametrize("case", SEARCHES)
def test_scores_equal_those_of_scikit_learn(module_fleet: None, no_variables: None, case: str) -> None:
    estimator, space, (X, y), options, fit_params = SEARCHES[case]
    theirs = model_selection.GridSearchCV(estimator, space, **options).fit(X, y, **fit_params)

    ours = gridfleet.GridSearchCV(estimator, space, **options, verbose=0, n_jobs=2).fit(X, y, **fit_params)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_a_randomized_search_draws_the_same_combinations(module_fleet: None, no_variables: None) -> None:
    arguments: dict[str, Any] = {"n_iter": 6, "random_state": 7, "return_train_score": True}
    space = {"C": scipy.stats.loguniform(1e-2, 1e2), "kernel": ["rbf", "linear"]}
    theirs = model_selection.RandomizedSearchCV(SVC(), space, **arguments).fit(*IRIS)

    ours = gridfleet.RandomizedSearchCV(SVC(), space, **arguments, verbose=0, n_jobs=2).fit(*IRIS)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_scikit_learns_own_classes_run_on_the_fleet(module_fleet: None, no_variables: None) -> None:
    theirs = model_selection.GridSearchCV(SVC(), {"C": [1, 10]}).fit(*IRIS)
    register_joblib_backend()

    with joblib.parallel_config(backend="gridfleet", name="by-joblib"):
        ours = model_selection.GridSearchCV(SVC(), {"C": [1, 10]}).fit(*IRIS)

    assert_same_results(ours.cv_results_, theirs.cv_results_)
    assert gridfleet.open_search("by-joblib").best_score_ == theirs.best_score_


def test_a_named_search_in_a_cross_validation_and_fitted_again_scores_as_in_scikit_learn(
    module_fleet: None, no_variables: None
) -> None:
    theirs = model_selection.GridSearchCV(SVC(), {"C": [0.01, 10]}, cv=2)
    ours = gridfleet.GridSearchCV(SVC(), {"C": [0.01, 10]}, cv=2, verbose=0, n_jobs=2, name="inner")

    np.testing.assert_array_equal(cross_val_score(ours, *IRIS, cv=3), cross_val_score(theirs, *IRIS, cv=3))
    assert_same_results(ours.fit(*IRIS).cv_results_, theirs.fit(*IRIS).cv_results_)

    assert [gridfleet.open_search(name).name for name in ("inner-2", "inner-3", "inner")] == [
        "inner-2",
        "inner-3",
        "inner-4",
    ]
    assert gridfleet.open_search("inner").best_score_ == theirs.best_score_


def test_the_rounds_of_a_halving_search_run_again_are_named_after_it(module_fleet: None, no_variables: None) -> None:
    register_joblib_backend()
    search = model_selection.HalvingGridSearchCV(SVC(), {"C": [0.1, 1, 10]}, min_resources=50, refit=False)
    for _ in range(2):
        with joblib.parallel_config(backend="gridfleet", name="halving"):
            search.fit(*IRIS)

    names = [gridfleet.open_search(name).name for name in ("halving-2", "halving-round-2", "halving-2-round-2")]
    assert names == ["halving-2", "halving-round-2", "halving-2-round-2"]


def test_a_handle_gives_what_fit_gives(module_fleet: None, no_variables: None) -> None:
    space = {"C": [0.01, 10, 1]}
    theirs = model_selection.GridSearchCV(SVC(), space).fit(*IRIS)

    handle = gridfleet.submit(gridfleet.GridSearchCV(SVC(), space, n_jobs=2), *IRIS, name="handle").wait(120)

    assert_same_results(handle.cv_results_, theirs.cv_results_)
    assert (handle.best_score_, handle.best_params_, handle.best_index_) == (
        theirs.best_score_,
        theirs.best_params_,
        theirs.best_index_,
    )
    assert list(handle.to_frame()["rank_test_score"]) == sorted(theirs.cv_results_["rank_test_score"])
