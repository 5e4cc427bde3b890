"""The handle of a search, and a script that is interrupted while it waits for a fleet."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from gridfleet import GridfleetError, GridSearchCV, open_search, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import searches
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from tests.end_to_end.conftest import start_script
from tests.end_to_end.models import Touching
from tests.storage.conftest import result_of

X, Y = np.zeros((12, 2)), np.arange(12) % 2


def search(folder: Path, values: list[int]) -> GridSearchCV:
    return GridSearchCV(Touching(str(folder)), {"value": values}, cv=2, refit=False)


def test_a_handle_tells_how_far_its_search_is(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1, 3, 2]), X, Y, name="handled")

    assert (handle.state, handle.progress().done, handle.progress().total) == ("waiting", 0, 3)
    with pytest.raises(GridfleetError, match="'handled' is not done: 0 of 3 trials; call wait"):
        _ = handle.best_score_
    with pytest.raises(TimeoutError, match="0 of 3 trials; it goes on"):
        handle.wait(timeout=0)

    start_worker(configured)
    again = open_search("HANDLED").wait(60)

    assert (again.id, again.state, again.best_score_, again.best_params_) == (handle.id, "completed", 3.0, {"value": 3})


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_search_whose_last_worker_died_after_recording_ends_with_the_next_reconciler(
    fleet: Fleet, configured: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submit(search(tmp_path, [1]), X, Y)
    with fleet.database.read() as connection:
        trial_id = connection.execute(select(Trial.id)).scalar_one()
    claim = claims.claim(fleet.database, trial_id, "node/1", lease_s=60, max_runtime_s=60)
    with monkeypatch.context() as killed:
        killed.setattr(searches, "finish_search", lambda *_: False)
        transitions.record(fleet.database, Held(trial_id, claim.token), result_of(1.0))

    assert (handle.progress().done, handle.progress().is_finished, handle.state) == (1, False, "waiting")
    with pytest.raises(TimeoutError, match="1 of 1 trials"):
        handle.wait(timeout=0)
    assert fleet.reconciler().once().finished == 1
    assert handle.wait(timeout=0).state == "completed"


@pytest.mark.parametrize("backend", ["sqlite"])
def test_ctrl_c_leaves_a_search_on_the_fleet_and_says_how_to_get_it_back(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "models.py").write_text((Path(__file__).parent / "models.py").read_text())
    code = f"""
        import numpy
        import models
        from gridfleet import GridSearchCV

        grid = GridSearchCV(models.Touching({str(tmp_path)!r}), {{"value": [1, 2]}}, cv=2, refit=False, name="left")
        grid.fit(numpy.zeros((12, 2)), numpy.arange(12) % 2)
    """
    with start_script(tmp_path, code) as script:
        until = time.monotonic() + 60
        while fleet.publisher.queue_length() < 2:
            assert time.monotonic() < until
            assert script.poll() is None
            time.sleep(0.02)
        script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=60)

    assert "stopped waiting; left waits on the fleet, which has no worker now (0/2)\n" in errors
    assert errors.endswith("gridfleet cancel left\n")
    start_worker(configured)
    assert open_search("left").wait(60).best_params_ == {"value": 2}


def test_cancelled_searches_have_no_result(fleet: Fleet, tmp_path: Path) -> None:
    handle = submit(search(tmp_path, [1, 2]), X, Y)

    assert handle.cancel()

    assert handle.state == "cancelled"
    with pytest.raises(GridfleetError, match="was cancelled after 0 of 2 trials"):
        _ = handle.cv_results_


def test_an_unknown_name_names_those_that_exist(fleet: Fleet, tmp_path: Path) -> None:
    submit(search(tmp_path, [1]), X, Y, name="known")

    with pytest.raises(LookupError, match=r"no search has the name 'unknown'; did you mean 'known'\?"):
        open_search("unknown")


def test_a_folder_without_a_fleet_has_no_search_and_stays_as_it_is(embedded_home: Path) -> None:
    with pytest.raises(LookupError, match=rf"no search was ever run in {embedded_home}/\.gridfleet; .*gridfleet up"):
        open_search("pima")

    assert list(embedded_home.iterdir()) == []
