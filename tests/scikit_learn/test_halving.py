"""scikit-learn's own tests of its halving searches, with gridfleet's two classes in place of its own."""

import sys
from importlib import import_module

import pytest
from sklearn import model_selection
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - so that there is what is replaced

import gridfleet

NAME = "sklearn.model_selection.tests.test_successive_halving"

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_selection, "HalvingGridSearchCV", gridfleet.HalvingGridSearchCV)
    patch.setattr(model_selection, "HalvingRandomSearchCV", gridfleet.HalvingRandomSearchCV)
    _others = sys.modules.pop(NAME, None)  # another test may have imported it with scikit-learn's classes
    _module = import_module(NAME)
    sys.modules.pop(NAME)
    if _others is not None:
        sys.modules[NAME] = _others

globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})


def test_the_classes_under_test_are_ours():
    assert _module.HalvingGridSearchCV is gridfleet.HalvingGridSearchCV
    assert _module.HalvingRandomSearchCV is gridfleet.HalvingRandomSearchCV
