"""One combination over its splits."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from scikeras.wrappers import KerasClassifier
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.metrics import check_scoring

from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.trial_results import NON_FINITE
from gridfleet.worker.trial.cross_validation import Evaluation, cross_validate_trial
from tests.end_to_end.models import create_model
from tests.thinning import some_of

X, Y = np.arange(64.0).reshape(8, 8), np.arange(8) % 2
SPLITS = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]


def evaluate(
    estimator: Any, params: dict[str, Any] | None = None, *, fit_mode: FitMode = FitMode.EXACT, **arguments: Any
) -> Any:
    shared = {
        "scorer": check_scoring(estimator, None),
        "fit_params": {},
        "score_params": {},
        "return_train_score": True,
        "error_score": np.nan,
        "verbose": 0,
        **arguments,
    }
    evaluation = Evaluation(estimator, shared)
    return cross_validate_trial(
        evaluation, X, Y, SPLITS, params or {}, number=0, n_trials=1, refit_metric="score", fit_mode=fit_mode
    )


class Fails(BaseEstimator):
    def __init__(self, splits: tuple[float, ...] = (0.0, 4.0)) -> None:
        self.splits = splits

    def fit(self, X, y):
        if X[0, 0] / 8 in self.splits:
            raise RuntimeError(f"not this split\nX begins with {X[0, 0]}")
        return self

    def score(self, X, y):
        return 0.5


def test_a_trial_has_a_score_for_each_split_and_their_mean() -> None:
    result = evaluate(DummyClassifier(strategy="constant", constant=1))

    assert [(split.split, split.metric, split.test_score, split.train_score) for split in result.splits] == [
        (0, "score", 0.5, 0.5),
        (1, "score", 0.5, 0.5),
    ]
    assert [(split.n_train, split.n_test) for split in result.splits] == [(4, 4), (4, 4)]
    assert (result.mean_test_score, result.std_test_score, result.error) == (0.5, 0.0, None)


class Steps(Fails):
    def __init__(self, steps: int = 3) -> None:
        super().__init__(())
        self.steps = steps


def test_a_hyperparameter_may_be_called_steps() -> None:
    assert evaluate(Steps(), {"steps": 4}).mean_test_score == 0.5


def test_a_fit_that_raises_counts_with_error_score_and_keeps_its_traceback() -> None:
    result = evaluate(Fails((0.0,)), error_score=0.0)

    assert [split.test_score for split in result.splits] == [0.0, 0.5]
    assert result.mean_test_score == 0.25
    assert result.error_type == "RuntimeError"
    assert "not this split" in result.error
    assert result.splits[1].error is None


def test_error_score_raise_ends_the_trial_at_its_first_error() -> None:
    result = evaluate(Fails(), error_score="raise")

    assert result.splits == []
    assert result.error_type == "RuntimeError"
    assert np.isnan(result.mean_test_score)


def test_a_score_that_is_no_number_fails_the_trial_with_the_reason() -> None:
    result = evaluate(Fails(()), scorer=lambda *_: float("inf"))

    assert result.error_type == NON_FINITE
    assert "inf" in result.error


@pytest.fixture
def keras_model() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=2, batch_size=4, verbose=0, random_state=1)


def test_learning_curves_are_those_of_keras(keras_model: KerasClassifier) -> None:
    result = evaluate(keras_model)

    assert {(point.split, point.epoch, point.metric) for point in result.epochs} == {
        (split, epoch, metric) for split in (0, 1) for epoch in (0, 1) for metric in ("accuracy", "loss")
    }


@pytest.mark.parametrize("fit_mode", some_of([FitMode.EXACT, FitMode.KERAS]))
def test_no_graph_of_a_model_stays_in_memory(keras_model: KerasClassifier, fit_mode: FitMode) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(type(found).__name__ == "FuncGraph" for found in gc.get_objects())

    evaluate(keras_model, fit_mode=fit_mode)
    before = graphs()
    evaluate(keras_model, {"random_state": 5}, fit_mode=fit_mode)
    evaluate(keras_model, {"random_state": 6}, fit_mode=fit_mode)

    assert graphs() <= before
