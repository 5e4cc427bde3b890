"""How an estimator is shown in a report."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from gridfleet.scheduler.submission.estimator_text import estimator_text


def create_model() -> None:
    """Stand in for what makes a Keras model: it is not called."""


def test_of_a_keras_model_its_function_and_what_is_not_the_default_is_shown() -> None:
    from scikeras.wrappers import KerasClassifier

    shown = estimator_text(KerasClassifier(create_model, epochs=5, verbose=0, units=8))

    assert shown == "KerasClassifier(create_model, verbose=0, epochs=5, units=8)"


@pytest.mark.parametrize(
    ("estimator", "shown"),
    [
        (SVC(), "SVC()"),
        (SVC(C=10, kernel="linear"), "SVC(C=10, kernel='linear')"),
        (
            Pipeline([("pca", PCA(2)), ("svc", SVC(gamma=1.0))]),
            "Pipeline(steps=[('pca', PCA(n_components=2)), ('svc', SVC(gamma=1.0))])",
        ),
        (FunctionTransformer(np.log1p), "FunctionTransformer(func=<ufunc 'log1p'>)"),
        (FunctionTransformer(create_model), "FunctionTransformer(create_model)"),
    ],
    ids=["defaults", "changed", "nested", "ufunc", "function"],
)
def test_defaults_and_addresses_are_left_out(estimator: object, shown: str) -> None:
    assert estimator_text(estimator) == shown


def test_one_that_can_not_tell_its_parameters_is_shown_all_the_same() -> None:
    class Broken(SVC):
        def get_params(self, deep: bool = True) -> dict[str, object]:
            raise RuntimeError("no")

        def __repr__(self) -> str:
            return "Broken(…)"

    assert estimator_text(Broken()) == "Broken(…)"
