"""Searches as people have them, for browsers and pictures: drawn from a seed, so that they are always the same."""

from __future__ import annotations

import random
from typing import Any

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import TrialState
from tests.shown_searches import ShownTrial, store_shown

UNITS, RATES = (16, 32, 64, 128, 256), (0.0003, 0.001, 0.003, 0.01)
ACTIVATIONS, OPTIMIZERS = ("relu", "gelu", "tanh"), ("adam", "sgd", "rmsprop")
ERROR = "Traceback (most recent call last):\n  …\nValueError: loss is not finite: the learning rate is too high"


def trial(draw: random.Random, number: int) -> ShownTrial:
    """Draw a trial of a small network: wide layers and middle rates are better, few are much better."""
    units, rate = draw.choice(UNITS), draw.choice(RATES)
    optimizer, dropout = draw.choice(OPTIMIZERS), draw.choice((0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    params = {
        "units": units,
        "learning_rate": rate,
        "optimizer": optimizer,
        "dropout": dropout,
        "activation": draw.choice(ACTIVATIONS),
    }
    if rate == RATES[-1] and optimizer == "sgd":
        return ShownTrial(params, error=ERROR)
    known = 0.72 + 0.045 * UNITS.index(units) - 0.03 * abs(RATES.index(rate) - 1.4) - 0.09 * abs(dropout - 0.2)
    known += {"adam": 0.02, "rmsprop": 0.005, "sgd": -0.05}[optimizer]
    scores = [min(known + draw.gauss(0, 0.012), 0.985) for _ in range(5)]
    n_epochs, speed = 12, draw.uniform(0.25, 0.6)
    curves: dict[str, list[float]] = {"loss": [], "val_loss": [], "accuracy": [], "val_accuracy": []}
    for epoch in range(n_epochs):
        learned = 1 - 2.718 ** (-speed * (epoch + 1))
        curves["loss"].append(0.15 + 1.4 * (1 - learned * known))
        curves["val_loss"].append(0.2 + 1.4 * (1 - learned * known) + 0.008 * epoch)
        curves["accuracy"].append(learned * min(known + 0.03, 1))
        curves["val_accuracy"].append(learned * known)
    spent = {"build_time": 0.4, "trace_time": 0.9, "compile_time": 1.6, "score_time": 0.3, "record_time": 0.05}
    values: dict[str, Any] = {
        **spent,
        "train_time": 3 + units / 32 + draw.random(),
        "peak_memory_mb": 420 + units // 2 + number % 5,
        "fit_mode": "exact",
        "seed": 1_000 + number,
    }
    return ShownTrial(params, scores=scores, curves=curves, values=values)


def store_digits(database: Database, *, n_trials: int = 120, n_open: int = 0, name: str = "digits") -> int:
    """Store a search over five hyperparameters; some of its trials may still run and wait."""
    draw = random.Random(7)
    trials = [trial(draw, number) for number in range(n_trials - n_open)]
    for number in range(n_open):
        state = TrialState.RUNNING if number < 2 else TrialState.QUEUED
        trials.append(ShownTrial(trial(draw, number).params, state=state))
    return store_shown(
        database,
        name,
        trials,
        is_final=n_open == 0,
        refit_metric="score",
        scoring="'accuracy'",
        strategy="RandomizedSearchCV",
    )


def store_pair(database: Database) -> None:
    """Store two finished searches that can be compared."""
    for seed, name in enumerate(("wide", "deep")):
        draw = random.Random(seed)
        store_shown(database, name, [trial(draw, number) for number in range(40)], scoring="'accuracy'")
