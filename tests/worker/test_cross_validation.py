"""One combination over its splits."""

from __future__ import annotations

import gc
import re
import warnings
from typing import Any

import numpy as np
import pytest
from keras import Input, Sequential
from keras.layers import Dense
from keras.optimizers import SGD
from scikeras.wrappers import KerasClassifier, KerasRegressor
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, check_scoring, make_scorer
from sklearn.metrics._scorer import _MultimetricScorer

from gridfleet.storage.exceptions import exception_from_json
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.trial_results import NON_FINITE
from gridfleet.worker.trial.cross_validation import DIVERGED, Evaluation, cross_validate_trial
from gridfleet.worker.trial.fit_warnings import WarningFilters
from tests.end_to_end.models import create_model
from tests.thinning import some_of

X, Y = np.arange(64.0).reshape(8, 8), np.arange(8) % 2
SPLITS = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]


SHOW_ALL = WarningFilters([("always", None, Warning, None, 0)])


def evaluate(
    estimator: Any,
    params: dict[str, Any] | None = None,
    *,
    fit_mode: FitMode = FitMode.EXACT,
    refit_metric: str = "score",
    warning_filters: WarningFilters | None = None,
    **arguments: Any,
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
    evaluation = Evaluation(estimator, shared, warning_filters=warning_filters)
    return cross_validate_trial(
        evaluation, X, Y, SPLITS, params or {}, number=0, n_trials=1, refit_metric=refit_metric, fit_mode=fit_mode
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


def raises(model: Any, X: Any, y: Any) -> float:
    if X[0, 0] == 0:
        raise LookupError("no score\nfor this\nSTOP: really")
    return 0.25


@pytest.mark.usefixtures("recwarn")  # they are shown in the worker's log too
def test_what_a_scorer_raised_is_the_trial_s_error() -> None:
    result = evaluate(Fails(()), scorer=raises, return_train_score=False, warning_filters=SHOW_ALL)

    assert (result.error_type, result.exception) == ("LookupError", None)
    assert "the scorer raised on split 1:\n" in result.error
    assert result.error.endswith("LookupError: no score\nfor this\nSTOP: really")
    assert [split.score_error is None for split in result.splits] == [True, False]
    (warned,) = result.warnings
    assert (warned.category, warned.n_fits, warned.module) == (
        "UserWarning",
        1,
        "sklearn.model_selection._validation",
    )
    assert warned.message.startswith("Scoring failed.")


def test_a_scorer_that_raised_fails_the_trial_whatever_error_score_is() -> None:
    result = evaluate(Fails(()), scorer=raises, return_train_score=False, error_score=0.75)

    assert (result.mean_test_score, result.error_type) == (0.5, "LookupError")


def test_of_several_metrics_each_has_its_own_error() -> None:
    several = _MultimetricScorer(scorers={"good": make_scorer(accuracy_score), "bad": raises}, raise_exc=False)

    result = evaluate(
        DummyClassifier(strategy="constant", constant=1),
        scorer=several,
        refit_metric="good",
        return_train_score=False,
    )

    assert [(split.metric, split.split) for split in result.splits if split.score_error] == [("bad", 1)]
    assert (result.mean_test_score, result.error) == (0.5, None)  # of the metric that ranks


@pytest.mark.parametrize("score", [None, "a text"])
def test_a_score_that_is_none_at_all_is_let_out_as_scikit_learn_does(score: object) -> None:
    result = evaluate(Fails(()), scorer=lambda *_: score)

    error = exception_from_json(result.exception)
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"scoring must return a number, got {score} (")
    assert (result.error_type, result.splits) == ("ValueError", [])


class Warns(Fails):
    """Warns of the same again and again, and of something of its own in each fit."""

    def fit(self, X, y):
        for _ in range(3):
            warnings.warn("the same", ConvergenceWarning, stacklevel=1)
        warnings.warn(f"X begins with {X[0, 0]}", UserWarning, stacklevel=2)
        return self


@pytest.mark.usefixtures("recwarn")  # they are shown in the worker's log too
def test_warnings_of_fits_are_noted_once_each_with_their_number() -> None:
    before = list(warnings.filters), warnings.showwarning

    result = evaluate(Warns(()), warning_filters=SHOW_ALL)

    assert [(each.category, each.message, each.n_fits, each.module) for each in result.warnings] == [
        ("sklearn.exceptions.ConvergenceWarning", "the same", 2, __name__),
        ("UserWarning", "X begins with 0.0", 1, "sklearn.model_selection._validation"),
        ("UserWarning", "X begins with 32.0", 1, "sklearn.model_selection._validation"),
    ]
    assert (list(warnings.filters), warnings.showwarning) == before


@pytest.mark.usefixtures("recwarn")  # they are shown in the worker's log too
def test_the_script_s_filters_decide_what_is_an_error_and_what_is_nothing() -> None:
    ignored = ("ignore", re.compile("X begins", re.I), UserWarning, None, 0)
    filters = [("error", None, ConvergenceWarning, None, 0), ignored, ("always", None, Warning, None, 0)]
    as_error = evaluate(Warns(()), warning_filters=WarningFilters(filters))
    only_ignored = evaluate(Warns(()), warning_filters=WarningFilters(filters[1:]))

    assert as_error.error_type == "sklearn.exceptions.ConvergenceWarning"
    assert np.isnan(as_error.mean_test_score)
    assert [each.message for each in only_ignored.warnings] == ["the same"]


@pytest.fixture
def keras_model() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=2, batch_size=4, verbose=0, random_state=1)


def test_learning_curves_are_those_of_keras(keras_model: KerasClassifier) -> None:
    result = evaluate(keras_model)

    assert {(curve.split, curve.metric, len(curve.values)) for curve in result.curves} == {
        (split, metric, 2) for split in (0, 1) for metric in ("accuracy", "loss")
    }


@pytest.mark.usefixtures("recwarn")  # they are shown in the worker's log too
def test_a_model_that_diverged_is_told_as_that() -> None:
    def create_regressor():
        model = Sequential([Input((8,)), Dense(1)])
        model.compile(SGD(1e30), "mse")
        return model

    result = evaluate(KerasRegressor(create_regressor, epochs=3, batch_size=4, verbose=0), warning_filters=SHOW_ALL)

    assert result.error_type == "ValueError"
    assert "Input contains NaN" in result.error
    assert re.search(r"the model diverged: its loss was (nan|inf) from epoch \d of 3 on", result.error)
    assert [each.n_fits for each in result.warnings if each.message == DIVERGED] == [2]


@pytest.mark.parametrize("fit_mode", some_of([FitMode.EXACT, FitMode.KERAS]))
def test_no_graph_of_a_model_stays_in_memory(keras_model: KerasClassifier, fit_mode: FitMode) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(type(found).__name__ == "FuncGraph" for found in gc.get_objects())

    evaluate(keras_model, fit_mode=fit_mode)
    before = graphs()
    evaluate(keras_model, {"random_state": 5}, fit_mode=fit_mode)

    assert graphs() <= before
