"""A search that learns, on real workers: the same trials and scores whatever the fleet, and whatever broke."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
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
from gridfleet.scheduler.cli.main import main
from gridfleet.scheduler.results import reproduction
from gridfleet.scheduler.results.recomputed import recomputed
from gridfleet.storage.errors import InvalidSearchError, NameTakenError, ProposalError, SearchCancelledError
from gridfleet.storage.settings import PREFIX, Settings
from tests.conftest import stop_embedded_fleet, without_tensorflow
from tests.running_scheduler import scheduler_of
from tests.running_worker import READY_S
from tests.same_results import assert_same_results

IRIS = load_iris(return_X_y=True)
SPACE = [
    {"kernel": ["rbf"], "C": scipy.stats.loguniform(1e-2, 1e2), "gamma": scipy.stats.loguniform(1e-3, 10)},
    {"kernel": ["linear"], "C": scipy.stats.loguniform(1e-2, 1e2), "class_weight": [None, {0: 1, 1: 2, 2: 1}]},
]

#: The fleet that tests share is started by any of them.
pytestmark = pytest.mark.usefixtures("own_environment")


def search(**options: Any) -> gridfleet.OptunaSearchCV:
    sampler = {"name": "tpe", "n_startup_trials": 4}
    given = {"n_trials": 10, "lookahead": 3, "cv": 3, "verbose": 0, "random_state": 0, "refit": False, **options}
    return gridfleet.OptunaSearchCV(SVC(), SPACE, **{"sampler": sampler, **given})


@pytest.fixture(scope="module")
def embedded_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Go to a folder whose embedded fleet, which the first search starts, is for all tests that ask for it."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            patch.delenv(name)
        patch.chdir(folder)
        without_tensorflow(patch)
        yield folder
        stop_embedded_fleet(folder / ".gridfleet")


@cache
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
    assert [trial.value for trial in ours.study_.trials] == list(ours.cv_results_["mean_test_score"])
    assert (ours.study_.best_value, ours.study_.best_params["C"]) == (ours.best_score_, ours.best_params_["C"])
    assert ours.to_sklearn().cv_results_ is ours.cv_results_


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


def of_bits(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return all trials of a search, with each score as its 64 bits."""
    scores = [key for key in results if key.startswith("split") and key.endswith("_test_score")]
    assert len(scores) == 3
    return [
        (repr(params), *(results[key][number].tobytes().hex() for key in scores))
        for number, params in enumerate(results["params"])
    ]


@pytest.mark.complete
def test_sixty_trials_are_the_same_bit_for_bit_on_one_two_and_four_processes(
    quick: Settings, backend: str, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    """A worker is killed and the broker emptied in each; `pytest -s` shows what came out, on which database."""
    options = {"n_trials": 60, "lookahead": 8}
    expected = of_bits(results_of_this_process(**options))
    for n_processes in (1, 2, 4):
        first = start_worker(quick, concurrency=n_processes)
        with scheduler_of(quick, tmp_path):
            handle = gridfleet.submit(search(**options), *IRIS)
            wait_for_trials(handle, 20)
            first.kill()
            n_done = handle.progress().done
            with redis.Redis.from_url(quick.broker()) as broker:
                broker.flushdb()
            second = start_worker(quick, concurrency=n_processes)
            handle.wait(READY_S)
        second.stop()

        found = of_bits(handle.cv_results_)
        digest = hashlib.sha256(repr(found).encode()).hexdigest()
        print(
            f"{backend}, processes: {n_processes}, trials: {len(found)}, done when the worker was killed and "
            f"the broker emptied: {n_done}, SHA-256 of params and scores: {digest[:16]}"
        )
        assert n_done < 60
        assert found == expected
        assert str(recomputed(handle._fleet, handle.id)) == "all 60 proposals follow from the rows and the seed 0"


def test_an_error_of_optuna_ends_fit_with_its_sentence(embedded_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # asked for from the third trial on
    wrong = search(n_jobs=1, sampler={"name": "tpe", "n_startup_trials": 2, "n_ei_candidates": 0}, name="broken")

    with pytest.raises(ProposalError, match="search 'broken' ended early, as no more trials could be proposed: Val"):
        wrong.fit(*IRIS)

    handle = gridfleet.open_search("broken")
    assert (handle.state, handle.progress().completed > 0) == ("failed", True)
    with pytest.raises(SystemExit):
        main(["report", "broken"])
    assert "no more trials could be proposed: ValueError" in " ".join(capsys.readouterr().out.split())


def test_verify_names_the_first_proposal_that_does_not_follow(
    embedded_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searches = {"in order": {}, "as it comes": {"random_state": None}}
    for name, options in searches.items():
        search(n_jobs=2, name=name, **options).fit(*IRIS)
    for name in searches:
        with pytest.raises(SystemExit) as ended:
            main(["verify", name, "--sample", "1"])
        assert ended.value.code == 0
        assert "all 10 proposals follow from the rows and the seed " in capsys.readouterr().out
    handle = gridfleet.open_search("in order")
    with handle._fleet.database.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE trials SET mean_test_score = -mean_test_score WHERE search_id = {handle.id} AND number < 4"
        )

    with pytest.raises(SystemExit) as ended:
        main(["verify", "in order", "--sample", "1", "--json"])

    assert ended.value.code == 1
    told = json.loads(capsys.readouterr().out)["proposals"]
    assert told["difference"]["number"] >= 6
    assert told["difference"]["recorded"] != told["difference"]["again"]


def test_a_search_that_learns_is_kept_as_any_other(embedded_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = gridfleet.submit(search(n_jobs=2, refit=True, name="kept"), *IRIS).wait(READY_S)

    expected = results_of_this_process()
    assert_same_results(handle.cv_results_, expected)
    assert handle.best_estimator_.get_params()["C"] == handle.best_params_["C"]
    assert handle.progress().counts == "10/10 scored"
    assert_same_results(search(name="kept", refit=True, load_if_exists=True).fit(*IRIS).cv_results_, expected)
    assert "search 'kept' is there: 10 of 10 trials are done" in capsys.readouterr().err
    for change, sentence in (
        ({"n_trials": 11}, "n_trials: 10 there, 11 here"),
        ({"lookahead": 4}, "lookahead: 3 there, 4 here"),
        ({"random_state": 1}, "random_state: 0 there, 1 here"),
        ({"sampler": "random"}, "differs in sampler"),
    ):
        with pytest.raises(NameTakenError, match=sentence):
            search(name="kept", refit=True, load_if_exists=True, **change).fit(*IRIS)
    shown = reproduction.recorded_trial(handle._fleet, handle.id, 3)
    again = reproduction.reproduce_here(handle._fleet, shown)
    assert again.is_equal

    handle.delete()


def test_a_cancelled_search_goes_on_to_the_same_end(embedded_home: Path) -> None:
    handle = gridfleet.submit(search(n_jobs=2, n_trials=40, cv=2, name="cancelled"), *IRIS)
    wait_for_trials(handle, 3)
    handle.cancel()
    with pytest.raises(SearchCancelledError):
        _ = handle.wait(READY_S).cv_results_

    ours = search(n_trials=40, cv=2, name="cancelled", load_if_exists=True).fit(*IRIS)

    assert_same_results(ours.cv_results_, results_of_this_process(n_trials=40, cv=2))


def test_a_search_that_is_over_its_time_gives_what_is_there(embedded_home: Path) -> None:
    handle = gridfleet.submit(search(n_jobs=2, n_trials=100_000, cv=2, timeout=2, random_state=None), *IRIS)

    handle.wait(READY_S)

    assert handle.state == "timed out"
    results = handle.cv_results_
    assert 0 < len(results["params"]) < 100_000
    assert handle.best_score_ > 0


def test_a_space_that_ends_ends_the_search(embedded_home: Path) -> None:
    grid = {"C": [1, 10, 100], "kernel": ["linear", "rbf"]}
    options = {"n_trials": 50, "cv": 2, "verbose": 0, "n_jobs": 2, "refit": False}
    for sampler in ("grid", "tpe"):
        ours = gridfleet.OptunaSearchCV(SVC(), grid, sampler=sampler, **options).fit(*IRIS)

        assert len({str(params) for params in ours.cv_results_["params"]}) == len(ours.cv_results_["params"]) == 6
    assert ours.cv_results_["params"][0].keys() == {"C", "kernel"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_trials": 0}, "n_trials=0 must be a whole number from 1 to 100000"),
        ({"n_trials": 2.5}, "n_trials=2.5 must be a whole number from 1 to 100000"),
        ({"lookahead": 0}, "lookahead=0 must be a whole number from 1 to 10000"),
        ({"sampler": "tpee"}, "sampler='tpee' is unknown; did you mean 'tpe'"),
        ({"random_state": -1}, "random_state=-1 must be a whole number, 0 or more, or None"),
        ({"timeout": 3, "search_timeout": 4}, "timeout=3 and search_timeout=4 are one thing; give one of them"),
        ({"timeout": -3}, "timeout=-3 must be a number of seconds above 0"),
        ({"param_distributions": {}}, "param_distributions is an empty space"),
        ({"param_distributions": {"D": [1]}}, "'D' is not a parameter of SVC"),
        ({"param_distributions": {"C": 3}}, "has no values to propose"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_before_anything_is_stored(
    embedded_home: Path, options: dict[str, Any], sentence: str
) -> None:
    wrong = search(n_jobs=2).set_params(**options)
    with pytest.raises(InvalidSearchError, match=sentence):
        wrong.fit(*IRIS)
    with pytest.raises(InvalidSearchError, match=sentence):
        gridfleet.submit(wrong, *IRIS)
