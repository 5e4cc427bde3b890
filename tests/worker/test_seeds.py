"""Seeds of trials: drawn where the estimator has none, recorded, and the same result when they are set again."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from keras import Input, Sequential
from keras.layers import Dense, Dropout
from scikeras.wrappers import KerasClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.trial_results import TrialResult
from gridfleet.worker.trial import cross_validation
from gridfleet.worker.trial.cross_validation import Evaluation, cross_validate_trial
from gridfleet.worker.trial.process_state import unchanged_process
from gridfleet.worker.trial.seeds import BOUND, draw_seed, has_seeded_keras_model, wants_seed

generator = np.random.default_rng(0)
X, Y = generator.normal(size=(60, 4)), generator.integers(0, 2, 60)
SPLITS = [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]


def evaluate(estimator: Any, params: dict[str, Any] | None = None, **options: Any) -> TrialResult:
    arguments = {"scorer": check_scoring(estimator, None), "fit_params": {}, "score_params": {}}
    arguments |= {"return_train_score": False, "error_score": "raise", "verbose": 0}
    with unchanged_process():
        return cross_validate_trial(
            Evaluation(estimator, arguments),
            X,
            Y,
            SPLITS,
            params or {},
            number=0,
            n_trials=1,
            refit_metric="score",
            **options,
        )


def scores(result: TrialResult) -> list[float]:
    assert result.error is None, result.error
    return [split.test_score for split in result.splits]


def create_model(units: int = 4) -> Any:
    model = Sequential([Input((4,)), Dense(units, activation="relu"), Dropout(0.2), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer="adam")
    return model


class Drawing(ClassifierMixin, BaseEstimator):
    """Draws from what is the whole process's, and has no parameter for a seed."""

    def fit(self, X: Any, y: Any) -> Drawing:
        self.classes_ = np.unique(y)
        self.drawn_ = np.random.rand() + random.random()  # noqa: NPY002 - as models do
        return self

    def predict(self, X: Any) -> Any:
        return np.zeros(len(X), dtype=int)

    def score(self, X: Any, y: Any) -> float:
        return float(self.drawn_)


FOREST = RandomForestClassifier(n_estimators=3, max_features=1)


@pytest.mark.parametrize(
    ("estimator", "params", "wants"),
    [
        (FOREST, {}, True),
        (FOREST, {"random_state": 3}, False),
        (RandomForestClassifier(random_state=1), {}, False),
        (RandomForestClassifier(random_state=1), {"random_state": None}, True),
        (RandomForestClassifier(random_state=np.random.RandomState(1)), {}, False),
        (make_pipeline(PCA(), SVC(random_state=1)), {}, True),
        (make_pipeline(PCA(), SVC(random_state=1)), {"pca__random_state": 2}, False),
        (make_pipeline(PCA(random_state=1), SVC(random_state=1)), {"svc": DecisionTreeClassifier()}, True),
        (make_pipeline(PCA(random_state=1), SVC()), {"svc": DecisionTreeClassifier(random_state=2)}, False),
        (BaggingClassifier(DecisionTreeClassifier(), random_state=1), {}, True),
        (Drawing(), {}, True),
        (KerasClassifier(create_model, random_state=1), {}, False),
        (KerasClassifier(create_model), {"model__units": 2}, True),
        (object(), {}, True),
    ],
)
def test_who_has_no_seed_of_its_own_wants_one(estimator: Any, params: dict[str, Any], wants: bool) -> None:
    assert wants_seed(estimator, params) is wants


def test_a_keras_model_that_has_a_seed_is_known_wherever_it_is() -> None:
    seeded = KerasClassifier(create_model, random_state=1)
    assert has_seeded_keras_model(seeded, {})
    assert has_seeded_keras_model(make_pipeline(PCA(), seeded), {})
    assert not has_seeded_keras_model(seeded, {"random_state": None})
    assert has_seeded_keras_model(KerasClassifier(create_model), {"random_state": 1})
    assert not has_seeded_keras_model(make_pipeline(PCA(random_state=1), KerasClassifier(create_model)), {})


@pytest.mark.parametrize("estimator", [FOREST, Drawing(), BaggingClassifier(random_state=None)], ids=str)
def test_an_estimator_without_a_seed_is_random_and_can_be_evaluated_again(estimator: Any) -> None:
    first, other = evaluate(estimator), evaluate(estimator)

    assert first.seed is not None
    assert 0 <= first.seed < BOUND
    assert first.seed != other.seed
    again = evaluate(estimator, seed=first.seed)
    assert (scores(again), again.seed) == (scores(first), first.seed)
    if isinstance(estimator, Drawing):
        assert scores(first) != scores(other)
        assert len(set(scores(first))) == 2  # each split has a seed of its own


def test_the_seed_may_travel_with_the_evaluation() -> None:
    first = evaluate(Drawing())
    arguments = {"scorer": check_scoring(Drawing(), None), "fit_params": {}, "score_params": {}}
    arguments |= {"return_train_score": False, "error_score": "raise", "verbose": 0}
    evaluation = replace(Evaluation(Drawing(), arguments), seed=first.seed)

    again = cross_validate_trial(evaluation, X, Y, SPLITS, {}, number=0, n_trials=1, refit_metric="score")

    assert scores(again) == scores(first)


def test_where_the_estimator_has_a_seed_nothing_is_set_and_the_result_is_scikit_learn_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_validation, "set_seeds", lambda *_, **__: pytest.fail("a seed was set"))
    seeded = RandomForestClassifier(n_estimators=3, random_state=7)

    result = evaluate(seeded, seed=5)

    assert result.seed is None
    assert scores(result) == list(cross_val_score(seeded, X, Y, cv=SPLITS))


@pytest.mark.parametrize("fit_mode", [FitMode.EXACT, pytest.param(FitMode.KERAS, marks=pytest.mark.complete)])
def test_a_keras_model_without_a_seed_can_be_evaluated_again_to_the_last_bit(fit_mode: FitMode) -> None:
    model = KerasClassifier(create_model, epochs=2, batch_size=10, verbose=0, loss="binary_crossentropy")

    first, other = (evaluate(model, {"model__units": 5}, fit_mode=fit_mode) for _ in range(2))
    again = evaluate(model, {"model__units": 5}, fit_mode=fit_mode, seed=first.seed)

    assert first.seed is not None
    losses = [[curve.values for curve in result.curves if curve.metric == "loss"] for result in (first, other, again)]
    assert losses[0] == losses[2] != losses[1]
    assert scores(first) == scores(again)


def test_seeds_differ() -> None:
    assert len({draw_seed() for _ in range(100)}) == 100
