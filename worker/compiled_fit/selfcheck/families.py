"""The kinds of models that the self-check trains, each with data for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gridfleet.worker.compiled_fit.selfcheck.tolerances import XLA_TOLERANCE_OF_NOISE
from gridfleet.worker.compiled_fit.types import ArrayLike, Layer, Model, Structure, Tensor

layers = keras.layers


@dataclass(frozen=True)
class Data:
    """Arrays of equally many rows.

    Parameters
    ----------
    x, y : ndarray or dict of ndarray
        As for Keras' ``fit``.
    """

    x: ArrayLike
    y: ArrayLike

    def rows(self, first: int, last: int) -> Data:
        """Return the rows from `first` to before `last`."""
        return Data(*keras.tree.map_structure(lambda array: array[first:last], (self.x, self.y)))

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return len(keras.tree.flatten(self.x)[0])


@dataclass(frozen=True)
class Family:
    """A kind of model, with data for it.

    Parameters
    ----------
    name : str
        As for ``--family``.
    build : callable
        Returns a model that is not compiled.
    draw : callable
        Returns as many rows as asked for, from a generator.
    compile_arguments : mapping or callable
        Loss, metrics and the like, or what makes them anew.
    takes_class_weight : bool, default=True
        False for models with several outputs, where Keras refuses ``class_weight``.
    xla_tolerance : mapping of str to float, default={}
        What XLA may differ by with an optimizer, where that is more than `XLA_TOLERANCE`.
    runs_in_xla : bool, default=True
        Whether XLA takes it; convolutions stay in the graph.
    leaves_xla_with : frozenset of str, default=frozenset()
        Optimizers with which it stays in the graph: they sum up a lookup's gradients by a scatter, whose index XLA does
        not check.
    may_leave_xla : bool, default=False
        Whether it is in order that XLA does not take it, for whatever reason.
    """

    name: str
    build: Callable[[], Model]
    draw: Callable[[np.random.Generator, int], Data]
    compile_arguments: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    takes_class_weight: bool = True
    xla_tolerance: Mapping[str, float] = field(default_factory=dict)
    runs_in_xla: bool = True
    leaves_xla_with: frozenset[str] = frozenset()
    may_leave_xla: bool = False


def _features(*shape: int) -> Callable[[np.random.Generator, int], Data]:
    """Return a drawer of normal features of a shape, with a binary target."""

    def draw(generator: np.random.Generator, n_rows: int) -> Data:
        x = generator.normal(size=(n_rows, *shape)).astype("float32")
        return Data(x, (x.reshape(n_rows, -1)[:, 0] > 0).astype("int64"))

    return draw


def _words(generator: np.random.Generator, n_rows: int) -> Data:
    x = generator.integers(0, 20, size=(n_rows, 6))
    return Data(x, x[:, :1] % 2)


def _classes(generator: np.random.Generator, n_rows: int) -> Data:
    data = _features(8)(generator, n_rows)
    return Data(data.x, data.x[:, :3].argmax(axis=1))


def _amounts(generator: np.random.Generator, n_rows: int) -> Data:
    data = _features(8)(generator, n_rows)
    return Data(data.x.astype("float64"), data.x[:, 0] - data.x[:, 1])


def _several(generator: np.random.Generator, n_rows: int) -> Data:
    classes = _classes(generator, n_rows)
    x = {"left": classes.x[:, :4], "right": classes.x[:, 4:]}
    return Data(x, {"amount": classes.x[:, 5:6], "kind": classes.y})


def binary_classifier(*hidden: Layer) -> Model:
    """Return a model of some layers and one output, the probability of the second of two classes."""
    return keras.Sequential([*hidden, layers.Dense(1, activation="sigmoid")])


def _mlp() -> Model:
    return binary_classifier(layers.Input((8,)), layers.Dense(12, activation="relu"))


def _unbuilt() -> Model:
    return binary_classifier(layers.Dense(12, activation="relu"))


def _normalized() -> Model:
    return binary_classifier(
        layers.Input((8,)), layers.Dense(12), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3)
    )


def _conv1d() -> Model:
    return binary_classifier(
        layers.Input((10, 3)), layers.Conv1D(4, 3, activation="relu"), layers.MaxPooling1D(), layers.Flatten()
    )


def _conv2d() -> Model:
    return binary_classifier(
        layers.Input((6, 6, 1)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()
    )


def _lstm() -> Model:
    return binary_classifier(layers.Input((5, 3)), layers.LSTM(4))


def _gru() -> Model:
    return binary_classifier(layers.Input((5, 3)), layers.GRU(4, dropout=0.2))


def _embedding() -> Model:
    return binary_classifier(layers.Input((6,)), layers.Embedding(20, 4), layers.GlobalAveragePooling1D())


def _multi_class() -> Model:
    return keras.Sequential(
        [layers.Input((8,)), layers.Dense(12, activation="tanh"), layers.Dense(3, activation="softmax")]
    )


def _regression() -> Model:
    return keras.Sequential([layers.Input((8,)), layers.Dense(12, activation="elu"), layers.Dense(1)])


def _several_outputs() -> Model:
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    both = layers.Concatenate()([layers.Dense(6, activation="relu")(left), layers.Dense(6, activation="tanh")(right)])
    outputs = {"amount": layers.Dense(1)(both), "kind": layers.Dense(3, activation="softmax")(both)}
    return keras.Model({"left": left, "right": right}, outputs)


class OwnTrainStep(keras.Model):
    """A model with a ``train_step`` of its own, as Keras' guide shows it."""

    def train_step(self, data: Structure) -> dict[str, Tensor]:
        """Add the size of predictions to the loss."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted, sample_weight) + 0.1 * tf.reduce_mean(tf.square(predicted))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, predicted, sample_weight)
        results: dict[str, Tensor] = self.get_metrics_result()
        return results


def _own_train_step() -> Model:
    inputs = layers.Input((8,))
    hidden = layers.Dropout(0.2)(layers.Dense(12, activation="relu")(inputs))
    return OwnTrainStep(inputs, layers.Dense(1, activation="sigmoid")(hidden))


def _joined_late() -> Model:
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    deep = layers.Dense(8, activation="relu")(right)
    return keras.Model({"left": left, "right": right}, layers.Add()([layers.Dense(1)(left), layers.Dense(1)(deep)]))


def _two_inputs(generator: np.random.Generator, n_rows: int) -> Data:
    data = _amounts(generator, n_rows)
    x = data.x.astype("float32")
    return Data({"left": x[:, :4], "right": x[:, 4:]}, data.y[:, None])


def _nested() -> Model:
    start = layers.Input((8,))
    inner = keras.Model(start, layers.Dense(6, activation="relu")(start))
    outer = layers.Input((8,))
    body = keras.Sequential([layers.Input((6,)), layers.Dense(5, activation="tanh"), layers.Dropout(0.2)])
    return keras.Model(outer, layers.Dense(1, activation="sigmoid")(body(inner(outer))))


def _attention() -> Model:
    start = layers.Input((5, 6))
    attended = layers.MultiHeadAttention(2, 3, dropout=0.1)(start, start)
    joined = layers.LayerNormalization()(layers.Add()([start, attended]))
    return keras.Model(start, layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling1D()(joined)))


class OwnLayer(keras.Layer):
    """A layer of one's own, with a weight and a loss."""

    def build(self, shape: Any) -> None:
        """Make the weight."""
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs: Tensor) -> Tensor:
        """Scale the inputs."""
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs * self.scale * 2.0


class OwnMetric(keras.Metric):
    """The F1 score as people write it."""

    def __init__(self, name: str = "f1") -> None:
        super().__init__(name=name)
        self.precision, self.recall = keras.metrics.Precision(), keras.metrics.Recall()

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Count."""
        self.precision.update_state(y_true, y_pred, sample_weight)
        self.recall.update_state(y_true, y_pred, sample_weight)

    def result(self) -> Tensor:
        """Return the score."""
        p, r = self.precision.result(), self.recall.result()
        return 2 * p * r / (p + r + keras.config.epsilon())

    def reset_state(self) -> None:
        """Begin anew."""
        self.precision.reset_state()
        self.recall.reset_state()


def _own_loss(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return keras.ops.mean(keras.ops.square(keras.ops.cast(y_true, y_pred.dtype) - y_pred), axis=-1)


def _own_parts() -> Model:
    return binary_classifier(layers.Input((8,)), layers.Dense(6, activation="tanh"), OwnLayer())


_BINARY = {"loss": "binary_crossentropy", "metrics": ["accuracy"]}
#: The kinds of models that people tune, small.
FAMILIES = (
    Family("mlp", _mlp, _features(8), _BINARY),
    Family("batch_normalization", _normalized, _features(8), _BINARY, xla_tolerance=XLA_TOLERANCE_OF_NOISE),
    Family("conv1d", _conv1d, _features(10, 3), _BINARY, runs_in_xla=False),
    Family("conv2d", _conv2d, _features(6, 6, 1), _BINARY, runs_in_xla=False),
    Family("lstm", _lstm, _features(5, 3), _BINARY),
    Family("gru", _gru, _features(5, 3), _BINARY),
    Family(
        "embedding",
        _embedding,
        _words,
        {**_BINARY, "metrics": ["accuracy", "auc"]},
        leaves_xla_with=frozenset(("rmsprop", "adagrad")),
    ),
    Family("multi_class", _multi_class, _classes, {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}),
    Family("regression", _regression, _amounts, {"loss": "mse", "metrics": ["mae"], "weighted_metrics": ["mse"]}),
    Family(
        "multi_output",
        _several_outputs,
        _several,
        {
            "loss": {"amount": "mse", "kind": "sparse_categorical_crossentropy"},
            "loss_weights": {"amount": 0.5, "kind": 2.0},
            "metrics": {"amount": ["mae"], "kind": ["accuracy"]},
        },
        takes_class_weight=False,
    ),
    Family("unbuilt", _unbuilt, _features(8), _BINARY),
    Family("own_train_step", _own_train_step, _features(8), _BINARY),
    Family("joined_late", _joined_late, _two_inputs, {"loss": "mse", "metrics": ["mae"]}, takes_class_weight=False),
    Family("nested", _nested, _features(8), _BINARY),
    Family("attention", _attention, _features(5, 6), _BINARY, xla_tolerance=XLA_TOLERANCE_OF_NOISE),
    Family("own_parts", _own_parts, _features(8), lambda: {"loss": _own_loss, "metrics": [OwnMetric()]}),
)
