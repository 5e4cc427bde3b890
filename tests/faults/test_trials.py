"""Trials that end badly, are cancelled or run twice, and workers that hang or are of another release."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import SplitScore, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import MAX_ERROR
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from tests.end_to_end.models import create_model
from tests.faults.support import X, Y, attempts, note_recovery, search, sooner, wait_for, wait_for_file
from tests.storage.conftest import result_of, store_search

N_RACES = 40


def keras_search(params: dict[str, list[Any]], **options: Any) -> GridSearchCV:
    from scikeras.wrappers import KerasClassifier

    model = KerasClassifier(model=create_model, epochs=2, batch_size=8, verbose=0, random_state=3)
    return GridSearchCV(model, params, cv=2, refit=False, verbose=0, **options)


def keras_data() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(40, 8)).astype("float32"), np.arange(40) % 2


def trial_rows(fleet: Fleet) -> list[Any]:
    with fleet.database.read() as connection:
        columns = (Trial.state, Trial.error_type, Trial.error, Trial.mean_test_score, Trial.attempt)
        return list(connection.execute(select(*columns).order_by(Trial.id)))


def test_t1_a_loss_that_explodes_is_a_failed_trial_without_a_score_and_never_the_best(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    grid = GridSearchCV(
        search(tmp_path, [1]).estimator, [{"value": [5], "then": ["nan"]}, {"value": [1]}], cv=2, refit=False
    )

    handle = submit(grid, X, Y).wait(90)

    assert [(row.state, row.error_type, row.mean_test_score, row.attempt) for row in trial_rows(fleet)] == [
        ("failed", "non_finite_score", None, 1),
        ("completed", None, 1.0, 1),
    ]
    with pytest.warns(UserWarning, match="non-finite"):
        assert handle.best_params_["value"] == 1


BAD_PARAMS = {
    "model__optimizer": ["adan", 17],
    "model__units": [0, "many"],
    "loss": ["crossentropy_of_nothing"],
    "batch_size": ["eight"],
    "epochs": ["ten"],
}


@pytest.mark.parametrize("backend", ["postgresql"])
def test_t2_an_error_of_the_model_fails_its_trial_at_the_first_attempt_with_a_short_traceback(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    start_worker(configured)
    grid = keras_search([{name: values} for name, values in BAD_PARAMS.items()])  # type: ignore[arg-type]

    submit(grid, *keras_data()).wait(180)

    rows = trial_rows(fleet)
    assert [(row.state, row.attempt) for row in rows] == [("failed", 1)] * len(rows)
    assert all(row.error_type and "Traceback" in row.error and len(row.error) <= MAX_ERROR for row in rows)
    assert "adan" in rows[0].error


@pytest.mark.parametrize("backend", ["sqlite"])
def test_t5_equal_seeds_score_equally_on_another_worker_and_at_another_attempt(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    first = start_worker(configured)
    submit(keras_search({"model__units": [4]}), *keras_data()).wait(120)
    first.stop()
    start_worker(configured)
    again = submit(keras_search({"model__units": [4]}), *keras_data())
    with fleet.database.read() as connection:
        trial_id = connection.execute(select(Trial.id).where(Trial.search_id == again.id)).scalar_one()
    # an attempt that came to nothing, whichever process is faster
    claim = claims.claim(fleet.database, trial_id, "gone/1", lease_s=60, max_runtime_s=60)
    if claim is not None:
        transitions.reap(
            fleet.database, Held(trial_id, claim.token), outcome=Outcome.WORKER_LOST, error="gone", max_failures=3
        )
        fleet.reconciler().once()
    again.wait(120)

    with fleet.database.read() as connection:
        scores = list(
            connection.execute(select(SplitScore.test_score).order_by(SplitScore.trial_id, SplitScore.split)).scalars()
        )
    assert scores[:2] == scores[2:]


def test_t7_whoever_wins_a_race_of_claims_results_and_cancellations_each_trial_ends_once(database: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        for number in range(N_RACES):
            raced = store_search(database, 2)
            held = raced.held(0)
            turns = [
                partial(searches.cancel_search, database, raced.id),
                partial(transitions.record, database, held, result_of(0.5)),
                partial(raced.claim, 1),
            ]
            order = [(turn + number) % 3 for turn in range(3)]
            done = dict(zip(order, [pool.submit(turns[turn]) for turn in order], strict=True))
            claim = done[2].result()

            assert done[1].result()
            if claim is not None:  # before the cancellation, of which its heartbeat tells
                mine = Held(claim.trial_id, claim.token)
                assert done[0].result()
                assert transitions.heartbeat(database, mine, lease_s=60) is True
                assert transitions.cancel(database, mine)
            # cancelled or not, what was scored is kept; the search may have ended by the result alone
            wait([done[0]])
            assert raced.trial(0).state == "completed"
            assert raced.trial(1).state == "cancelled"
            assert raced.row().finished_at is not None


@pytest.mark.parametrize("backend", ["sqlite"])
def test_t7_a_cancelled_trial_stops_within_a_heartbeat_and_a_queued_one_never_starts(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(heartbeat_s=2))
    handle = submit(search(tmp_path, [1, 2], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-*")
    began = len(list(tmp_path.glob("began-*")))

    handle.cancel()
    note_recovery("T7", wait_for(lambda: handle.progress().is_finished, "the cancelled search has ended"))

    assert (handle.state, handle.progress().cancelled) == ("cancelled", 2)
    assert len(list(tmp_path.glob("began-*"))) == began == 1
    assert attempts(fleet) == [(1, "cancelled")]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_t7_a_keras_fit_is_cancelled_at_the_end_of_an_epoch_at_the_latest(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    start_worker(configured.replace(heartbeat_s=2))
    handle = submit(keras_search({"epochs": [10_000_000]}), *keras_data())
    wait_for(lambda: handle.progress().running, "the trial runs")
    handle.cancel()
    note_recovery("T7", wait_for(lambda: handle.progress().is_finished, "the cancelled search has ended"))

    assert attempts(fleet) == [(1, "cancelled")]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_c2_a_worker_whose_main_process_hangs_touches_its_health_file_no_more(
    configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    worker = start_worker(configured, **sooner({"gridfleet.worker.guards.health_file.HEALTH_S": 1}))
    health = tmp_path / f"{worker.node}.health"

    os.kill(worker.pid, signal.SIGSTOP)
    try:
        stopped_at = health.stat().st_mtime
        wait_for(lambda: time.time() - stopped_at > 3, "longer than between two touches")
        assert health.stat().st_mtime == stopped_at
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    wait_for(lambda: health.stat().st_mtime > stopped_at, "the health file is touched again")


def test_c3_a_worker_refuses_the_schema_of_a_newer_release(fleet: Fleet, configured: Settings) -> None:
    with fleet.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    refused = subprocess.run(
        [sys.executable, "-m", "gridfleet", "worker"],
        env=configured.replace(allow_root=True).worker_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert refused.returncode == 1
    assert "9999" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
