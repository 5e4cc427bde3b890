"""scikit-learn's own tests of its searches, with gridfleet's two classes in place of its own."""

import sys
from importlib import import_module

import pytest
from sklearn import model_selection

import gridfleet

NAME = "sklearn.model_selection.tests.test_search"

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_selection, "GridSearchCV", gridfleet.GridSearchCV)
    patch.setattr(model_selection, "RandomizedSearchCV", gridfleet.RandomizedSearchCV)
    sys.modules.pop(NAME, None)  # another test may have imported it with scikit-learn's classes
    _module = import_module(NAME)

globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})


def test_the_classes_under_test_are_ours():
    assert _module.GridSearchCV is gridfleet.GridSearchCV
    assert _module.RandomizedSearchCV is gridfleet.RandomizedSearchCV
