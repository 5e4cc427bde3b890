"""What can't be compiled runs as Keras runs it, with the reason and Keras' own result; and nothing stays patched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype("float32"), RNG.integers(0, 2, 40)
#: Seconds after which a test gives up on another thread.
PATIENCE_S = 60


def mlp(*inner: Any, kind: Any = keras.Sequential, **settings: Any) -> Any:
    model = kind([layers.Input((4,)), *inner, layers.Dense(3, activation="relu"), layers.Dense(1)])
    model.compile(**{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **settings})
    return model


def fit(model: Any, *data: Any, **arguments: Any) -> Any:
    return model.fit(*(data or (X, Y)), **{"epochs": 3, "verbose": 0, "batch_size": 16, **arguments})


def fit_elsewhere(model: Any, data: Any, **arguments: Any) -> Any:
    return fit(model, data, batch_size=None, **arguments)


def batches() -> Iterator[tuple[Any, Any]]:
    while True:
        for first in range(0, len(X), 10):
            yield X[first : first + 10], Y[first : first + 10]


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return X[number::4], Y[number::4]


class CountsBatches(keras.callbacks.Callback):
    n_batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.n_batches += 1


class ShiftsWeights(keras.callbacks.Callback):
    def on_test_begin(self, logs: Any = None) -> None:
        self.model.layers[-1].bias.assign_add([0.5])


class OwnFit(keras.Sequential):
    def fit(self, *args: Any, **keywords: Any) -> Any:
        return super().fit(*args, **{**keywords, "epochs": 1})


class OwnTrainFunction(keras.Sequential):
    def make_train_function(self, force: bool = False) -> Any:
        train = super().make_train_function(force)

        def twice(iterator: Any) -> Any:
            train(iterator)
            return train(iterator)

        self.train_function = twice
        return twice


class NestedLogs(keras.Sequential):
    """Trains as Keras' guide shows it, whose logs hold those of all compiled metrics as a dict."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {metric.name: metric.result() for metric in self.metrics}


class LogsNothing(keras.Sequential):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)["loss"]


class Noise(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))


class FailsOnce(layers.Layer):
    """Fails at its third batch, and never again: as a machine does that is short of memory for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def call(self, inputs: Any) -> Any:
        [outputs] = tf.py_function(self._passed, [inputs], [tf.float32]) if False else [self._python(inputs)]
        outputs.set_shape(inputs.shape)
        return outputs

    def _python(self, inputs: Any) -> Any:
        return tf.grad_pass_through(lambda x: tf.numpy_function(self._passed, [x], tf.float32))(inputs)

    def _passed(self, inputs: Any) -> Any:
        self.n_calls += 1
        if self.n_calls == 3:
            raise MemoryError("just now")
        return inputs
