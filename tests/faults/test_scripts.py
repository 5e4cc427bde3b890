"""Scripts that are killed while they submit, models that raise, and what a script imported before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import Touching
from tests.faults.support import X, Y, assert_one_result_each, search


def test_a_script_killed_between_storing_and_enqueuing_loses_nothing(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from gridfleet import submit
from gridfleet.scheduler.fleet.connection import Fleet
from tests.faults.support import X, Y, search
Fleet.publish = lambda *_: os.kill(os.getpid(), 9)
submit(search({str(tmp_path)!r}, [1, 2, 3]), X, Y, name="killed")
"""
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **configured.as_variables()}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert fleet.publisher.queue_length() == 0
    start_worker(configured)

    fleet.reconciler().once()

    from gridfleet import open_search

    assert_one_result_each(fleet, open_search("killed").wait(60))


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_failing_fit_counts_with_error_score_and_the_search_goes_on(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    grid = GridSearchCV(
        Touching(str(tmp_path)),
        [{"value": [1]}, {"value": [2], "then": ["raise"]}, {"value": [3], "then": ["nan"]}],
        cv=2,
        error_score=-1.0,
        refit=False,
    )
    handle = submit(grid, X, Y).wait(60)

    with pytest.warns(UserWarning, match="non-finite"):
        results = handle.cv_results_
    np.testing.assert_array_equal(results["mean_test_score"], [1.0, -1.0, np.nan])
    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial.state, Trial.error_type, Trial.error).order_by(Trial.number)).all()
    assert [row.state for row in rows] == ["completed", "failed", "failed"]
    assert [row.error_type for row in rows] == [None, "ValueError", "non_finite_score"]
    assert "value=2 does not suit me" in rows[1].error
    assert "Traceback" in rows[1].error


@pytest.mark.parametrize("backend", ["sqlite"])
def test_error_score_raise_raises_the_models_own_error(
    configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    with pytest.raises(ValueError, match="value=7 does not suit me"):
        search(tmp_path, [7], then="raise", error_score="raise", verbose=0).fit(X, Y)
