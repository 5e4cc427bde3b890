"""The figures of a handle and of a fitted search, and what they say where there are none."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.svm import SVC

from gridfleet import GridSearchCV, RandomizedSearchCV, open_search
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import MissingPackageError, NothingToDrawError
from gridfleet.storage.identity import fleet_id

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
METHODS = ("plot_history", "plot_parallel", "plot_importances", "plot_slice", "plot_curves", "plot_folds")


class InThisProcess(GridSearchCV):
    """Fitted without a fleet."""

    fit = model_selection.GridSearchCV.fit


def test_a_handle_draws_its_search(pima: int) -> None:
    handle = open_search("pima")

    assert all(getattr(handle, method)().data for method in METHODS)
    assert handle.plot_slice("batch_size").layout.xaxis.title.text == "batch_size"
    assert handle.plot_curves(3).layout.title.subtitle.text.startswith("trial 3")
    assert handle.plot_folds(number=2).data
    with pytest.raises(NothingToDrawError, match="no metric 'f1'; it has 'score'"):
        handle.plot_folds("f1")
    assert handle.to_optuna().best_params == {"optimizer": "adam", "batch_size": 20}


def test_a_fitted_search_has_the_same_figures_after_a_journey_too(pima: int, database: Database) -> None:
    search = InThisProcess(SVC(), {"C": [1, 2]}, cv=2).fit(X, Y)
    with pytest.raises(NothingToDrawError, match="was not fitted on a fleet"):
        search.plot_history()
    search._ran_as = (fleet_id(database), pima)  # as `fit` on a fleet leaves it

    travelled = pickle.loads(pickle.dumps(search))

    assert all(getattr(travelled, method)() == getattr(open_search("pima"), method)() for method in METHODS)
    assert travelled.to_optuna().best_value == 0.75
    assert "_ran_as" not in vars(search.to_sklearn())
    search._ran_as = ("another", pima)
    with pytest.raises(NothingToDrawError, match="fitted on another fleet"):
        search.plot_history()


@pytest.mark.parametrize("search", [GridSearchCV(SVC(), {"C": [1]}), RandomizedSearchCV(SVC(), {"C": [1]})])
def test_a_search_that_is_not_fitted_says_so(search: Any) -> None:
    with pytest.raises(NotFittedError):
        clone(search).plot_history()
    with pytest.raises(AttributeError):
        search.to_optuna()


@pytest.mark.parametrize(("package", "method"), [("plotly", "plot_history"), ("optuna", "to_optuna")])
def test_without_the_extra_a_sentence_says_what_to_install(
    pima: int, monkeypatch: pytest.MonkeyPatch, package: str, method: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingPackageError, match=rf"{package} is needed for this: pip install 'gridfleet\["):
        getattr(open_search("pima"), method)()
