"""TensorFlow rewrites what it sees together, and rounds otherwise then: here it sees what it sees in Keras' own fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import compiled_fit

RNG = np.random.default_rng(0)
X, OTHER = (RNG.normal(size=(60, 4)).astype("float32") for _ in range(2))
AMOUNTS = RNG.normal(size=(60, 3)).astype("float32")
CLASSES = (AMOUNTS[:, :1] > 0).astype("float32")


class DividesByRows(layers.Layer):
    """TensorFlow divides by a number of rows that it knows as it multiplies by the inverse."""

    def call(self, inputs: Any) -> Any:
        return inputs / keras.ops.cast(keras.ops.shape(inputs)[0], "float32")


class F1(keras.Metric):
    """The metric as people write it."""

    def __init__(self) -> None:
        super().__init__(name="f1")
        self.precision, self.recall = keras.metrics.Precision(), keras.metrics.Recall()

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.precision.update_state(y_true, y_pred)
        self.recall.update_state(y_true, y_pred)

    def result(self) -> Any:
        p, r = self.precision.result(), self.recall.result()
        return 2 * p * r / (p + r + keras.config.epsilon())


def fitted(model: Any, x: Any, y: Any, **settings: Any) -> Any:
    model.compile(**{"optimizer": "sgd", "loss": "mse", **settings})
    history = model.fit(x, y, batch_size=16, epochs=5, verbose=0, validation_split=0.3).history
    return history, model.get_weights()


def mlp(*inner: Any, n_outputs: int = 1, last: str | None = None) -> Any:
    return keras.Sequential([layers.Input((4,)), *inner, layers.Dense(n_outputs, activation=last)])


def wide_and_deep(**settings: Any) -> Any:
    wide, deep = layers.Input((4,)), layers.Input((4,))
    joined = layers.Add()([layers.Dense(1)(wide), layers.Dense(1)(layers.Dense(8, activation="relu")(deep))])
    return fitted(keras.Model([wide, deep], joined), [X, OTHER], AMOUNTS[:, :1], **settings)


def swish() -> Any:
    model = mlp(layers.Dense(6, "silu"), layers.BatchNormalization(), layers.Activation("swish"))
    found = fitted(model, X, AMOUNTS[:, :1])
    return found, model.evaluate(X, AMOUNTS[:, :1], verbose=0), model.predict(X, verbose=0)


def convolved_swish() -> Any:
    start = layers.Input((4,))
    x = layers.Conv2D(3, 2, activation="swish")(layers.Reshape((2, 2, 1))(start))
    model = keras.Model(
        start, layers.Dense(1)(layers.Activation("swish")(layers.BatchNormalization()(layers.Flatten()(x))))
    )
    return fitted(model, X, AMOUNTS[:, :1])


def swish_with_muon() -> Any:
    """What TensorFlow makes of Muon's constants depends on whether the step's results are asked for."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5)
    model = mlp(layers.Activation("swish"), layers.AlphaDropout(0.2), layers.Dense(5))
    return fitted(model, X, AMOUNTS[:, :1], optimizer=keras.optimizers.Muon(rate), loss="mae")


def swish_beside_others() -> Any:
    x = layers.Input((4,))
    joined = layers.Concatenate()([layers.Dense(5, name)(x) for name in ("silu", "hard_silu", "relu6", "mish")])
    return fitted(keras.Model(x, layers.Dense(1)(joined)), X, AMOUNTS[:, :1], loss="log_cosh")


def a_constant_that_a_metric_has_too(loss: str = "tversky", steps_per_execution: int = 1) -> Any:
    """The loss adds an epsilon to a sum, and the metric's result adds the same one."""
    model = mlp(layers.Dense(3), last="sigmoid")
    metrics = [keras.metrics.BinaryIoU()]
    return fitted(model, X, CLASSES, loss=loss, metrics=metrics, steps_per_execution=steps_per_execution)


def correlations() -> Any:
    metrics = [keras.metrics.CosineSimilarity(), keras.metrics.PearsonCorrelation()]
    return fitted(mlp(layers.Dense(6, "tanh"), n_outputs=3), X, AMOUNTS, metrics=metrics)


def results_of_metrics() -> Any:
    metrics = [F1(), keras.metrics.FBetaScore("macro", beta=3.0, threshold=0.4)]
    return fitted(mlp(layers.Dense(6, "tanh"), last="sigmoid"), X, CLASSES, loss="binary_crossentropy", metrics=metrics)


def predictions_of_several_sizes() -> Any:
    model = mlp(layers.Dense(6, "tanh"), DividesByRows())
    return [model.predict(X[:10], batch_size=size, verbose=0) for size in (32, 3, 5, 10)]


@pytest.mark.parametrize(
    "situation",
    [
        wide_and_deep,
        pytest.param(lambda: wide_and_deep(steps_per_execution=2), marks=pytest.mark.complete),
        swish,
        pytest.param(convolved_swish, marks=pytest.mark.complete),
        pytest.param(swish_with_muon, marks=pytest.mark.complete),
        pytest.param(swish_beside_others, marks=pytest.mark.complete),
        a_constant_that_a_metric_has_too,
        correlations,
        results_of_metrics,
        predictions_of_several_sizes,
        pytest.param(lambda: a_constant_that_a_metric_has_too("tversky", 3), marks=pytest.mark.complete),
        pytest.param(lambda: a_constant_that_a_metric_has_too("dice"), marks=pytest.mark.complete),
    ],
    ids=[
        "inputs joined late",
        "several steps to an execution",
        "swish",
        "swish of a convolution",
        "swish with Muon",
        "swish beside others",
        "a constant that a metric has too",
        "correlations",
        "results of metrics",
        "predict",
        "such a constant in several steps to an execution",
        "such a constant of another loss",
    ],
)
def test_the_last_digit_is_that_of_keras(situation: Callable[[], Any]) -> None:
    def outcome(mode: FitMode) -> Any:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        with compiled_fit(mode) as report:
            found = situation()
        assert report.mode in (mode, None), report.fallback_reason
        return found

    expected = outcome(FitMode.KERAS)
    found = outcome(FitMode.EXACT)

    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, other)
