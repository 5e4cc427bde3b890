"""The searches of benchmarks/training.py: models, data, spaces; and scikit-learn's own run of one, as a user meets it.

    python benchmarks/training_workloads.py pima-2 [--refit] [--warm]

prints the scores of scikit-learn's GridSearchCV(n_jobs=-1) as JSON. Everything is imported in here, so the time of
the process is the time that a user waits. With --warm the processes of joblib have imported Keras before, and it prints
what the search alone took.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from process_usage import Usage
from sklearn.base import BaseEstimator

PIMA = Path(__file__).parent.parent / "data" / "pima-indians-diabetes.csv"


@dataclass(frozen=True)
class Workload:
    """One search: its estimator, space and data are made by functions, to be imported where they run."""

    estimator: Callable[[], Any]
    space: dict[str, list[Any]]
    data: Callable[[], tuple[Any, Any]]

    @property
    def n_trials(self) -> int:
        return int(np.prod([len(values) for values in self.space.values()]))


class ImportKeras(BaseEstimator):
    """Makes every worker process import what the searches need."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def fit(self, X: Any, y: Any = None) -> ImportKeras:
        import keras  # noqa: F401
        import scikeras.wrappers  # noqa: F401

        time.sleep(1)  # so that no process does all of it
        return self

    def score(self, X: Any, y: Any = None) -> float:
        return 0.0


def mlp(optimizer: str = "adam", learning_rate: float = 0.001, units: int = 12) -> Any:
    import keras
    from keras.layers import Dense

    model = keras.Sequential([keras.Input((8,)), Dense(units, activation="relu"), Dense(1, activation="sigmoid")])
    optimizer = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": learning_rate}})
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


def digits_mlp(optimizer: str = "adam", learning_rate: float = 0.001) -> Any:
    import keras
    from keras.layers import Dense

    layers = [Dense(128, activation="relu"), Dense(64, activation="relu"), Dense(10, activation="softmax")]
    return _classifier(keras.Sequential([keras.Input((64,)), *layers]), optimizer, learning_rate)


def digits_conv(learning_rate: float = 0.001) -> Any:
    import keras
    from keras.layers import Conv2D, Dense, Flatten, MaxPooling2D

    layers = [Conv2D(16, 3, activation="relu"), MaxPooling2D(), Flatten(), Dense(10, activation="softmax")]
    return _classifier(keras.Sequential([keras.Input((8, 8, 1)), *layers]), "adam", learning_rate)


def short_lstm(learning_rate: float = 0.001) -> Any:
    import keras
    from keras.layers import LSTM, Dense

    return _classifier(
        keras.Sequential([keras.Input((8, 8)), LSTM(16), Dense(10, activation="softmax")]), "adam", learning_rate
    )


def _classifier(model: Any, optimizer: str, learning_rate: float) -> Any:
    import keras

    optimizer = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": learning_rate}})
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


def scikeras_classifier(create_model: Callable[..., Any], epochs: int, batch_size: int) -> Callable[[], Any]:
    def make() -> Any:
        from scikeras.wrappers import KerasClassifier

        return KerasClassifier(model=create_model, epochs=epochs, batch_size=batch_size, verbose=0, random_state=42)

    return make


def pima() -> tuple[Any, Any]:
    rows = np.loadtxt(PIMA, delimiter=",")
    return rows[:, :8], rows[:, 8]


def digits(*shape: int) -> Callable[[], tuple[Any, Any]]:
    def load() -> tuple[Any, Any]:
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        return (X / 16).astype("float32").reshape(-1, *shape), y

    return load


RATES = [0.001, 0.002, 0.005, 0.01]
PIMA_MODEL = scikeras_classifier(mlp, epochs=100, batch_size=10)
WORKLOADS = {
    "pima-2": Workload(PIMA_MODEL, {"model__optimizer": ["adam", "rmsprop"]}, pima),
    "pima-16": Workload(
        PIMA_MODEL,
        {"model__optimizer": ["adam", "rmsprop"], "model__learning_rate": RATES, "model__units": [8, 12]},
        pima,
    ),
    "digits-mlp": Workload(
        scikeras_classifier(digits_mlp, epochs=30, batch_size=32),
        {"model__optimizer": ["adam", "rmsprop"], "model__learning_rate": RATES},
        digits(64),
    ),
    "digits-conv": Workload(
        scikeras_classifier(digits_conv, epochs=5, batch_size=32), {"model__learning_rate": RATES[:2]}, digits(8, 8, 1)
    ),
    "digits-lstm": Workload(
        scikeras_classifier(short_lstm, epochs=5, batch_size=32), {"model__learning_rate": RATES[:2]}, digits(8, 8)
    ),
}
#: Splits of every search, unshuffled so that both sides draw the same.
N_SPLITS = 3


def split_scores(cv_results: dict[str, Any]) -> list[list[float]]:
    """Return the test scores, split by split."""
    return [list(map(float, cv_results[f"split{split}_test_score"])) for split in range(N_SPLITS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--refit", action="store_true", help="fit the best combination on all data at the end")
    parser.add_argument("--warm", action="store_true", help="measure the search alone, once processes have Keras")
    parser.add_argument("--fleet", metavar="MODE", help="run it by gridfleet in this fit mode, from a cold start")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    keywords: dict[str, Any] = {"n_jobs": -1, "cv": N_SPLITS, "refit": options.refit}
    if options.fleet:
        from gridfleet import GridSearchCV

        keywords |= {"fit_mode": options.fleet, "verbose": 0}
    else:
        from sklearn.model_selection import GridSearchCV
    if options.warm:
        GridSearchCV(ImportKeras(), {"number": list(range(8))}, n_jobs=-1, cv=2, refit=False).fit(np.zeros((4, 1)))
    search = GridSearchCV(workload.estimator(), workload.space, **keywords)
    data, started = workload.data(), time.perf_counter()
    with Usage(os.getpid()) as usage:
        search.fit(*data)
    took = {"seconds": time.perf_counter() - started, "cpu, s": usage.cpu_s, "peak, MB": usage.peak_mb}
    print(json.dumps({"scores": split_scores(search.cv_results_), **took}))


if __name__ == "__main__":
    main()
