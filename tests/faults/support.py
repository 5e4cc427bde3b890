"""What tests of faults share: searches that wait to be released, their story, and how long a recovery took."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select

from gridfleet import GridSearchCV, SearchHandle
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Attempt, SplitScore, Trial
from tests.end_to_end.models import Touching
from tests.warm_workers import with_constants

X, Y = np.zeros((12, 2)), np.arange(12) % 2
#: Seconds that anything may take on a busy machine before a test fails.
PATIENCE_S = 90
#: The file that the seconds of each recovery are appended to; read early, since tests forget such variables.
RECOVERIES = os.environ.get("GRIDFLEET_RECOVERIES")


def search(folder: Path, values: list[int], then: str = "", **options: Any) -> GridSearchCV:
    """Return a search over an estimator that writes files into a folder and then does what `then` says."""
    return GridSearchCV(Touching(str(folder), then=then), {"value": values}, cv=2, refit=False, **options)


def sooner(values: dict[str, float | str]) -> dict[str, str]:
    """Return variables for `start_worker` with which it waits less; none where recoveries are measured."""
    return {} if RECOVERIES else with_constants(values)


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait until a condition holds; returns the seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


def wait_for_file(folder: Path, pattern: str) -> float:
    """Wait until a folder has a file; returns the seconds it took."""
    return wait_for(lambda: list(folder.glob(pattern)), f"{pattern} in {folder}")


def attempts(fleet: Fleet) -> list[tuple[int, str | None]]:
    """Return the number and the outcome of every attempt, by trial."""
    with fleet.database.read() as connection:
        rows = connection.execute(select(Attempt.attempt, Attempt.outcome).order_by(Attempt.trial_id, Attempt.attempt))
        return [(row.attempt, row.outcome) for row in rows]


def assert_one_result_each(fleet: Fleet, handle: SearchHandle) -> None:
    """Assert that a finished search of `search` has exactly one result for each trial, and the right one."""
    progress = handle.progress()
    assert progress.completed == progress.total
    with fleet.database.read() as connection:
        scores = connection.execute(
            select(func.count()).select_from(SplitScore).join(Trial).where(Trial.search_id == handle.id)
        ).scalar_one()
    assert scores == 2 * progress.total
    assert list(handle.cv_results_["mean_test_score"]) == [params["value"] for params in handle.cv_results_["params"]]


def note_recovery(row: str, seconds: float) -> None:
    """Append how long a recovery took to the file that the documentation's figures are made of, if one is named."""
    if RECOVERIES:
        with Path(RECOVERIES).open("a") as lines:
            lines.write(json.dumps({"row": row, "seconds": round(seconds, 3)}) + "\n")
