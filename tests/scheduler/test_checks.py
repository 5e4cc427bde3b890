"""What a search must be like before anything of it is stored."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, SVR

from gridfleet.scheduler.submission.checks import check_finite, unknown_argument
from gridfleet.storage.errors import InvalidSearchError


def units_and_rate(units, rate=0.1):
    """Build a model of two arguments."""


def anything(units, **others):
    """Build a model of any arguments."""


def nothing():
    """Build a model without arguments."""


@pytest.mark.parametrize(
    ("name", "build", "said"),
    [
        ("model__units", units_and_rate, None),
        ("model__unit", units_and_rate, "has no argument 'unit'; did you mean 'units'?"),
        ("model__depth", units_and_rate, "has no argument 'depth'; there are rate, units"),
        ("model__depth", nothing, "has no argument 'depth'; there are none"),
        ("model__depth", anything, None),
        ("optimizer__depth", units_and_rate, None),
        ("depth", units_and_rate, None),
    ],
)
def test_only_arguments_that_the_function_has_can_be_searched_over(
    name: str, build: Callable[..., Any], said: str | None
) -> None:
    assert unknown_argument(name, build) == said


WITHOUT = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
WITH = [[0.0, float("nan")], [2.0, 3.0], [float("nan"), 5.0]]
Y = [0, 1, 0]
#: How data may come: the list of rows as something else.
CONTAINERS: dict[str, Callable[[list[list[float]]], Any]] = {
    "an array": np.array,
    "an array of float32": lambda rows: np.array(rows, dtype=np.float32),
    "an array of objects": lambda rows: np.array([[None if x != x else x for x in row] for row in rows], dtype=object),
    "lists": lambda rows: rows,
    "lists with None": lambda rows: [[None if x != x else x for x in row] for row in rows],
    "a list of arrays": lambda rows: [np.array(row) for row in rows],
    "a sparse matrix": scipy.sparse.csr_matrix,
    "a sparse array": lambda rows: scipy.sparse.csc_array(np.array(rows)),
    "a frame": pd.DataFrame,
    "a frame of nullable integers": lambda rows: pd.DataFrame(rows).astype("Int64"),
    "a frame of Arrow's numbers": lambda rows: pd.DataFrame(rows).convert_dtypes(dtype_backend="pyarrow"),
    "a frame of two types": lambda rows: pd.DataFrame(rows).astype({0: "Float64"}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_nan_is_found_however_the_data_come(container: str) -> None:
    make = CONTAINERS[container]

    check_finite(SVC(), make(WITHOUT), Y, [{"C": 1}])
    with pytest.raises(InvalidSearchError, match="X has 2 NaN values, which SVC does not take; drop these rows"):
        check_finite(SVC(), make(WITH), Y, [{"C": 1}])


@pytest.mark.parametrize(
    "y",
    [
        np.array([0.0, np.nan, 1.0]),
        [0.0, None, 1.0],
        pd.Series([0.0, None, 1.0], dtype="Float64"),
        np.array([[0.0, 1.0], [0.0, np.nan], [0.0, 1.0]]),
    ],
    ids=["array", "list", "nullable series", "two outputs"],
)
@pytest.mark.parametrize("estimator", [SVR(), make_pipeline(SimpleImputer(), SVR())], ids=["regressor", "pipeline"])
def test_nan_in_the_target_is_found(estimator: Any, y: Any) -> None:
    with pytest.raises(InvalidSearchError, match=r"y has 1 NaN values, which .* does not take; drop these rows of X"):
        check_finite(estimator, WITHOUT, y, [{}])


@pytest.mark.parametrize(
    ("estimator", "X", "y", "candidates"),
    [
        (SVC(), np.array([["a"], ["b"]], dtype=object), [0, 1], [{}]),
        (SVC(), [[1.0], [2.0, 3.0]], [0, 1], [{}]),
        (SVC(), [[10**400]], [0], [{}]),
        (SVC(), np.empty((0, 2)), [], [{}]),
        (LogisticRegression(), WITHOUT, ["no", "yes", "no"], [{}]),
        (make_pipeline(CountVectorizer(), SVC()), ["nan", "1"], [0, 1], [{}]),
        (HistGradientBoostingRegressor(), WITH, [0.5, 1.5, 2.5], [{}]),
        (KNeighborsClassifier(), WITH, Y, [{"metric": "minkowski"}, {"metric": "nan_euclidean"}]),
        (TransformedTargetRegressor(SVR()), WITHOUT, [0.5, None, 2.5], [{}]),
        (None, WITH, None, [{}]),
    ],
    ids=[
        "texts",
        "ragged rows",
        "a number beyond floats",
        "no rows",
        "classes that are texts",
        "a text that reads as NaN",
        "an estimator that takes it",
        "a candidate that takes it",
        "a target that may be transformed",
        "no estimator of a library's",
    ],
)
def test_what_has_no_nan_or_may_have_it_passes(
    estimator: Any, X: Any, y: Any, candidates: list[dict[str, Any]]
) -> None:
    check_finite(estimator, X, y, candidates)


def test_looking_for_nan_needs_no_second_array() -> None:
    X = np.zeros((2_000, 1_000))

    tracemalloc.start()
    check_finite(SVC(), X, Y, [{}])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < X.nbytes / 100
