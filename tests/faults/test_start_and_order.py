"""Workers that may not in, trials that wait behind a long one, and scores that are equal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import trial_reader
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from tests.conftest import Broker
from tests.faults.support import X, Y, search, wait_for, wait_for_file
from tests.storage.conftest import result_of, store_search

#: Mean scores by number; the best is there three times, and zero with both signs.
SCORES = (0.25, 0.75, -0.0, 0.75, 0.0, 0.75, 0.7499999999999999)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_worker_with_a_wrong_password_ends_with_a_sentence_that_does_not_show_it(
    fleet: Fleet, configured: Settings, broker: Broker, tmp_path: Path
) -> None:
    handle = submit(search(tmp_path, [1]), X, Y)
    wrong = configured.replace(broker_url=f"redis://:planted-secret@127.0.0.1:{broker.port}/0", allow_root=True)

    refused = subprocess.run(
        [sys.executable, "-m", "gridfleet", "worker"],
        env=wrong.worker_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert refused.returncode == 1
    assert f"the broker redis://127.0.0.1:{broker.port} refuses user or password" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "planted-secret" not in refused.stdout + refused.stderr
    assert (handle.progress().queued, handle.progress().total) == (1, 1)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_no_short_trial_waits_behind_a_long_one(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured, concurrency=2)
    long = submit(search(tmp_path, [100], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-100-0")

    short = submit(GridSearchCV(search(tmp_path, []).estimator, {"value": list(range(20))}, cv=2, refit=False), X, Y)
    short.wait(90)

    assert long.progress().running == 1
    (tmp_path / "go").touch()
    wait_for(lambda: long.progress().is_finished, "the long trial has ended")


@pytest.mark.parametrize("order", ["0123456", "6543210", "3506142"])
def test_equal_scores_are_ranked_by_number_whatever_came_first(database: Database, order: str) -> None:
    stored = store_search(database, len(SCORES))
    for number in map(int, order):
        transitions.record(database, stored.held(number), result_of(SCORES[number]))

    ranked = trial_reader.leaderboard(database, stored.id)

    assert [trial.number for trial in ranked] == [1, 3, 5, 6, 0, 2, 4]
    assert [trial.rank for trial in ranked] == [1, 1, 1, 4, 5, 6, 6]
    assert trial_reader.best_trial(database, stored.id) == ranked[0]


def test_a_search_without_any_score_has_no_best(database: Database) -> None:
    stored = store_search(database, 2)
    for number in range(2):
        transitions.record(database, stored.held(number), result_of(float("nan"), error="it raised"))

    assert trial_reader.best_trial(database, stored.id) is None
    assert trial_reader.leaderboard(database, stored.id) == []
    with database.read() as connection:
        states = connection.execute(select(Trial.state).where(Trial.search_id == stored.id))
        assert set(states.scalars()) == {"failed"}
