"""Does a worker process stay flat over hundreds of Keras trials?

    python benchmarks/memory.py [--trials 500] [--one-structure] [--mode exact] [--json FILE]

Runs the trials, each of a structure of its own or all of one, in one process with one thread as a worker per core has
them, without the limit that replaces a process that grew, and prints its memory every tenth of the way. The slope is
fitted to the second half. Of different structures oneDNN, TensorFlow's library of kernels, keeps 1,024 kernels of
each type: that cache is full after about 400.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from overhead import fleet_on
from sqlalchemy import select

from gridfleet import GridSearchCV
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import check_options
from gridfleet.scheduler.submission.store import store
from gridfleet.scheduler.submit import _Submitted
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.schema import Trial
from gridfleet.worker.main_process.environment import THREAD_VARIABLES


def create_model(units: int = 4) -> Any:
    from keras import Input, Sequential
    from keras.layers import Dense

    model = Sequential([Input((8,)), Dense(units, activation="relu"), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--one-structure", action="store_true", help="trials that differ in their seed only")
    parser.add_argument("--mode", choices=list(FitMode), default=FitMode.EXACT, help="how models are trained")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/memory.json"), help="where figures go")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    with tempfile.TemporaryDirectory() as folder, fleet_on("sqlite", Path(folder) / "fleet") as fleet:
        os.environ.update(fleet.settings.as_variables())
        submit(fleet, grid_of(options.trials, one_structure=options.one_structure), options.mode)
        with fleet.database.read() as connection:
            ids = list(connection.execute(select(Trial.id).order_by(Trial.id)).scalars())
        figures = run(ids)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")


def grid_of(n_trials: int, *, one_structure: bool) -> dict[str, list[int]]:
    return {"random_state" if one_structure else "model__units": list(range(2, 2 + n_trials))}


def submit(fleet: Any, grid: dict[str, list[int]], mode: str) -> None:
    from scikeras.wrappers import KerasClassifier

    def store_and_leave(request: Any) -> Any:
        raise _Submitted(store(fleet, request, name=None, options=check_options(mode)), is_new=True)

    model = KerasClassifier(model=create_model, epochs=1, batch_size=32, verbose=0, random_state=1)
    search = GridSearchCV(model, grid, cv=2, verbose=0)
    rng = np.random.default_rng(0)
    try:
        fit_with(FleetBackend(store_and_leave), search, rng.normal(size=(64, 8)), rng.integers(0, 2, 64))
    except _Submitted:
        return


def run(ids: list[int]) -> dict[str, Any]:
    from gridfleet.worker.trial.task import evaluate

    process = psutil.Process()
    points: list[tuple[int, float]] = []
    every = max(1, len(ids) // 10)
    for done, trial_id in enumerate(ids, start=1):
        evaluate(trial_id)
        if done % every == 0:
            points.append((done, process.memory_info().rss / 2**20))
            print(f"{done:5d} trials  {points[-1][1]:8.1f} MB", flush=True)
    half = points[len(points) // 2 :]
    slope = float(np.polyfit([done for done, _ in half], [size for _, size in half], 1)[0])
    print(f"slope over the second half: {slope * 1000:.1f} KB per trial")
    return {"points": points, "slope_mb_per_trial": slope}


if __name__ == "__main__":
    main()
