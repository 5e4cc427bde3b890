"""Limits that a search sets itself, pausing, resuming and trying again, with real workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import FitFailedWarning

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import Touching
from tests.faults.support import X, Y, attempts, search, wait_for, wait_for_file

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])


def test_a_trial_that_takes_longer_than_its_timeout_fails_at_once_and_the_others_count(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    submit(search(tmp_path, [9]), X, Y).wait(60)  # the imports of a process' first trial take their time
    grid = GridSearchCV(
        Touching(str(tmp_path)),
        [{"value": [1], "then": ["wait"]}, {"value": [2]}],
        cv=2,
        refit=False,
        verbose=0,
        trial_timeout=3,
    )

    with pytest.warns(FitFailedWarning, match="longer than trial_timeout=3 s"):
        grid.fit(X, Y)

    np.testing.assert_array_equal(grid.cv_results_["mean_test_score"], [np.nan, 2.0])
    assert attempts(fleet) == [(1, "completed"), (1, "timeout"), (1, "completed")]


def test_a_search_stops_at_its_timeout_with_what_is_there(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(heartbeat_s=0.2))
    grid = GridSearchCV(
        Touching(str(tmp_path)),
        [{"value": [1]}, {"value": [2, 3], "then": ["wait"]}],
        cv=2,
        refit=False,
        search_timeout=1,
    )
    handle = submit(grid, X, Y)
    wait_for_file(tmp_path, "began-2-*")

    wait_for(lambda: fleet.reconciler().once() and handle.progress().is_finished, "the search has stopped")

    assert handle.state == "timed out"
    assert (handle.progress().completed, handle.progress().cancelled) == (1, 2)
    with pytest.warns(UserWarning, match="non-finite"):
        results = handle.cv_results_
    np.testing.assert_array_equal(results["mean_test_score"], [1.0, np.nan, np.nan])
    assert handle.best_params_ == {"value": 1}


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("trial_timeout", 0, "trial_timeout=0 must be a number of seconds above 0, or None"),
        ("trial_timeout", float("nan"), "trial_timeout=nan must be a number of seconds above 0"),
        ("search_timeout", "1h", "search_timeout='1h' must be a number of seconds above 0"),
        ("search_timeout", True, "search_timeout=True must be a number of seconds above 0"),
        ("priority", 1.5, "priority=1.5 must be a whole number from -1000 to 1000"),
        ("priority", True, "priority=True must be a whole number from -1000 to 1000"),
        ("priority", 2**40, "priority=1099511627776 must be a whole number from -1000 to 1000"),
    ],
)
def test_a_limit_that_is_none_is_refused_before_anything_is_stored(
    fleet: Fleet, tmp_path: Path, option: str, value: Any, sentence: str
) -> None:
    with pytest.raises(InvalidSearchError, match=sentence):
        submit(search(tmp_path, [1], **{option: value}), X, Y, name="refused")

    with fleet.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM payloads").scalar() == 0


def test_a_paused_search_starts_nothing_until_it_is_resumed(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1, 2]), X, Y)
    assert handle.pause()
    start_worker(configured)
    other = submit(search(tmp_path, [9]), X, Y).wait(60)  # behind the messages of the paused one

    assert other.state == "completed"
    assert (handle.state, handle.progress().queued) == ("paused", 2)
    assert handle.resume()
    assert fleet.reconciler().once().published == 2
    assert handle.wait(60).state == "completed"
    assert list(handle.cv_results_["mean_test_score"]) == [1.0, 2.0]


def test_failed_trials_are_tried_again_when_somebody_asks_for_it(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    handle = submit(search(tmp_path, [1, 2], then="raise until released"), X, Y).wait(60)
    assert handle.progress().failed == 2
    (tmp_path / "go").touch()

    assert handle.retry_failed() == 2
    fleet.reconciler().once()
    handle.wait(60)

    assert list(handle.cv_results_["mean_test_score"]) == [1.0, 2.0]
    assert attempts(fleet) == [(1, "failed"), (2, "completed")] * 2
