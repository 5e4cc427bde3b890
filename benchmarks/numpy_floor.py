"""The floor: the Pima model's training written in plain numpy, as few operations as it takes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

BATCH = 10
RATE, BETA_1, BETA_2, EPSILON = 0.001, 0.9, 0.999, 1e-7


def floor_of_pima(epochs: int) -> dict[str, float]:
    """Time one fit in numpy, and the same compiled, in this process.

    Parameters
    ----------
    epochs : int
        Passes over 512 rows.

    Returns
    -------
    dict of str to float
        Seconds of training in numpy, in exact mode and with XLA, programs traced and compiled before.
    """
    from training_workloads import pima

    X, y = pima()
    X, y = X[:512].astype("float32"), y[:512].astype("float32")
    started = time.perf_counter()
    train_in_numpy(X, y, epochs)
    return {
        "numpy, s": time.perf_counter() - started,
        **{f"{m}, s": _compiled(X, y, epochs, m) for m in ("exact", "xla")},
    }


def train_in_numpy(X: Any, y: Any, epochs: int) -> list[Any]:
    """Train Dense(12, relu), Dense(1, sigmoid) by binary cross-entropy and Adam; returns the weights."""
    rng = np.random.default_rng(1)
    weights = [
        (rng.uniform(-1, 1, (8, 12)) * np.sqrt(6 / 20)).astype("float32"),
        np.zeros(12, "float32"),
        (rng.uniform(-1, 1, (12, 1)) * np.sqrt(6 / 13)).astype("float32"),
        np.zeros(1, "float32"),
    ]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(X))
        for first in range(0, len(X), BATCH):
            rows = order[first : first + BATCH]
            step += 1
            _adam(weights, moments, _gradients(weights, X[rows], y[rows, None]), step)
    return weights


def _gradients(weights: list[Any], x: Any, target: Any) -> list[Any]:
    first, first_bias, second, second_bias = weights
    hidden = np.maximum(x @ first + first_bias, 0)
    predicted = 1 / (1 + np.exp(-(hidden @ second + second_bias)))
    error = (predicted - target) / len(x)
    back = (error @ second.T) * (hidden > 0)
    return [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def _adam(weights: list[Any], moments: list[Any], gradients: list[Any], step: int) -> None:
    """Kingma and Ba 2015, in the form of Keras."""
    rate = RATE * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
    for weight, (first, second), gradient in zip(weights, moments, gradients, strict=True):
        first += (gradient - first) * (1 - BETA_1)
        second += (gradient * gradient - second) * (1 - BETA_2)
        weight -= rate * first / (np.sqrt(second) + EPSILON)


def _compiled(X: Any, y: Any, epochs: int, mode: str) -> float:
    import keras
    from training_workloads import mlp

    from gridfleet.worker.compiled_fit import compiled_fit

    for _ in range(2):  # the first time traces and compiles
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        model = mlp()
        with compiled_fit(mode) as report:
            model.fit(X, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return report.train_time
