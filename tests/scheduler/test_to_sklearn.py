"""A fitted search as scikit-learn's own, which is unpickled where gridfleet is not installed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridfleet import GridSearchCV, RandomizedSearchCV

X, Y = load_iris(return_X_y=True)
MODEL = make_pipeline(StandardScaler(), LogisticRegression())
SPACE = {"logisticregression__C": [0.01, 1.0]}


class InThisProcess(GridSearchCV):
    """A subclass with an argument of its own, fitted without a fleet."""

    def __init__(self, estimator: Any, param_grid: Any, *, label: str = "", cv: Any = None, refit: Any = True) -> None:
        super().__init__(estimator, param_grid, cv=cv, refit=refit)
        self.label = label

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        return model_selection.GridSearchCV.fit(self, X, y, **params)


class RandomInThisProcess(RandomizedSearchCV):
    """Fitted without a fleet."""

    fit = model_selection.RandomizedSearchCV.fit


#: Run without gridfleet: whatever asks for it, or for a room of it, is told that there is none.
WITHOUT_GRIDFLEET = """
    import pickle, sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("gridfleet", "scheduler", "worker", "storage", "tests"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden())
    def tell(search):
        kind = f"{type(search).__module__}.{type(search).__name__}"
        predicted = search.predict(X) if search.refit else None
        return kind, predicted, search.best_params_, search.cv_results_, search.get_params(deep=False)

    searches, X = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([tell(search) for search in searches]))
"""


def unpickled_without_gridfleet(searches: list[Any]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(WITHOUT_GRIDFLEET)],
        input=pickle.dumps((searches, X)),
        capture_output=True,
        check=False,
        cwd=Path("/"),
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def test_it_is_scikit_learns_own_where_gridfleet_is_not_installed() -> None:
    ours = [
        InThisProcess(MODEL, SPACE, label="mine", cv=3),
        InThisProcess(MODEL, SPACE, refit=False),
        RandomInThisProcess(MODEL, SPACE, n_iter=2, random_state=1, verbose=0),
    ]
    theirs = [
        model_selection.GridSearchCV(MODEL, SPACE, cv=3),
        model_selection.GridSearchCV(MODEL, SPACE, refit=False),
        model_selection.RandomizedSearchCV(MODEL, SPACE, n_iter=2, random_state=1),
    ]

    told = unpickled_without_gridfleet([search.fit(X, Y).to_sklearn() for search in ours])

    for search, expected, (kind, predicted, best_params, results, params) in zip(ours, theirs, told, strict=True):
        expected.fit(X, Y)
        assert kind == f"sklearn.model_selection._search.{type(expected).__name__}"
        assert best_params == expected.best_params_
        np.testing.assert_array_equal(results["mean_test_score"], expected.cv_results_["mean_test_score"])
        assert list(params) == list(expected.get_params(deep=False))
        assert repr(params["cv"]) == repr(expected.cv)
        if expected.refit:
            np.testing.assert_array_equal(predicted, expected.predict(X))
        fitted = {name for name in vars(expected) if name.endswith("_")}
        assert {name for name in vars(search.to_sklearn()) if name.endswith("_")} == fitted


def test_a_search_that_is_not_fitted_is_none_of_scikit_learns() -> None:
    with pytest.raises(NotFittedError, match="This GridSearchCV instance is not fitted yet"):
        GridSearchCV(MODEL, SPACE).to_sklearn()
