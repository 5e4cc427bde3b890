"""Scores are those of scikit-learn's own searches, split by split, whatever the number of workers."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
from scikeras.wrappers import KerasClassifier
from sklearn import model_selection
from sklearn.base import BaseEstimator, ClassifierMixin
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
from tests.end_to_end.models import create_model, create_model_of_two_inputs, create_model_with_auc
from tests.same_results import assert_same_results

DATA = np.loadtxt(REPOSITORY / "data" / "pima-indians-diabetes.csv", delimiter=",")[:200]
PIMA = DATA[:, 0:8], DATA[:, 8]
IRIS = load_iris(return_X_y=True)


def keras_classifier() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=2, batch_size=16, verbose=0, random_state=42)


@pytest.mark.parametrize(("backend", "concurrency"), [("sqlite", 1), ("postgresql", 2)])
def test_keras_scores_equal_those_of_scikit_learn_split_by_split(
    configured: Settings, start_worker: Callable[..., Any], concurrency: int
) -> None:
    worker = start_worker(configured, concurrency=concurrency)
    space = {"model__optimizer": ["adam", "rmsprop"], "model__units": [3]}
    options = {"cv": 2, "scoring": ["accuracy", "neg_log_loss"], "refit": "accuracy", "return_train_score": True}
    theirs = model_selection.GridSearchCV(keras_classifier(), space, **options).fit(*PIMA)

    ours = gridfleet.GridSearchCV(keras_classifier(), space, **options, verbose=0).fit(*PIMA)

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


def test_a_keras_model_of_two_inputs_scores_as_in_scikit_learn(module_fleet: Settings) -> None:
    model = TwoInputs(model=create_model_of_two_inputs, epochs=2, batch_size=16, verbose=0, random_state=42)
    options = {"cv": 2, "scoring": "neg_log_loss", "error_score": "raise", "refit": False}
    space = {"model__units": [2]}
    theirs = model_selection.GridSearchCV(model, space, **options).fit(*PIMA)

    ours = gridfleet.GridSearchCV(model, space, **options, verbose=0).fit(*PIMA)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


@pytest.mark.complete
def test_keras_scores_in_floats_of_64_bits_equal_those_of_scikit_learn(module_fleet: Settings) -> None:
    from keras import config

    options = {"cv": 2, "scoring": "neg_log_loss"}
    config.set_floatx("float64")
    try:
        theirs = model_selection.GridSearchCV(keras_classifier(), {"epochs": [2]}, **options).fit(*PIMA)
        ours = gridfleet.GridSearchCV(keras_classifier(), {"epochs": [2]}, **options, verbose=0).fit(*PIMA)
    finally:
        config.set_floatx("float32")

    assert_same_results(ours.cv_results_, theirs.cv_results_)


@keras.saving.register_keras_serializable("tests")
class Doubling(keras.layers.Layer):
    """A layer that only this module has."""

    def call(self, inputs):
        return 2 * inputs


@keras.saving.register_keras_serializable("tests")
def own_loss(y_true, y_pred):
    """A loss that only this module has."""
    return keras.ops.mean((y_true - y_pred) ** 2)


# Keras, of the optimizer of each copy
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
def test_a_model_with_a_layer_of_the_script_scores_as_in_scikit_learn(module_fleet: Settings) -> None:
    built = keras.Sequential([keras.Input((8,)), Doubling(), keras.layers.Dense(1, activation="sigmoid")])
    built.compile(loss=own_loss, optimizer="sgd")
    model, space = KerasClassifier(model=built, verbose=0, random_state=42), {"epochs": [3]}
    options = {"cv": 2, "error_score": "raise", "refit": False}
    theirs = model_selection.GridSearchCV(model, space, **options).fit(*PIMA)

    ours = gridfleet.GridSearchCV(model, space, **options, verbose=0).fit(*PIMA)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_the_refit_stops_where_trials_do_whatever_was_made_before(module_fleet: Settings) -> None:
    from keras.callbacks import EarlyStopping
    from keras.metrics import AUC

    before = [AUC().name for _ in range(2)]
    # no gain is large enough, so the third epoch is the last
    stop = EarlyStopping("val_auc", mode="max", patience=2, min_delta=2)
    model = KerasClassifier(
        model=create_model_with_auc, epochs=6, validation_split=0.2, callbacks=[stop], verbose=0, random_state=1
    )

    search = gridfleet.GridSearchCV(model, {"batch_size": [64]}, cv=2, verbose=0).fit(*PIMA)

    assert len(search.best_estimator_.history_["loss"]) == 3
    assert AUC().name not in {*before, "auc"}


class Complains(ClassifierMixin, BaseEstimator):
    """Warns, raises and scores as its parameters say."""

    def __init__(self, c: int = 1, error: Exception | None = None, score_is: object = 0.5) -> None:
        self.c = c
        self.error = error
        self.score_is = score_is

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        if self.c == 2:
            warnings.warn("two is much", FutureWarning, stacklevel=1)
        if self.error is not None:
            raise self.error
        return self

    def score(self, X, y):
        return self.score_is


class OfTwoError(Exception):
    """As users write them."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code
        self.where = where

    def __reduce__(self):
        return type(self), (self.code, self.where)


LET_OUT: dict[str, tuple[Complains, Any]] = {
    "a score of None": (Complains(score_is=None), np.nan),
    "a score that is a text": (Complains(score_is="much"), 0.0),
    "an error with a key": (Complains(error=KeyError("missing")), "raise"),
    "an error of two arguments": (Complains(error=OfTwoError(3, "home")), "raise"),
}


@pytest.mark.parametrize("case", LET_OUT)
def test_what_scikit_learn_lets_out_of_fit_arrives_as_itself(module_fleet: Settings, case: str) -> None:
    estimator, error_score = LET_OUT[case]
    options = {"param_grid": {"c": [0, 1]}, "cv": 2, "error_score": error_score}
    with pytest.raises(Exception, match=r".") as theirs:
        model_selection.GridSearchCV(estimator, **options).fit(*IRIS)

    with pytest.raises(type(theirs.value)) as ours:
        gridfleet.GridSearchCV(estimator, **options, verbose=0).fit(*IRIS)

    def without_address(text: str) -> str:
        return re.sub("0x[0-9a-f]+", "", text)

    assert type(ours.value) is type(theirs.value)
    assert without_address(repr(ours.value.args)) == without_address(repr(theirs.value.args))
    assert vars(ours.value) == vars(theirs.value)
    assert "on a worker:\nTraceback" in str(ours.value.__cause__)


@pytest.mark.parametrize("action", ["error", "ignore", "always"])
def test_warning_filters_of_the_script_hold_on_the_workers(module_fleet: Settings, action: str) -> None:
    space = {"c": [2, 1]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings(action, category=FutureWarning)
        theirs = model_selection.GridSearchCV(Complains(), space, cv=2, refit=False).fit(*IRIS)
        n_theirs = len(caught)
        caught.clear()

        ours = gridfleet.GridSearchCV(Complains(), space, cv=2, refit=False, verbose=0).fit(*IRIS)

    assert_same_results(ours.cv_results_, theirs.cv_results_)
    assert ours.best_params_ == {"c": 1 if action == "error" else 2}
    assert n_theirs == (2 if action == "always" else 0)
    texts = [(each.category, str(each.message)) for each in caught]
    assert texts == ([(FutureWarning, "two is much (in 2 of 4 fits)")] if action == "always" else [])


def test_verbose_prints_the_lines_of_each_fit(module_fleet: Settings, capsys: Any) -> None:
    gridfleet.GridSearchCV(Complains(), {"c": [0, 1]}, cv=2, refit=False, verbose=3).fit(*IRIS)

    out, err = capsys.readouterr()
    assert len(re.findall(r"^\[CV [12]/2\] END \.+c=[01];, score=0\.500 total time= +[\d.]+s$", out, re.M)) == 4
    assert out.count("\n") == 4
    assert err.startswith("Fitting 2 folds for each of 2 candidates, totalling 4 fits\n")


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


@pytest.mark.parametrize("case", SEARCHES)
def test_scores_equal_those_of_scikit_learn(module_fleet: Settings, case: str) -> None:
    estimator, space, (X, y), options, fit_params = SEARCHES[case]
    options = {"cv": 2, **options, "refit": False}
    theirs = model_selection.GridSearchCV(estimator, space, **options).fit(X, y, **fit_params)

    ours = gridfleet.GridSearchCV(estimator, space, **options, verbose=0).fit(X, y, **fit_params)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_a_randomized_search_draws_the_same_combinations(module_fleet: Settings) -> None:
    arguments: dict[str, Any] = {"n_iter": 4, "random_state": 7, "return_train_score": True, "cv": 2, "refit": False}
    space = {"C": scipy.stats.loguniform(1e-2, 1e2), "kernel": ["rbf", "linear"]}
    theirs = model_selection.RandomizedSearchCV(SVC(), space, **arguments).fit(*IRIS)

    ours = gridfleet.RandomizedSearchCV(SVC(), space, **arguments, verbose=0).fit(*IRIS)

    assert_same_results(ours.cv_results_, theirs.cv_results_)


def test_scikit_learns_own_classes_run_on_the_fleet(module_fleet: Settings) -> None:
    theirs = model_selection.GridSearchCV(SVC(), {"C": [1, 10]}, refit=False).fit(*IRIS)
    register_joblib_backend()

    with joblib.parallel_config(backend="gridfleet", name="by-joblib"):
        ours = model_selection.GridSearchCV(SVC(), {"C": [1, 10]}, refit=False).fit(*IRIS)

    assert_same_results(ours.cv_results_, theirs.cv_results_)
    assert gridfleet.open_search("by-joblib").best_score_ == theirs.best_score_


def test_a_named_search_in_a_cross_validation_and_fitted_again_scores_as_in_scikit_learn(
    module_fleet: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = model_selection.GridSearchCV(SVC(), {"C": [0.01, 10]}, cv=2)
    ours = gridfleet.GridSearchCV(SVC(), {"C": [0.01, 10]}, cv=2, verbose=0, name="inner")

    np.testing.assert_array_equal(cross_val_score(ours, *IRIS, cv=2), cross_val_score(theirs, *IRIS, cv=2))
    assert "is taken" not in capsys.readouterr().err
    assert_same_results(ours.set_params(verbose=1).fit(*IRIS).cv_results_, theirs.fit(*IRIS).cv_results_)

    assert "the name 'inner' is taken, so this search is 'inner-3'; load_if_exists=True" in capsys.readouterr().err
    assert [gridfleet.open_search(name).name for name in ("inner-2", "inner")] == ["inner-2", "inner-3"]
    assert gridfleet.open_search("inner").best_score_ == theirs.best_score_


def test_the_rounds_of_a_halving_search_run_again_are_named_after_it(module_fleet: Settings) -> None:
    register_joblib_backend()
    search = model_selection.HalvingGridSearchCV(SVC(), {"C": [0.1, 1, 10]}, min_resources=50, refit=False)
    for _ in range(2):
        with joblib.parallel_config(backend="gridfleet", name="halving"):
            search.fit(*IRIS)

    names = [gridfleet.open_search(name).name for name in ("halving-2", "halving-round-2", "halving-2-round-2")]
    assert names == ["halving-2", "halving-round-2", "halving-2-round-2"]


def test_a_handle_gives_what_fit_gives(module_fleet: Settings) -> None:
    space = {"C": [0.01, 10, 1]}
    theirs = model_selection.GridSearchCV(SVC(), space, refit=False).fit(*IRIS)

    search = gridfleet.GridSearchCV(SVC(), space, refit=False)
    handle = gridfleet.submit(search, *IRIS, name="handle").wait(120)

    assert_same_results(handle.cv_results_, theirs.cv_results_)
    assert (handle.best_score_, handle.best_params_, handle.best_index_) == (
        theirs.best_score_,
        theirs.best_params_,
        theirs.best_index_,
    )
    assert list(handle.to_frame()["rank_test_score"]) == sorted(theirs.cv_results_["rank_test_score"])
