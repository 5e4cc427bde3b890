"""Estimators of other libraries: the extra ``estimators``, which `make test-all` installs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

pytestmark = [
    pytest.mark.complete,
    # what other libraries warn of is their own
    pytest.mark.filterwarnings("ignore"),
]

Compare = Callable[..., Any]

CANCER = load_breast_cancer(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


def library(name: str) -> Any:
    """Import a library, or skip the test and say how to have it."""
    return pytest.importorskip(
        name, reason=f"{name} is not installed; `make test-all` installs requirements-estimators.lock"
    )


def with_texts(n_rows: int = 200) -> pd.DataFrame:
    """Return rows with a number that is missing now and then, and texts."""
    X = CANCER[0][:n_rows]
    frame = pd.DataFrame({"radius": X[:, 0], "texture": X[:, 1]})
    frame.loc[::7, "texture"] = np.nan
    frame["place"] = np.array(["here", "there", "far away"])[np.arange(n_rows) % 3]
    return frame


def test_xgboost(compare: Compare) -> None:
    xgboost = library("xgboost")
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1, random_state=1, subsample=0.8)

    compare(model, {"max_depth": [2, 4], "learning_rate": [0.1, 0.5]}, *CANCER)


def test_xgboost_of_missing_values_and_weights(compare: Compare) -> None:
    xgboost = library("xgboost")
    X, y = DIABETES[0].copy(), DIABETES[1]
    X[::5, 2] = np.nan

    compare(
        xgboost.XGBRegressor(n_estimators=5, n_jobs=1),
        {"max_depth": [2, 3]},
        X,
        y,
        scoring="neg_mean_absolute_error",
        fit={"sample_weight": np.linspace(0.5, 1.5, len(y))},
    )


def test_lightgbm(compare: Compare) -> None:
    lightgbm = library("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, random_state=1, verbose=-1, deterministic=True)

    compare(model, {"num_leaves": [4, 15]}, *CANCER, scoring=["roc_auc", "neg_log_loss"], refit="roc_auc")


def test_imbalanced_learn(compare: Compare) -> None:
    library("imblearn")
    from imblearn.over_sampling import SMOTE
    from imblearn.pipeline import make_pipeline as make_sampling_pipeline

    model = make_sampling_pipeline(StandardScaler(), SMOTE(random_state=1), LogisticRegression(max_iter=1000))

    compare(model, {"smote__k_neighbors": [3, 5], "logisticregression__C": [0.1, 1.0]}, *CANCER, scoring="f1")


def test_category_encoders(compare: Compare) -> None:
    encoders = library("category_encoders")
    frame = with_texts().drop(columns="texture")
    model = make_pipeline(encoders.TargetEncoder(cols=["place"]), LogisticRegression(max_iter=1000))

    compare(model, {"targetencoder__smoothing": [1.0, 20.0]}, frame, CANCER[1][:200])


def test_feature_engine(compare: Compare) -> None:
    library("feature_engine")
    from feature_engine.encoding import OneHotEncoder
    from feature_engine.imputation import MeanMedianImputer

    model = make_pipeline(MeanMedianImputer(), OneHotEncoder(), LogisticRegression(max_iter=1000))

    compare(model, {"meanmedianimputer__imputation_method": ["mean", "median"]}, with_texts(), CANCER[1][:200])


class LeastSquares(RegressorMixin, BaseEstimator):
    """A wrapper of the script's own around statsmodels, as its users write them."""

    def __init__(self, ridge: float = 0.0) -> None:
        self.ridge = ridge

    def fit(self, X: Any, y: Any) -> LeastSquares:
        import statsmodels.api as sm

        self.result_ = sm.OLS(y, sm.add_constant(X)).fit_regularized(alpha=self.ridge, L1_wt=0.0)
        return self

    def predict(self, X: Any) -> Any:
        import statsmodels.api as sm

        return self.result_.predict(sm.add_constant(X, has_constant="add"))


def test_statsmodels_in_a_wrapper_of_the_script(compare: Compare) -> None:
    library("statsmodels")

    compare(LeastSquares(), {"ridge": [0.0, 0.1]}, *DIABETES)


def test_a_frame_of_polars(compare: Compare) -> None:
    polars = library("polars")
    X = polars.DataFrame(DIABETES[0], schema=[f"x{number}" for number in range(10)])

    compare(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 10.0]}, X, polars.Series(DIABETES[1]))
