"""Halving searches on real workers: scikit-learn's results to the last bit, all rounds of them one search in SQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import scipy.stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import KFold
from sklearn.model_selection import _search_successive_halving as sklearns
from sklearn.svm import SVC

import gridfleet
from gridfleet.scheduler import halving_search_cv
from gridfleet.scheduler.cli.main import main
from gridfleet.scheduler.reports import trial_reader
from gridfleet.scheduler.results import reproduction
from gridfleet.scheduler.results.recomputed import recomputed
from gridfleet.storage.errors import InvalidSearchError, NameTakenError
from gridfleet.storage.settings import Settings
from tests.running_scheduler import scheduler_of
from tests.running_worker import READY_S
from tests.same_results import assert_same_results

IRIS = load_iris(return_X_y=True)
#: 12 candidates in three rounds.
GRID = {"C": [0.01, 0.1, 1, 10], "gamma": [0.01, 0.1, 1]}
OPTIONS: dict[str, Any] = {"cv": 3, "random_state": 0, "min_resources": 30, "factor": 2}
#: What scikit-learn's halving searches have beside other searches.
OF_ROUNDS = (
    *("n_resources_", "n_candidates_", "n_remaining_candidates_", "max_resources_", "min_resources_", "n_iterations_"),
    *("n_possible_iterations_", "n_required_iterations_", "best_index_", "best_score_", "best_params_"),
)

#: The fleet that tests share is started by any of them.
pytestmark = pytest.mark.usefixtures("own_environment")


class Picky(ClassifierMixin, BaseEstimator):
    """Raises for one value; waits where it is told to."""

    def __init__(self, value: int = 0, wait_s: float = 0) -> None:
        self.value = value
        self.wait_s = wait_s

    def fit(self, X: Any, y: Any) -> Picky:
        if self.value == 2:
            raise ValueError("two is too much")
        if len(X) > 50:
            time.sleep(self.wait_s)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.where(np.arange(len(X)) % 10 < self.value, self.classes_[0], self.classes_[1])


@pytest.fixture(scope="module")
def halving_fleet(module_fleet: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use one fleet with a scheduler for the tests that do not disturb each other."""
    with scheduler_of(module_fleet, tmp_path_factory.mktemp("scheduler")):
        yield


def assert_same_search(ours: Any, theirs: Any) -> None:
    assert_same_results(ours.cv_results_, theirs.cv_results_)
    assert {name: getattr(ours, name) for name in OF_ROUNDS} == {name: getattr(theirs, name) for name in OF_ROUNDS}


def test_all_rounds_are_one_search_with_scikit_learns_results(
    embedded_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "return_train_score": True}
    theirs = sklearns.HalvingGridSearchCV(SVC(), GRID, **options).fit(*IRIS)

    ours = gridfleet.HalvingGridSearchCV(SVC(), GRID, n_jobs=2, name="halved", verbose=2, **options).fit(*IRIS)

    assert_same_search(ours, theirs)
    assert ours.n_candidates_ == [12, 6, 3]
    assert ours.best_estimator_.get_params()["C"] == ours.best_params_["C"]
    assert ours.to_sklearn().cv_results_ is ours.cv_results_
    assert type(ours.to_sklearn()) is sklearns.HalvingGridSearchCV
    output, errors = capfd.readouterr()
    assert "n_iterations" not in output
    assert "3 folds for each of 21 candidates, totalling 63 fits" in errors
    handle = gridfleet.open_search("halved")
    assert handle.progress().counts == "21/21 scored"
    assert_same_results(handle.cv_results_, theirs.cv_results_)
    assert (handle.best_index_, handle.best_params_) == (ours.best_index_, ours.best_params_)
    best = trial_reader.best_trial(handle._fleet.database, handle.id)
    assert best is not None
    assert best.number == ours.best_index_, "and not a trial of a round with fewer samples"
    with handle._fleet.database.read() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT iter, n_resources, count(*) FROM trials WHERE search_id = {handle.id} GROUP BY 1, 2 ORDER BY 1"
        ).all()
        assert rows == [(0, 30, 12), (1, 60, 6), (2, 120, 3)]
        in_view = connection.exec_driver_sql("SELECT number FROM best_trials WHERE search = 'halved'").scalar()
    assert in_view == ours.best_index_
    with pytest.raises(SystemExit):
        main(["report", "halved"])
    assert "12, 6, 3 candidates with 30, 60, 120 of n_samples" in capfd.readouterr().out
    so_far = handle.to_frame(partial=True)
    assert list(so_far.sort_index()["n_resources"]) == list(theirs.cv_results_["n_resources"])
    shown = reproduction.recorded_trial(handle._fleet, handle.id, 19)
    assert reproduction.reproduce_here(handle._fleet, shown).is_equal
    assert reproduction.reproduce_on_fleet(handle._fleet, shown).is_equal
    assert str(recomputed(handle._fleet, handle.id)) == "all 9 proposals follow from the scores of the rounds before"


def test_a_hyperparameter_is_the_resource_of_a_random_search(halving_fleet: None) -> None:
    distributions = {"max_depth": [2, 3, None], "min_samples_split": scipy.stats.randint(2, 11)}
    options = {"resource": "n_estimators", "max_resources": 12, "n_candidates": 6, "cv": 2, "random_state": 1}
    forest = RandomForestClassifier(random_state=0)
    theirs = sklearns.HalvingRandomSearchCV(forest, distributions, **options).fit(*IRIS)

    ours = gridfleet.HalvingRandomSearchCV(forest, distributions, n_jobs=2, verbose=0, refit_on="fleet", **options)
    ours.fit(*IRIS)

    assert_same_search(ours, theirs)
    assert ours.best_estimator_.n_estimators == theirs.best_estimator_.n_estimators
    with gridfleet.open_search(ours._ran_as[1])._fleet.database.read() as connection:
        columns = 'SELECT n_estimators, count(*) FROM "search-%d" GROUP BY 1 ORDER BY 1'
        shown = connection.exec_driver_sql(columns % ours._ran_as[1]).all()
    assert shown == list(zip(ours.n_resources_, ours.n_candidates_, strict=True))


def test_a_seed_that_nobody_gave_is_drawn_once(halving_fleet: None) -> None:
    distributions = {"C": scipy.stats.loguniform(1e-2, 1e2), "gamma": scipy.stats.loguniform(1e-3, 10)}
    options = {**OPTIONS, "random_state": None, "n_candidates": 8, "verbose": 0, "name": "drawn"}

    first = gridfleet.HalvingRandomSearchCV(SVC(), distributions, n_jobs=2, **options).fit(*IRIS)
    again = gridfleet.HalvingRandomSearchCV(SVC(), distributions, load_if_exists=True, **options).fit(*IRIS)

    assert len({str(params) for params in first.cv_results_["params"]}) == 8
    assert_same_results(again.cv_results_, first.cv_results_)
    generator = {**options, "random_state": np.random.RandomState(3), "name": None}
    ours = gridfleet.HalvingRandomSearchCV(SVC(), distributions, **generator).fit(*IRIS)
    theirs_options = {**OPTIONS, "random_state": np.random.RandomState(3), "n_candidates": 8}
    assert_same_search(ours, sklearns.HalvingRandomSearchCV(SVC(), distributions, **theirs_options).fit(*IRIS))


def wait_for_trials(handle: gridfleet.SearchHandle, n_done: int) -> None:
    until = time.monotonic() + READY_S
    while handle.progress().done < n_done:
        assert time.monotonic() < until, handle
        time.sleep(0.02)


@pytest.mark.complete  # test_searches_that_learn.py has the same of proposals in every run
def test_a_submitted_search_goes_on_without_its_script_whatever_breaks(
    make_settings: Callable[..., Settings],
    backend: str,
    use_fleet: Callable[[Settings], None],
    start_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    settings = make_settings(backend, lease_s=4, heartbeat_s=1, reconcile_s=1)
    use_fleet(settings)
    theirs = sklearns.HalvingGridSearchCV(SVC(), GRID, return_train_score=False, **OPTIONS).fit(*IRIS)
    ours = gridfleet.HalvingGridSearchCV(SVC(), GRID, return_train_score=False, verbose=0, **OPTIONS)
    first = start_worker(settings, concurrency=2)
    with scheduler_of(settings, tmp_path) as scheduler:
        handle = gridfleet.submit(ours, *IRIS)
        wait_for_trials(handle, 2)
        scheduler.kill()
        scheduler.wait(30)
    first.kill()
    with redis.Redis.from_url(settings.broker()) as broker:
        broker.flushdb()
    start_worker(settings, concurrency=2)

    with scheduler_of(settings, tmp_path):
        handle.wait(READY_S)

    assert_same_results(handle.cv_results_, theirs.cv_results_)
    assert handle.best_index_ == theirs.best_index_
    assert handle.best_estimator_.get_params()["C"] == theirs.best_params_["C"]


def test_a_cancelled_search_goes_on_to_the_same_end(halving_fleet: None) -> None:
    options = {**OPTIONS, "return_train_score": False, "verbose": 0, "name": "cancelled"}
    handle = gridfleet.submit(gridfleet.HalvingGridSearchCV(SVC(), GRID, n_jobs=2, **options), *IRIS)
    wait_for_trials(handle, 13)
    handle.cancel()
    handle.wait(READY_S)

    ours = gridfleet.HalvingGridSearchCV(SVC(), GRID, load_if_exists=True, **options).fit(*IRIS)

    theirs = sklearns.HalvingGridSearchCV(SVC(), GRID, return_train_score=False, **OPTIONS).fit(*IRIS)
    assert_same_search(ours, theirs)
    other = gridfleet.HalvingGridSearchCV(SVC(), GRID, load_if_exists=True, **{**options, "factor": 3})
    with pytest.raises(NameTakenError, match="differs in rounds"):
        other.fit(*IRIS)


def test_a_search_that_is_over_its_time_has_the_rounds_that_were_begun(halving_fleet: None) -> None:
    options = {"min_resources": 30, "factor": 2, "cv": 2, "random_state": 0, "n_jobs": 1, "verbose": 0}
    slow = gridfleet.HalvingGridSearchCV(
        Picky(wait_s=60), {"value": [0, 1, 3, 4]}, search_timeout=3, refit=False, name="late", **options
    )

    slow.fit(*IRIS)

    assert slow.n_candidates_ == [4, 2][: slow.n_iterations_]
    assert slow.n_iterations_ < 3
    assert np.isfinite(slow.cv_results_["mean_test_score"][:4]).all()
    assert gridfleet.open_search("late").state == "timed out"
    assert_same_results(gridfleet.open_search("late").cv_results_, slow.cv_results_)


def test_fits_that_raise_count_as_in_scikit_learn(halving_fleet: None) -> None:
    grid = {"value": [0, 1, 2, 3, 4, 5]}
    for error_score in (np.nan, 0.05):
        options = {**OPTIONS, "error_score": error_score}
        with pytest.warns(FitFailedWarning):
            theirs = sklearns.HalvingGridSearchCV(Picky(), grid, **options).fit(*IRIS)
        with pytest.warns(FitFailedWarning):
            ours = gridfleet.HalvingGridSearchCV(Picky(), grid, n_jobs=2, verbose=0, **options).fit(*IRIS)
        assert_same_search(ours, theirs)
    with pytest.raises(ValueError, match="two is too much"):
        gridfleet.HalvingGridSearchCV(Picky(), grid, verbose=0, error_score="raise", **OPTIONS).fit(*IRIS)
    handle = gridfleet.submit(
        gridfleet.HalvingGridSearchCV(Picky(), grid, verbose=0, error_score="raise", **OPTIONS), *IRIS
    ).wait(READY_S)
    assert handle.progress().total == 6, "no round follows"
    with pytest.raises(ValueError, match="two is too much"):
        _ = handle.cv_results_


def test_inside_a_trial_it_runs_as_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving_search_cv, "is_worker_process", lambda: True)
    monkeypatch.setattr("gridfleet.scheduler.search_cv.is_worker_process", lambda: True)

    ours = gridfleet.HalvingGridSearchCV(SVC(), GRID, verbose=0, **OPTIONS).fit(*IRIS)

    assert_same_search(ours, sklearns.HalvingGridSearchCV(SVC(), GRID, **OPTIONS).fit(*IRIS))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"cv": KFold(3, shuffle=True)}, ValueError, "must yield consistent folds"),
        ({"resource": "n_trees"}, ValueError, "Cannot use resource=n_trees"),
        ({"resource": "C"}, ValueError, "max_resources='auto'"),
        ({"min_resources": 1000}, ValueError, "min_resources_=1000 is greater"),
        ({"param_grid": {"D": [1, 2]}}, InvalidSearchError, "'D' is not a parameter of SVC"),
        ({"trial_timeout": -3}, InvalidSearchError, "trial_timeout=-3 must be a number of seconds"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_before_anything_is_stored(
    halving_fleet: None, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    wrong = gridfleet.HalvingGridSearchCV(SVC(), GRID, n_jobs=1, verbose=0).set_params(**options)
    with pytest.raises(error, match=sentence):
        wrong.fit(*IRIS)
    with pytest.raises(error, match=sentence):
        gridfleet.submit(wrong, *IRIS)


def test_verify_names_the_first_candidate_that_should_not_have_gone_on(
    halving_fleet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "refit": False, "verbose": 0, "name": "changed"}
    gridfleet.HalvingGridSearchCV(SVC(), GRID, n_jobs=2, **options).fit(*IRIS)
    handle = gridfleet.open_search("changed")
    with handle._fleet.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE split_scores SET test_score = 0 WHERE trial_id IN "
            f"(SELECT id FROM trials WHERE search_id = {handle.id} AND iter = 0 AND number >= 6)"
        )

    difference = recomputed(handle._fleet, handle.id)

    assert difference is not None
    assert difference.difference is not None
    assert difference.difference.number >= 12
    with pytest.raises(SystemExit) as ended:
        main(["verify", "changed", "--sample", "1"])
    assert ended.value.code == 1
    assert "does NOT follow from the scores of the rounds before" in capsys.readouterr().out
