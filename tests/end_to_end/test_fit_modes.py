"""How Keras models train: a choice of the search, shown in SQL, the same scores whatever it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from scikeras.wrappers import KerasClassifier
from sklearn.model_selection import GridSearchCV as ScikitLearnGridSearchCV
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import tables
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.trial.task import PROCESS_NAME
from tests.end_to_end.models import create_model
from tests.faults.support import wait_for

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 8)).astype("float32"), RNG.integers(0, 2, 60)
SPACE = {"model__units": [3], "random_state": [1, 2]}
PHASES = ("build_time", "trace_time", "compile_time", "train_time", "score_time", "record_time")

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])


class AtEveryBatch(keras.callbacks.Callback):
    """What no loop inside the graph can call."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing."""


@pytest.fixture
def keras_model() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=3, batch_size=8, verbose=0)


def trials_of(fleet: Fleet, name: str) -> list[Any]:
    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial).join(Search).where(Search.name == name).order_by(Trial.number))
        return list(rows)


def xla_folder(settings: Settings) -> Path:
    assert settings.cache_dir is not None
    return settings.cache_dir / "xla"


def test_every_mode_gives_scikit_learn_s_scores_and_tells_where_the_time_went(
    fleet: Fleet,
    configured: Settings,
    start_worker: Callable[..., Any],
    keras_model: KerasClassifier,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = ScikitLearnGridSearchCV(keras_model, SPACE, cv=2, refit=False).fit(X, Y).cv_results_
    start_worker(configured, concurrency=1)

    for mode in ("keras", "exact", "xla"):
        grid = GridSearchCV(keras_model, SPACE, cv=2, refit=False, verbose=0, name=f"in-{mode}", fit_mode=mode).fit(
            X, Y
        )
        for split in range(2):
            key = f"split{split}_test_score"
            assert np.array_equal(grid.cv_results_[key], expected[key]), mode
        rows = trials_of(fleet, f"in-{mode}")
        assert {row.fit_mode for row in rows} == {mode}
        assert {row.fit_fallback_reason for row in rows} == {None}
        assert all(getattr(row, phase) >= 0 for row in rows for phase in PHASES)
        assert all(row.train_time > 0 for row in rows)
    # one program for the structure, whatever the seed: one trial traced it, the other found it
    assert sorted(row.compile_time > 0 for row in rows) == [False, True]

    tables.print_report(fleet.database, "in-xla")
    assert "2 trials xla" in capsys.readouterr().out


def test_a_training_batch_by_batch_is_told_with_its_reason(
    fleet: Fleet,
    configured: Settings,
    start_worker: Callable[..., Any],
    keras_model: KerasClassifier,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_worker(configured, concurrency=1)
    keras_model.set_params(callbacks=[AtEveryBatch()])

    submit(GridSearchCV(keras_model, {"random_state": [1]}, cv=2, refit=False), X, Y, name="watched").wait(120)

    (row,) = trials_of(fleet, "watched")
    assert (row.state, row.fit_mode) == ("completed", "exact")
    assert row.fit_fallback_reason == "the callback AtEveryBatch is called at every batch"
    tables.print_report(fleet.database, "watched")
    assert f"1 trial exact: {row.fit_fallback_reason}" in capsys.readouterr().out


def test_what_xla_compiled_serves_the_next_worker_of_the_host(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], keras_model: KerasClassifier
) -> None:
    def compiled_by_a_worker(name: str) -> dict[str, int]:
        worker = start_worker(configured)
        search = GridSearchCV(keras_model, {"random_state": [1]}, cv=2, fit_mode="xla", refit=False)
        submit(search, X, Y, name=name).wait(120)
        worker.stop()
        (row,) = trials_of(fleet, name)
        assert (row.fit_mode, row.compile_time > 0) == ("xla", True)
        return {file.name: file.stat().st_ino for file in xla_folder(configured).iterdir()}

    first, second = compiled_by_a_worker("first"), compiled_by_a_worker("second")

    assert first
    assert second == first  # a program that is compiled anew is written anew


def test_the_oldest_programs_on_disk_make_room_as_a_worker_process_begins(
    configured: Settings, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(configured)
    folder = xla_folder(configured)
    for age_s in range(3):
        file = folder / f"{age_s} s old"
        file.touch()
        os.truncate(file, 200_000_000)
        os.utime(file, (time.time() - age_s, time.time() - age_s))

    for process in psutil.Process(worker.pid).children():
        if process.name() == PROCESS_NAME:
            process.kill()  # another one replaces it

    wait_for(lambda: not (folder / "2 s old").exists(), "600 MB brought below 500")
    assert sorted(file.name for file in folder.iterdir()) == ["0 s old", "1 s old"]


def test_an_unknown_mode_is_refused_before_anything_is_stored(fleet: Fleet, keras_model: KerasClassifier) -> None:
    with pytest.raises(InvalidSearchError, match=r"fit_mode='fast' is none of 'exact', 'xla', 'auto', 'keras'"):
        submit(GridSearchCV(keras_model, {"random_state": [1]}, fit_mode="fast"), X, Y)

    with fleet.database.read() as connection:
        assert connection.execute(select(Search.id)).all() == []
