"""With a release of Keras or TensorFlow that was not tested, a program trains once it came out as Keras' own loop."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit, proof, scope
from gridfleet.worker.compiled_fit.programs import graph_loop
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(58, 6)).astype("float32"), RNG.integers(0, 2, (58, 1)).astype("float32")
UNTESTED = "not tested with keras 3.99.1"


@pytest.fixture(autouse=True)
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras, "__version__", "3.99.1")
    monkeypatch.setattr(scope, "programs", ProgramCache())


def outcome(mode: FitMode, **arguments: Any) -> tuple[list[Any], FitReport]:
    """Train two models of one structure; returns what they are then."""
    values: list[Any] = []
    with compiled_fit(mode) as report:
        for seed in (1, 2):
            keras.utils.clear_session(free_memory=False)
            keras.utils.set_random_seed(seed)
            model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dropout(0.3), layers.Dense(1)])
            model.compile("adam", "mse", metrics=["mae"])
            history = model.fit(X, Y, **{"batch_size": 8, "epochs": 2, "verbose": 0, **arguments})
            values += [*model.get_weights(), *(one.numpy() for one in model.optimizer.variables)]
            values += [history.epoch, *history.history.values()]
    return values, report


@cache
def by_keras(**arguments: Any) -> list[Any]:
    return outcome(FitMode.KERAS, **arguments)[0]


def assert_as_keras(mode: FitMode = FitMode.EXACT, **arguments: Any) -> FitReport:
    expected = by_keras(**arguments)
    found, report = outcome(mode, **arguments)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    return report


def test_a_program_trains_once_its_first_batches_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(proof, "_by_keras", lambda *given: compared.append(1) or _by_keras(*given))

    report = assert_as_keras()

    assert (report.modes, report.fallback_reason) == ([FitMode.EXACT, FitMode.EXACT], None)
    assert compared == [1]  # for both models


_by_keras = proof._by_keras


def test_a_program_that_differs_stands_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    some_rows = graph_loop.some_rows
    monkeypatch.setattr(graph_loop, "some_rows", lambda rows, first, count: some_rows(rows, first // 2, count))

    report = assert_as_keras()

    assert report.modes == [FitMode.KERAS, FitMode.KERAS]
    assert report.fallback_reason == f"{UNTESTED}: the first batches came out otherwise than in Keras"


def test_validation_and_xla_are_left_to_keras() -> None:
    report = assert_as_keras(FitMode.XLA, validation_split=0.3)

    assert report.modes == [FitMode.EXACT, FitMode.EXACT]
    assert report.fallback_reason == f"not in XLA: {UNTESTED}"


def test_what_cant_be_compared_is_keras_own() -> None:
    with compiled_fit() as report:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(X, Y, steps_per_epoch=2, verbose=0)
        model.predict(X, verbose=0)

    assert report.modes == [FitMode.KERAS]
    assert report.fallback_reason == f"{UNTESTED}: batches of an iterator can't be compared with Keras' own"


def test_predictions_are_keras_own() -> None:
    with compiled_fit() as report:
        keras.Sequential([keras.Input((6,)), layers.Dense(1)]).predict(X, verbose=0)

    assert report.fallback_reason == f"{UNTESTED}: predict and evaluate are Keras' own"


def test_what_python_sees_at_every_batch_is_keras_own() -> None:
    seen: list[int] = []
    with compiled_fit() as report:
        for _ in range(2):
            keras.utils.clear_session(free_memory=False)
            model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
            model.compile("sgd", "mse")
            callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
            model.fit(X, Y, batch_size=len(X), verbose=0, callbacks=[callback])

    assert seen == [0, 0]
    assert report.modes == [FitMode.KERAS, FitMode.KERAS]
    assert report.fallback_reason == "the callback LambdaCallback is called at every batch"
