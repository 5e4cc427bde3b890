"""Searches that learn, beside Optuna's own: how good after as many trials, how fast, and how busy the workers are.

    python benchmarks/adaptive.py [--workloads pima digits] [--trials 60] [--seeds 10] [--folds 3]

The same space and the same number of trials for each seed: `OptunaSearchCV` (tpe) on a warm embedded fleet of two
processes; Optuna's TPE, two processes with a study in SQLite, each trial a `cross_val_score`; and our
`RandomizedSearchCV`. Times are those of the trials alone, without imports: from the first one's start to the last one's
end. The gap is that from the end of a trial to the start of the next one in the same process. Prints a table and
writes JSON. Everything runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table
from scipy.stats import loguniform, randint
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sqlalchemy import text

from gridfleet import OptunaSearchCV, RandomizedSearchCV, open_search
from gridfleet.scheduler.fleet.local import client
from gridfleet.storage.settings import load_settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

#: Worker processes of each, as many as the machine that the aims are set for has cores.
PROCESSES = 2
PIMA = Path(__file__).parent.parent / "data" / "pima-indians-diabetes.csv"
AIMS = {
    "best of ours - best of Optuna's, median": ">= 0",
    "trials/min of ours : Optuna's": ">= 15",
    "gap, median, ms": "< 100",
    "busy": ">= 0.9",
}
ATTEMPTS = """
    SELECT a.worker_id, a.started_at, a.ended_at FROM attempts a JOIN trials t ON t.id = a.trial_id
     WHERE t.search_id = :search ORDER BY a.worker_id, a.started_at
    """


def mlp(units: int = 12, layers: int = 1, n_features: int = 8, n_classes: int = 1) -> Any:
    import keras
    from keras.layers import Dense

    hidden = [Dense(units, activation="relu") for _ in range(layers)]
    last = Dense(n_classes, activation="sigmoid" if n_classes == 1 else "softmax")
    return keras.Sequential([keras.Input((n_features,)), *hidden, last])


@dataclass(frozen=True)
class Workload:
    """Data, an estimator and its settings; the space is the same for all."""

    data: Callable[[], tuple[Any, Any]]
    settings: dict[str, Any]

    def estimator(self) -> Any:
        from scikeras.wrappers import KerasClassifier

        return KerasClassifier(model=mlp, verbose=0, random_state=0, **self.settings)


def pima() -> tuple[Any, Any]:
    table = np.loadtxt(PIMA, delimiter=",")
    X = table[:, :8]
    return (X - X.mean(axis=0)) / X.std(axis=0), table[:, 8].astype(int)


def digits() -> tuple[Any, Any]:
    X, y = load_digits(return_X_y=True)
    return X / 16, y


WORKLOADS = {
    "pima": Workload(pima, {"loss": "binary_crossentropy", "epochs": 20}),
    "digits": Workload(
        digits,
        {
            "loss": "sparse_categorical_crossentropy",
            "epochs": 10,
            "model__n_features": 64,
            "model__n_classes": 10,
        },
    ),
}
SPACE = {
    "optimizer": ["adam", "rmsprop"],
    "optimizer__learning_rate": loguniform(1e-4, 1e-1),
    "batch_size": [16, 32, 64],
    "model__units": randint(4, 65),
    "model__layers": randint(1, 4),
}


def suggested(trial: Any) -> dict[str, Any]:
    """Return a point of `SPACE` as a user of Optuna asks for it."""
    return {
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "rmsprop"]),
        "optimizer__learning_rate": trial.suggest_float("optimizer__learning_rate", 1e-4, 1e-1, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
        "model__units": trial.suggest_int("model__units", 4, 64),
        "model__layers": trial.suggest_int("model__layers", 1, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--trials", type=int, default=60, help="of each search")
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--lookahead", type=int, default=4, help="trials that may be open beside each other")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/adaptive.json"), help="where figures go")
    parser.add_argument("--process-of-optuna", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process_of_optuna is not None:
        run_process_of_optuna(json.loads(options.process_of_optuna))
        return
    results: dict[str, Any] = {"cores": os.cpu_count(), "aims": AIMS, "options": {**vars(options), "json": None}}
    for name in options.workloads:
        results[name] = measure(name, options)
        show(name, results[name], options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2))


def measure(name: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run the three kinds of search in turn, seed by seed, lest a slow minute be one kind's alone."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "optuna": [], "random": []}
    with tempfile.TemporaryDirectory() as folder:
        with fleet_in(Path(folder) / "fleet"):
            ours_of(name, options, seed=0, n_trials=PROCESSES * 2)  # both processes have imported Keras then
            for seed in range(options.seeds):
                found["ours"].append(ours_of(name, options, seed=seed, n_trials=options.trials))
                found["random"].append(random_of(name, options, seed=seed))
        for seed in range(options.seeds):
            found["optuna"].append(optuna_of(name, options, seed=seed, folder=Path(folder)))
    return found


@contextlib.contextmanager
def fleet_in(home: Path) -> Iterator[None]:
    """Let searches run on an embedded fleet of this folder, which stays until the end."""
    os.environ |= {"GRIDFLEET_HOME": str(home), "GRIDFLEET_LINGER_S": "600", "GRIDFLEET_PROGRESS": "quiet"}
    try:
        yield
    finally:
        client.stop(load_settings())


def cv_of(options: argparse.Namespace) -> Any:
    return StratifiedKFold(options.folds, shuffle=True, random_state=0)


def ours_of(name: str, options: argparse.Namespace, *, seed: int, n_trials: int) -> dict[str, Any]:
    learning = {"n_trials": n_trials, "sampler": "tpe", "lookahead": options.lookahead}
    return fitted(
        OptunaSearchCV(WORKLOADS[name].estimator(), SPACE, random_state=seed, **learning, **common(options)), name
    )


def random_of(name: str, options: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    drawing = {"n_iter": options.trials, "random_state": seed}
    return fitted(RandomizedSearchCV(WORKLOADS[name].estimator(), SPACE, **drawing, **common(options)), name)


def common(options: argparse.Namespace) -> dict[str, Any]:
    return {"cv": cv_of(options), "refit": False, "n_jobs": PROCESSES, "verbose": 0, "keep_curves": False}


def fitted(search: Any, name: str) -> dict[str, Any]:
    """Run a search on the fleet; return its best score, and what its attempts say of the time."""
    search.fit(*WORKLOADS[name].data())
    handle = open_search(search._ran_as[1])
    with handle._fleet.database.read() as connection:
        rows = connection.execute(text(ATTEMPTS), {"search": handle.id}).all()
    spans = [(row.worker_id, seconds(row.started_at), seconds(row.ended_at)) for row in rows]
    took = max(end for *_, end in spans) - min(start for _, start, _ in spans)
    gaps = [then[1] - before[2] for before, then in pairwise(spans) if before[0] == then[0]]
    return {
        "best": float(np.nanmax(search.cv_results_["mean_test_score"])),
        "seconds": took,
        "trials": len(rows),
        "gap_ms": 1000 * statistics.median(gaps) if gaps else None,
        "busy": sum(end - start for _, start, end in spans) / (PROCESSES * took),
    }


def seconds(at: Any) -> float:
    """Return a time of SQLite, which gives texts, as seconds."""
    from datetime import datetime

    return (datetime.fromisoformat(at) if isinstance(at, str) else at).timestamp()


def optuna_of(name: str, options: argparse.Namespace, *, seed: int, folder: Path) -> dict[str, Any]:
    """Run Optuna as its documentation does: as many processes that share a study in SQLite."""
    storage = f"sqlite:///{folder / f'{name}-{seed}.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(storage=storage, study_name=name, direction="maximize")
    work = {"storage": storage, "workload": name, "trials": options.trials, "folds": options.folds}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--process-of-optuna", json.dumps({**work, "seed": 1000 * seed + number})],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        )
        for number in range(PROCESSES)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("a process of Optuna failed")
    trials = optuna.load_study(storage=storage, study_name=name).get_trials(states=(optuna.trial.TrialState.COMPLETE,))[
        : options.trials
    ]
    begun = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return {
        "best": max(trial.value for trial in trials if trial.value is not None),
        "seconds": (max(ended) - min(begun)).total_seconds(),
        "trials": len(trials),
    }


def run_process_of_optuna(work: dict[str, Any]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workload = WORKLOADS[work["workload"]]
    X, y = workload.data()
    cv = StratifiedKFold(work["folds"], shuffle=True, random_state=0)

    def objective(trial: Any) -> float:
        return float(cross_val_score(workload.estimator().set_params(**suggested(trial)), X, y, cv=cv).mean())

    study = optuna.load_study(
        storage=work["storage"], study_name=work["workload"], sampler=optuna.samplers.TPESampler(seed=work["seed"])
    )
    enough = optuna.study.MaxTrialsCallback(work["trials"], states=(optuna.trial.TrialState.COMPLETE,))
    study.optimize(objective, callbacks=[enough])


def show(name: str, found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    table = Table("search", "best, median", "trials/min", "gap, ms", "busy", title=f"{name}: {options.trials} trials")
    for kind, runs in found.items():
        table.add_row(
            kind,
            f"{median(runs, 'best'):.4f}",
            f"{statistics.median(60 * run['trials'] / run['seconds'] for run in runs):.1f}",
            "" if "gap_ms" not in runs[0] else f"{median(runs, 'gap_ms'):.0f}",
            "" if "busy" not in runs[0] else f"{median(runs, 'busy'):.2f}",
        )
    Console(width=100).print(table)


def median(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs if run[what] is not None)


if __name__ == "__main__":
    main()
