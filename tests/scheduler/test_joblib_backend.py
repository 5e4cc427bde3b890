"""Inside ``parallel_config(backend="gridfleet")``, calls that are no search's run here."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

from gridfleet import register_joblib_backend

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


def test_an_error_of_such_a_call_is_raised(no_variables: None) -> None:
    with joblib.parallel_config(backend="gridfleet"), pytest.raises(ZeroDivisionError):
        joblib.Parallel()(joblib.delayed(divmod)(1, number) for number in (1, 0))
