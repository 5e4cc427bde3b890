"""One fleet for all comparisons with scikit-learn's own searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection

import gridfleet
from gridfleet.storage.settings import Settings
from tests.same_results import assert_same_results


@pytest.fixture(scope="package")
def fleet_of_the_package(fleet_of_many: Callable[[], AbstractContextManager[Settings]]) -> Iterator[None]:
    """Start the fleet."""
    with fleet_of_many():
        yield


@pytest.fixture
def compare(fleet_of_the_package: None) -> Callable[..., Any]:
    """Fit a grid search here and on the fleet, and see that both come to the same; returns the one of the fleet."""

    def compare(
        estimator: Any, space: Any, X: Any, y: Any, *, fit: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        options = {"cv": 3, **options}
        theirs = model_selection.GridSearchCV(estimator, space, **options).fit(X, y, **(fit or {}))
        ours = gridfleet.GridSearchCV(estimator, space, **options, verbose=0).fit(X, y, **(fit or {}))
        means = [value for key, value in theirs.cv_results_.items() if key.startswith("mean_test_")]
        assert np.isfinite(means).all()
        assert_same_results(ours.cv_results_, theirs.cv_results_)
        assert ours.best_params_ == theirs.best_params_
        if options.get("refit", True):
            np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        return ours

    return compare
