"""Searches that stop poor trials, on real workers: the same whatever the fleet, and scikit-learn's results of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import redis
import scipy.stats
from scikeras.wrappers import KerasClassifier
from sklearn.datasets import load_iris
from sklearn.svm import SVC
from sqlalchemy import select

import gridfleet
from gridfleet.scheduler.fleet.connection import connect
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, NameTakenError, NoTrialCompletedError
from gridfleet.storage.schema import Report, Trial
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import Touching, create_model
from tests.end_to_end.test_searches_that_learn import scheduler_of, wait_for_trials
from tests.running_worker import READY_S

IRIS = load_iris(return_X_y=True)
SPACE = {"C": scipy.stats.loguniform(1e-3, 1e2), "gamma": scipy.stats.loguniform(1e-3, 10)}
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(90, 8)).astype("float32")
Y = (X[:, 0] + X[:, 1] + DRAW.normal(size=90) / 2 > 0).astype(int)


def search(**options: Any) -> gridfleet.OptunaSearchCV:
    given = {
        "n_trials": 16,
        "sampler": {"name": "tpe", "n_startup_trials": 4},
        "pruner": {"name": "asha", "reduction_factor": 2},
        "lookahead": 3,
        "cv": 4,
        "verbose": 0,
        "random_state": 0,
        **options,
    }
    return gridfleet.OptunaSearchCV(given.pop("estimator", SVC()), given.pop("space", SPACE), **given)


def rows_of(database: Database, search_id: int) -> list[tuple[Any, ...]]:
    """Return all that is a function of the seed: trials, where they were pruned, and all reports."""
    trials = select(
        Trial.number, Trial.state, Trial.sample, Trial.pruned_split, Trial.pruned_epoch, Trial.pruned_value
    ).where(Trial.search_id == search_id)
    reports = (
        select(Trial.number, Report.split, Report.step, Report.value, Report.n_compared, Report.rank, Report.decision)
        .join(Trial, Trial.id == Report.trial_id)
        .where(Trial.search_id == search_id)
    )
    with database.read() as connection:
        found = connection.execute(trials.order_by(Trial.number)).all()
        reported = connection.execute(reports.order_by(Trial.number, Report.split, Report.step)).all()
    return [tuple(row) for row in (*found, *reported)]


@pytest.fixture
def quick(make_settings: Callable[..., Settings], backend: str, use_fleet: Callable[[Settings], None]) -> Settings:
    settings = make_settings(backend, lease_s=4, heartbeat_s=1, reconcile_s=1)
    use_fleet(settings)
    return settings


def test_whatever_breaks_the_same_trials_are_pruned_at_the_same_place(
    quick: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"sampler": "random", "refit": False}
    start_worker(quick, concurrency=1)
    with scheduler_of(quick, tmp_path):
        alone = gridfleet.submit(search(**options), *IRIS).wait(READY_S)
        first = start_worker(quick, concurrency=2)
        broken = gridfleet.submit(search(**options), *IRIS)
        wait_for_trials(broken, 2)
        first.kill()
        with redis.Redis.from_url(quick.broker()) as broker:
            broker.flushdb()
        broken.wait(READY_S)

    database = connect().database
    expected = rows_of(database, alone.id)
    assert rows_of(database, broken.id) == expected
    states = [row[1] for row in expected[:16]]
    assert set(states) == {"completed", "pruned"}
    assert states[:3] == ["completed"] * 3, "the first ones are compared with nobody"


def test_results_of_pruned_trials_are_nan_and_last_and_nothing_warns_of_it(embedded_home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = search(n_jobs=2, name="pruned").fit(*IRIS)

    results = ours.cv_results_
    database = connect().database
    with database.read() as connection:
        query = select(Trial.number, Trial.pruned_split).where(Trial.state == "pruned")
        pruned = {row.number: row.pruned_split for row in connection.execute(query)}
    assert 0 < len(pruned) < 16
    means, ranks = results["mean_test_score"], results["rank_test_score"]
    assert {number for number in range(16) if math.isnan(means[number])} == set(pruned)
    assert {ranks[number] for number in pruned} == {16 - len(pruned) + 1}
    for number, split in pruned.items():
        scores = [results[f"split{index}_test_score"][number] for index in range(4)]
        assert [math.isnan(score) for score in scores] == [index > split for index in range(4)]
    assert ours.best_index_ not in pruned
    assert ours.best_estimator_.get_params()["C"] == ours.best_params_["C"]
    states = {trial.number: trial.state for trial in ours.study_.trials}
    assert {number for number, state in states.items() if state == optuna.trial.TrialState.PRUNED} == set(pruned)
    assert all(ours.study_.trials[number].intermediate_values for number in range(16))
    handle = gridfleet.open_search("pruned")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(handle.cv_results_["mean_test_score"], means)
    assert handle.best_index_ == ours.best_index_
    assert handle.progress().counts == f"{16 - len(pruned)}/16 scored, {len(pruned)} pruned"
    assert handle.progress().is_finished
    with pytest.raises(NameTakenError, match="differs in pruner"):
        search(pruner="median", name="pruned", load_if_exists=True).fit(*IRIS)
    with pytest.raises(NameTakenError, match="differs in pruner"):
        search(pruner=None, name="pruned", load_if_exists=True).fit(*IRIS)
    again = search(name="pruned", load_if_exists=True).fit(*IRIS)
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], means)


def test_keras_models_race_between_epochs_and_the_best_is_fitted_on_the_fleet(embedded_home: Path) -> None:
    model = KerasClassifier(create_model, epochs=4, batch_size=16, verbose=0, random_state=1)
    space = {"model__optimizer": ["adam", "sgd", "rmsprop"], "model__units": [1, 2, 4, 8]}
    options = {"estimator": model, "space": space, "n_trials": 8, "lookahead": 1, "cv": 2, "n_jobs": 1}

    handle = gridfleet.submit(search(**options, scoring=["accuracy", "f1"], refit="f1"), X, Y).wait(READY_S)

    rows = rows_of(connect().database, handle.id)
    pruned = {row[0]: row[4] for row in rows[:8] if row[1] == "pruned"}
    assert set(pruned.values()) <= {1, 2, None}
    assert {1, 2} & set(pruned.values())
    assert handle.best_index_ not in pruned
    assert handle.best_estimator_.predict(X).shape == Y.shape
    results = handle.cv_results_
    for metric in ("accuracy", "f1"):
        means = results[f"mean_test_{metric}"]
        assert {number for number in range(8) if math.isnan(means[number])} == set(pruned)


def test_where_no_trial_is_completed_none_is_fitted(embedded_home: Path, tmp_path: Path) -> None:
    estimator = Touching(str(tmp_path))
    given = search(
        estimator=estimator,
        space={"value": [1], "then": ["raise"]},
        pruner={"name": "asha", "bootstrap_count": 99},
        n_trials=2,
        n_jobs=1,
    )
    given.set_params(param_distributions={"value": [1, 2], "then": [""]})

    with pytest.raises(NoTrialCompletedError, match="trial 0 would be the best one, and was pruned"):
        given.fit(*IRIS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pruner": "ashaa"}, "pruner='ashaa' is unknown; did you mean 'asha'"),
        ({"cv": [(np.arange(100), np.arange(100, 150))]}, "SVC has no epochs, and cv gives one split"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_before_anything_is_stored(
    embedded_home: Path, options: dict[str, Any], sentence: str
) -> None:
    wrong = search(n_jobs=1, **options)
    for run in (lambda: wrong.fit(*IRIS), lambda: gridfleet.submit(wrong, *IRIS)):
        with pytest.raises(InvalidSearchError, match=sentence) as raised:
            run()
        assert "\n" not in str(raised.value)
