"""A search that learns, on real workers: the same trials and scores whatever the fleet, and whatever broke."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import scipy.stats
from sklearn.datasets import load_iris
from sklearn.model_selection._search import BaseSearchCV
from sklearn.svm import SVC

import gridfleet
from gridfleet.scheduler import optuna_search_cv
from gridfleet.storage.settings import Settings
from tests.conftest import READY_S
from tests.same_results import assert_same_results

IRIS = load_iris(return_X_y=True)
SPACE = [
    {"kernel": ["rbf"], "C": scipy.stats.loguniform(1e-2, 1e2), "gamma": scipy.stats.loguniform(1e-3, 10)},
    {"kernel": ["linear"], "C": scipy.stats.loguniform(1e-2, 1e2), "class_weight": [None, {0: 1, 1: 2, 2: 1}]},
]


def search(**options: Any) -> gridfleet.OptunaSearchCV:
    sampler = {"name": "tpe", "n_startup_trials": 4}
    given = {"n_trials": 10, "lookahead": 3, "cv": 3, "verbose": 0, "random_state": 0, "refit": False, **options}
    return gridfleet.OptunaSearchCV(SVC(), SPACE, **{"sampler": sampler, **given})


def results_of_this_process(**options: Any) -> dict[str, Any]:
    """Propose and evaluate one trial after the other, without a fleet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna_search_cv, "is_worker_process", lambda: True)
        alone = search(**options)
        BaseSearchCV.fit(alone, *IRIS)
    results: dict[str, Any] = alone.cv_results_
    return results


def test_an_embedded_fleet_gives_what_one_process_gives_trial_after_trial(embedded_home: Path) -> None:
    ours = search(n_jobs=2, refit=True).fit(*IRIS)

    assert_same_results(ours.cv_results_, results_of_this_process())
    assert len({str(params) for params in ours.cv_results_["params"]}) == 10
    assert {params["kernel"] for params in ours.cv_results_["params"]} == {"rbf", "linear"}
    assert ours.best_score_ == max(ours.cv_results_["mean_test_score"])
    assert ours.best_estimator_.get_params()["C"] == ours.best_params_["C"]
    assert ours.to_sklearn().cv_results_ is ours.cv_results_


@contextmanager
def scheduler_of(settings: Settings, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    health = folder / "scheduler.health"
    health.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "gridfleet", "scheduler"],
        env={**os.environ, **settings.replace(health_file=health).as_variables()},
    )
    try:
        until = time.monotonic() + READY_S
        while not health.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for_trials(handle: gridfleet.SearchHandle, n_done: int) -> None:
    until = time.monotonic() + READY_S
    while handle.progress().done < n_done:
        assert time.monotonic() < until, handle
        time.sleep(0.02)


@pytest.fixture
def quick(make_settings: Callable[..., Settings], backend: str, use_fleet: Callable[[Settings], None]) -> Settings:
    settings = make_settings(backend, lease_s=4, heartbeat_s=1, reconcile_s=1)
    use_fleet(settings)
    return settings


@pytest.mark.parametrize(
    "n_workers", [pytest.param(1, marks=pytest.mark.complete), 2, pytest.param(4, marks=pytest.mark.complete)]
)
def test_whatever_breaks_trials_and_scores_are_those_of_one_process(
    quick: Settings, start_worker: Callable[..., Any], tmp_path: Path, n_workers: int
) -> None:
    first = start_worker(quick, concurrency=n_workers)
    with scheduler_of(quick, tmp_path) as scheduler:
        handle = gridfleet.submit(search(), *IRIS)
        wait_for_trials(handle, 2)
        scheduler.kill()
        scheduler.wait(30)
    first.kill()
    with redis.Redis.from_url(quick.broker()) as broker:
        broker.flushdb()
    start_worker(quick, concurrency=n_workers)

    with scheduler_of(quick, tmp_path):
        handle.wait(READY_S)

    assert_same_results(handle.cv_results_, results_of_this_process())
