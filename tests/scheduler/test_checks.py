"""What a search must be like before anything of it is stored."""

from __future__ import annotations

import functools
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scikeras.wrappers import KerasClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from gridfleet.scheduler.submission import checks
from gridfleet.scheduler.submission.checks import check_params, unknown_argument, warn_unused_params
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.suggestion import did_you_mean


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


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("units", ["epochs", "metrics", "model__units"], "did you mean 'model__units'?"),
        ("unit", ["fit__use", "model__units"], "did you mean 'model__units'?"),
        ("a__units", ["a__epochs", "a__model__units", "b__model__units"], "did you mean 'a__model__units'?"),
        ("optimiser", ["model__optimizer", "optimizer"], "did you mean 'optimizer'?"),
        ("svc__C", ["C", "gamma"], "did you mean 'C'?"),
        ("far", ["away", "off"], "there are away, off"),
        ("far", [], "there are none"),
    ],
)
def test_the_nearest_name_is_suggested_whatever_its_prefix(name: str, known: list[str], said: str) -> None:
    assert did_you_mean(name, known) == said


def net(units=4, optimizer="adam", *, meta=None):
    """Build a model, were it called."""


def bare(given: str) -> Any:
    return KerasClassifier(**{given: net})


def in_a_pipeline(given: str) -> Any:
    return make_pipeline(StandardScaler(), bare(given))


def deeper(given: str) -> Any:
    return CalibratedClassifierCV(Pipeline([("both", VotingClassifier([("k", bare(given))]))]))


def partly(given: str) -> Any:
    return KerasClassifier(**{given: functools.partial(net, optimizer="sgd")})


PLACES: dict[str, tuple[Callable[[str], Any], str]] = {
    "bare": (bare, ""),
    "in a pipeline": (in_a_pipeline, "kerasclassifier__"),
    "deeper": (deeper, "estimator__both__k__"),
    "a partial function": (partly, ""),
}


@pytest.mark.parametrize("given", ["model", "build_fn"])
@pytest.mark.parametrize("place", PLACES)
def test_an_argument_of_the_models_function_is_suggested_with_its_prefix(place: str, given: str) -> None:
    make, prefix = PLACES[place]
    right = f"did you mean '{prefix}model__units'\\?$"

    for wrong in ("units", f"{prefix}units", f"{prefix}unit"):
        with pytest.raises(InvalidSearchError, match=f"^'{wrong}' is not a parameter of .*; {right}"):
            check_params(make(given), [{wrong: 2}])
    with pytest.raises(
        InvalidSearchError, match=f"^'{prefix}model__unit': net has no argument 'unit'; did you mean 'u"
    ):
        check_params(make(given), [{f"{prefix}model__unit": 2}])
    check_params(make(given), [{f"{prefix}model__units": 2, f"{prefix}epochs": 1}])


@pytest.mark.parametrize("given", ["model", "build_fn"])
@pytest.mark.parametrize("place", PLACES)
def test_a_hyperparameter_that_does_not_arrive_is_warned_of_at_any_depth(place: str, given: str) -> None:
    make, prefix = PLACES[place]
    candidates = [{f"{prefix}optimizer": value} for value in ("adam", "nonsense")]

    with pytest.warns(UserWarning, match="does not reach") as warned:
        warn_unused_params(make(given), candidates)

    (said,) = [str(warning.message) for warning in warned]
    assert said.startswith(
        f"'{prefix}optimizer' does not reach net(optimizer=…), as KerasClassifier keeps it for itself:"
    )
    assert said.endswith(f"all its values train the same model; search over '{prefix}model__optimizer' instead")
    assert warned[0].filename == __file__


def test_a_hyperparameter_that_does_not_reach_a_function_of_the_search_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="'optimizer' does not reach net"):
        warn_unused_params(KerasClassifier(), [{"model": net, "optimizer": "adam"}])


def check_finite(
    estimator: Any, X: Any, y: Any, candidates: list[dict[str, Any]], *, splits: Any = (), refit: bool = True
) -> None:
    caller = types.SimpleNamespace(refit=refit)
    checks.check_finite(
        SearchRequest(caller, estimator, X, y, splits, candidates, arguments={}, config={}, warning_filters=[])
    )


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


@pytest.mark.parametrize("container", CONTAINERS)
def test_nan_counts_only_in_rows_that_are_used(container: str) -> None:
    make = CONTAINERS[container]
    X, y = make([*WITHOUT, [float("nan"), 1.0], [1.0, float("nan")]]), [0.5, 1.5, 0.5, None, None]

    check_finite(SVR(), X, y, [{}], splits=[([0, 1], [2]), ([True, False, True, False, False], [1])], refit=False)
    for splits in ([([0, 1], [2, 3])], [([0, 1, 3], [2])]):
        with pytest.raises(InvalidSearchError, match="X has 1 NaN values"):
            check_finite(SVR(), X, y, [{}], splits=splits, refit=False)
        with pytest.raises(InvalidSearchError, match="y has 1 NaN values"):
            check_finite(HistGradientBoostingRegressor(), X, y, [{}], splits=splits, refit=False)
    with pytest.raises(InvalidSearchError, match="X has 2 NaN values"):
        check_finite(SVR(), X, y, [{}], splits=[([0, 1], [2])], refit=True)


@pytest.mark.parametrize(
    "y",
    [
        ["nan", "1"],
        np.array(["nan", "inf", "1"]),
        np.array(["nan", "1", "2"], dtype=object),
        [b"nan", b"1"],
        pd.Series(["nan", "1"]),
    ],
    ids=["list", "array", "objects", "bytes", "series"],
)
def test_a_class_may_be_called_nan(y: Any) -> None:
    check_finite(SVC(), WITHOUT[: len(y)], y, [{}])


def test_looking_for_nan_needs_no_second_array() -> None:
    X = np.zeros((2_000, 1_000))

    tracemalloc.start()
    check_finite(SVC(), X, Y, [{}])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < X.nbytes / 100
