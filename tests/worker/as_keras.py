"""A small model that is trained by Keras and compiled, and what has to be equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 8)).astype("float32"), RNG.integers(0, 2, (60, 1)).astype("float32")

Build = Callable[[], Any]


def mlp(*inner: Any, **settings: Any) -> Any:
    # what is traced is what takes time here: no metrics, and an optimizer without slots, where they are not the point
    inner = inner or (layers.Dense(4, activation="relu"), layers.Dropout(0.2))
    model = keras.Sequential([keras.Input((8,)), *inner, layers.Dense(1, activation="sigmoid")])
    model.compile(**{"optimizer": "sgd", "loss": "binary_crossentropy", **settings})
    return model


def begin() -> None:
    """Number names anew, and seed all generators."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)


def trained(
    mode: FitMode, build: Build, *, callbacks: Callable[[], list[Any]] = list, x: Any = X, y: Any = Y, **arguments: Any
) -> tuple[Any, FitReport]:
    begin()
    with compiled_fit(mode) as report:
        model = build()
        arguments = {"epochs": 3, "batch_size": 16, "verbose": 0, **arguments}
        history = model.fit(x, y, callbacks=callbacks(), **arguments)
        slots = [variable.numpy() for variable in model.optimizer.variables]
    return (model.get_weights(), slots, history.epoch, history.history), report


def assert_as_keras(build: Build, *, mode: FitMode | None = FitMode.EXACT, **arguments: Any) -> None:
    expected, _ = trained(FitMode.KERAS, build, **arguments)
    found, report = trained(FitMode.EXACT, build, **arguments)
    assert mode is None or (report.mode, report.fallback_reason) == (mode, None)
    keras.tree.assert_same_structure(expected, found)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(one, other)


class At(keras.callbacks.Callback):
    """Acts on the model when a method is called, in one epoch if one is named."""

    def __init__(self, method: str, act: Callable[[Any], None], epoch: int | None = None) -> None:
        super().__init__()
        self.act = act
        setattr(self, method, lambda *arguments: self.act(self.model) if epoch in (None, arguments[0]) else None)


class Counts(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.called.append("train")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.called.append(epoch)


class DividesByRowsButFifty(layers.Layer):
    """Fails at fifty rows; TensorFlow divides by a number that it knows as it multiplies by the inverse."""

    def call(self, inputs: Any) -> Any:
        if inputs.shape[0] == 50:
            raise ValueError("not fifty")
        return inputs / keras.ops.cast(keras.ops.shape(inputs)[0], "float32")
