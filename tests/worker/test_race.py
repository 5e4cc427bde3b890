"""A trial that is compared with others while it is evaluated: where, by what, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import keras
import numpy as np
import pytest
from keras import Input, Sequential
from keras.layers import BatchNormalization, Dense, Dropout
from scikeras.wrappers import KerasClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sqlalchemy import insert, select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.pruner import Pruner
from gridfleet.storage.schema import Report, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import PrunedResult, TrialResult
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from gridfleet.worker.trial.cross_validation import Evaluation, cross_validate_trial
from gridfleet.worker.trial.interrupter import TrialInterrupted
from gridfleet.worker.trial.race import Race
from tests.storage.conftest import StoredSearch, store_search
from tests.stored_searches import switch_triggers_off

DRAW = np.random.default_rng(1)
X = DRAW.normal(size=(60, 8)).astype("float32")
Y = (X[:, 0] + DRAW.normal(size=60) > 0).astype(int)
SPLITS = [
    (np.arange(20, 60), np.arange(20)),
    (np.r_[0:20, 40:60], np.arange(20, 40)),
    (np.arange(40), np.arange(40, 60)),
]
ASHA = Pruner("asha")
COMPLETE = pytest.mark.complete


@pytest.fixture
def database(make_settings: Callable[..., Settings]) -> Any:
    with closing(Database(make_settings("sqlite"))) as database:
        yield database


def build(rate: float = 0.3) -> Sequential:
    model = Sequential(
        [Input((8,)), Dense(4, activation="relu"), BatchNormalization(), Dropout(rate), Dense(1, activation="sigmoid")]
    )
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


class AtEachBatch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.seen = batch


class AtEachEpoch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.seen = epoch


class Batchwise(KerasClassifier):
    """Trains by a train function of its own making, which Keras itself has to run."""


def classifier(**options: Any) -> KerasClassifier:
    return KerasClassifier(
        **{"model": build, "epochs": 10, "batch_size": 8, "verbose": 0, "random_state": 3, **options}
    )


def race_of(database: Database, search: StoredSearch, number: int, pruner: Pruner, monitor: str) -> Race:
    columns = {"pruner": pruner.to_json(), "monitor": monitor, "lookahead": 1, "asks_in_order": False}
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(columns))
    claim = search.claim(number)
    assert claim is not None
    return Race(database, claim, patience_s=5)


def evaluate(estimator: Any, race: Race | None = None, *, fit_mode: FitMode = FitMode.EXACT, **arguments: Any) -> Any:
    shared = {
        "scorer": check_scoring(estimator, arguments.pop("scoring", None)),
        "fit_params": {},
        "score_params": {},
        "return_train_score": False,
        "error_score": np.nan,
        "verbose": 0,
        **arguments,
    }
    return cross_validate_trial(
        Evaluation(estimator, shared),
        X,
        Y,
        SPLITS,
        {},
        number=0,
        n_trials=1,
        refit_metric="score",
        fit_mode=fit_mode,
        seed=5,
        race=race,
    )


def reported(database: Database, search: StoredSearch, number: int = 0) -> list[tuple[int, int]]:
    query = select(Report.split, Report.step).where(Report.trial_id == search.trial_ids[number])
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(query.order_by(Report.split, Report.reported_at, Report.step))]


def report_of_others(database: Database, search: StoredSearch, value: float, places: list[tuple[int, int]]) -> None:
    """Let the last trial of a search have reported a value."""
    rows = [
        {"trial_id": search.trial_ids[-1], "split": split, "step": step, "value": value, "n_compared": 0, "rank": 1}
        for split, step in places
    ]
    with database.write() as connection:
        connection.execute(insert(Report), [{**row, "decision": "kept"} for row in rows])


def facts(result: TrialResult) -> dict[str, Any]:
    return {
        "scores": [(split.split, split.test_score) for split in result.splits],
        "mean": result.mean_test_score,
        "curves": [(curve.split, curve.metric, list(curve.values)) for curve in result.curves],
        "error": result.error,
    }


ESTIMATORS = {
    "in the graph": (classifier(), FitMode.EXACT),
    "validated": (classifier(validation_split=0.25), FitMode.EXACT),
    "with a callback": (classifier(callbacks=[AtEachEpoch]), FitMode.EXACT),
    "batch by batch": (classifier(callbacks=[AtEachBatch]), FitMode.EXACT),
    "by Keras": (classifier(validation_split=0.25), FitMode.KERAS),
    "in a pipeline": (make_pipeline(StandardScaler(), classifier()), FitMode.EXACT),
    "without a seed": (classifier(random_state=None), FitMode.EXACT),
    "without epochs": (LogisticRegression(), FitMode.EXACT),
}


#: The others take a minute.
SOME = [
    name if name in ("in the graph", "batch by batch", "without epochs") else pytest.param(name, marks=COMPLETE)
    for name in ESTIMATORS
]


@pytest.mark.parametrize("name", SOME)
def test_a_trial_that_is_kept_is_what_it_is_without_a_pruner(database: Database, name: str) -> None:
    estimator, fit_mode = ESTIMATORS[name]
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, "score")

    raced = evaluate(estimator, race, fit_mode=fit_mode)

    assert facts(raced) == facts(evaluate(estimator, fit_mode=fit_mode))
    epochs = [] if name == "without epochs" else [(0, 1), (0, 3), (0, 9)]
    assert sorted(reported(database, search)) == sorted([*epochs, (0, 0), (1, 0)])


@pytest.mark.parametrize("name", SOME)
def test_a_trial_that_others_beat_ends_between_epochs(database: Database, name: str) -> None:
    estimator, fit_mode = ESTIMATORS[name]
    search = store_search(database, 2)
    place = (0, 0) if name == "without epochs" else (0, 3)
    report_of_others(database, search, 2.0, [place])
    race = race_of(database, search, 0, ASHA, "score")

    result = evaluate(estimator, race, fit_mode=fit_mode)

    assert result.pruned is not None
    assert (result.pruned.split, result.pruned.epoch or 0) == place
    assert result.error is None
    assert (result.fit_mode is None) is (name == "without epochs" or name == "batch by batch")
    if name == "without epochs":
        assert [split.split for split in result.splits] == [0]
    else:
        assert result.splits == []
        whole = {
            curve.metric: list(curve.values)
            for curve in evaluate(estimator, fit_mode=fit_mode).curves
            if not curve.split
        }
        assert {curve.metric: curve.values for curve in result.curves} == {
            metric: values[:3] for metric, values in whole.items()
        }


def test_what_is_compared_is_the_score_of_the_test_rows_as_the_model_is_then(database: Database) -> None:
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, "score")
    evaluate(classifier(), race)

    with database.read() as connection:
        value = connection.execute(select(Report.value).where(Report.step == 3)).scalar_one()
    short = evaluate(classifier(epochs=3))
    assert value == short.splits[0].test_score


@pytest.mark.parametrize("fit_mode", [FitMode.EXACT, pytest.param(FitMode.KERAS, marks=COMPLETE)])
def test_a_curve_is_compared_so_that_less_loss_is_better(database: Database, fit_mode: FitMode) -> None:
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, "val_loss")

    result = evaluate(classifier(validation_split=0.25), race, fit_mode=fit_mode)

    with database.read() as connection:
        found = connection.execute(select(Report.value).where(Report.step > 0).order_by(Report.step)).scalars().all()
    curve = next(curve.values for curve in result.curves if (curve.split, curve.metric) == (0, "val_loss"))
    assert found == [-curve[0], -curve[2], -curve[8]]


def test_a_model_that_diverged_is_pruned_by_its_loss(database: Database) -> None:
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, "loss")

    result = evaluate(classifier(model=diverging), race)

    assert result.pruned == PrunedResult(0, 1, None)


def diverging() -> Sequential:
    model = Sequential([Input((8,)), Dense(1)])
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(1e13))
    return model


@pytest.mark.parametrize(
    ("estimator", "monitor", "sentence"),
    [
        (
            classifier(),
            "val_loss",
            "'val_loss' is no learning curve of this model; these are accuracy, loss; set valid",
        ),
        (classifier(validation_split=0.25), "val_los", "did you mean 'val_loss'"),
        (classifier(), "accurac", "did you mean 'accuracy'"),
        (LogisticRegression(), "val_loss", "this estimator has none"),
    ],
    ids=["no validation", "another name", "another one", "no epochs"],
)
def test_a_curve_that_is_not_there_is_one_sentence(
    database: Database, estimator: Any, monitor: str, sentence: str
) -> None:
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, monitor)

    result = evaluate(estimator, race)

    assert result.pruned is None
    assert result.error_type == "gridfleet.storage.errors.InvalidSearchError"
    assert sentence in (result.error or "")
    assert "\n" not in (result.error or "")
    assert json.loads(result.exception or "")


class CatchesAll(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.model_ = build()
        try:
            self.model_.fit(X, y, epochs=9, verbose=0)
        except BaseException:
            self.caught_ = True
        return self

    def predict(self, X):
        return (self.model_.predict(X, verbose=0)[:, 0] > 0.5).astype(int)


def test_code_that_catches_all_is_pruned_all_the_same(database: Database) -> None:
    search = store_search(database, 2)
    report_of_others(database, search, 2.0, [(0, 1)])

    result = evaluate(CatchesAll(), race_of(database, search, 0, ASHA, "score"))

    assert result.pruned is not None
    assert (result.pruned.split, result.pruned.epoch) == (0, 1)


def test_a_scorer_that_raises_fails_the_trial_and_is_compared_with_nobody(database: Database) -> None:
    def broken(estimator: Any, X: Any, y: Any) -> float:
        raise ValueError("no score from me")

    search = store_search(database, 1)

    result = evaluate(classifier(epochs=2), race_of(database, search, 0, ASHA, "score"), scoring=broken)

    assert "no score from me" in (result.error or "")
    assert reported(database, search) == []


def test_a_scorer_that_draws_changes_nothing(database: Database) -> None:
    def drawing(estimator: Any, X: Any, y: Any) -> float:
        np.random.rand(7)  # noqa: NPY002 - what scorers of users do
        return float(estimator.score(X, y))

    estimator = classifier(random_state=None, callbacks=[AtEachEpoch])
    search = store_search(database, 1)

    raced = evaluate(estimator, race_of(database, search, 0, ASHA, "score"), scoring=drawing)

    assert facts(raced) == facts(evaluate(estimator, scoring=drawing))


def test_a_trial_that_was_taken_back_ends_where_it_reports(database: Database) -> None:
    search = store_search(database, 1)
    race = race_of(database, search, 0, ASHA, "score")
    with database.read() as connection:
        row = connection.execute(select(Trial.id, Trial.token)).one()
    transitions.release(database, Held(row.id, row.token))

    with pytest.raises(TrialInterrupted, match="lease_lost"):
        evaluate(classifier(), race)


def test_training_that_stops_early_is_compared_no_more_between_epochs(database: Database) -> None:
    search = store_search(database, 1)
    stop = keras.callbacks.EarlyStopping(monitor="loss", min_delta=10, patience=2)

    evaluate(classifier(callbacks=[stop]), race_of(database, search, 0, ASHA, "score"))

    assert sorted(reported(database, search)) == [(0, 0), (0, 1), (1, 0)]


def test_wilcoxon_compares_behind_splits_only(database: Database) -> None:
    search = store_search(database, 1)

    evaluate(classifier(), race_of(database, search, 0, Pruner("wilcoxon"), "score"))

    assert sorted(reported(database, search)) == [(0, 0), (1, 0)]
