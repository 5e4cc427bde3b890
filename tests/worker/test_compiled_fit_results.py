"""Results that are arrays or dicts, and steps, loops and validations of one's own, are Keras' own in a compiled fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, metrics
from tensorflow.python.eager import context

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from tests.thinning import some_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(46, 4)).astype("float32"), RNG.integers(0, 2, (46, 1)).astype("float32")


class Both(keras.Metric):
    """Has a dict as its result."""

    def __init__(self) -> None:
        super().__init__(name="both")
        self.precision, self.recall = metrics.Precision(), metrics.Recall()

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        self.precision.update_state(*arguments, **keywords)
        self.recall.update_state(*arguments, **keywords)

    def result(self) -> Any:
        return {"precision": self.precision.result(), "recall": self.recall.result()}

    def reset_state(self) -> None:
        self.precision.reset_state()
        self.recall.reset_state()


class Total(keras.Metric):
    """Has a variable as its result, which Keras reads only when callbacks are called."""

    def __init__(self) -> None:
        super().__init__(name="total")
        self.total = self.add_weight(initializer="zeros", shape=())

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(keras.ops.sum(y_pred))

    def result(self) -> Any:
        return self.total


class NestedLogs(keras.Sequential):
    """Trains as Keras' guide shows it, whose logs hold those of all compiled metrics as a dict."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=predicted)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        for metric in self.metrics:
            metric.update_state(*((loss,) if metric.name == "loss" else (y, predicted)))
        return {metric.name: metric.result() for metric in self.metrics}


class OwnMethods(keras.Sequential):
    """Has methods of its own that call Keras'."""

    def fit(self, *args: Any, **keywords: Any) -> Any:
        return super().fit(*args, **{**keywords, "epochs": 2})

    def evaluate(self, *args: Any, **keywords: Any) -> Any:
        self.n_evaluated = getattr(self, "n_evaluated", 0) + 1
        return super().evaluate(*args, **keywords)

    def predict(self, *args: Any, **keywords: Any) -> Any:
        return super().predict(*args, **keywords) > 0.5


class Reconstructs(keras.Model):
    """Learns from its inputs alone, as an autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.out = layers.Dense(2, "tanh"), layers.Dense(4)

    def call(self, inputs: Any) -> Any:
        decoded = self.out(self.code(inputs))
        self.add_loss(keras.ops.mean(keras.ops.square(decoded - inputs)))
        return decoded


def mlp(*given: Any, kind: Any = keras.Sequential) -> Any:
    hidden = [layers.Dense(5, "relu"), layers.Dropout(0.2), layers.Dense(1, "sigmoid")]
    model = kind([keras.Input((4,)), *hidden])
    model.compile("sgd", "binary_crossentropy", metrics=list(given))
    return model


def life(mode: FitMode, build: Callable[[], Any], *data: Any, **arguments: Any) -> tuple[Any, FitReport]:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with compiled_fit(mode) as report:
        model = build()
        x, *others = data or (X, Y)
        fitted = model.fit(x, *others, **{"batch_size": 8, "epochs": 2, "verbose": 0, **arguments}).history
        found = [fitted, model.evaluate(x, *others, verbose=0), model.evaluate(x, *others, verbose=0, return_dict=True)]
        if isinstance(model, OwnMethods):
            found.append(model.predict(x, verbose=0))
    return (found, model.get_weights(), [variable.numpy() for variable in model.metrics_variables]), report


def assert_as_keras(build: Callable[[], Any], *data: Any, **arguments: Any) -> None:
    expected, _ = life(FitMode.KERAS, build, *data, **arguments)
    found, report = life(FitMode.EXACT, build, *data, **arguments)
    assert (report.mode, report.fallback_reason) == (FitMode.EXACT, None)
    keras.tree.assert_same_structure(expected, found)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


METRICS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: mlp(metrics.F1Score(threshold=0.5), metrics.Precision(thresholds=[0.3, 0.7]), "accuracy"),
    "variables": lambda: mlp(metrics.TruePositives(thresholds=[0.2, 0.5]), Total()),
    "a dict": lambda: mlp(Both()),
    "logs in logs": lambda: mlp("mae", metrics.Precision(thresholds=[0.3, 0.7]), kind=NestedLogs),
}


@pytest.mark.parametrize("name", some_of(sorted(METRICS), every=4))
def test_a_result_may_be_an_array_or_a_dict(name: str) -> None:
    assert_as_keras(METRICS[name], validation_split=0.3, validation_freq=2)


def test_a_model_may_have_methods_of_its_own_that_call_those_of_keras() -> None:
    assert_as_keras(lambda: mlp("mae", kind=OwnMethods), epochs=9, validation_split=0.3)


def test_a_model_may_be_validated_on_inputs_alone() -> None:
    def build() -> Any:
        model = Reconstructs()
        model.compile("sgd")
        return model

    assert_as_keras(build, X, validation_data=X[:9])


def test_results_of_the_last_batch_come_out_of_xla() -> None:
    expected, _ = life(FitMode.KERAS, METRICS["logs in logs"])
    found, report = life(FitMode.XLA, METRICS["logs in logs"])

    assert (report.modes, report.fallback_reason) == ([FitMode.XLA], None)
    for name, values in expected[0][0].items():
        np.testing.assert_allclose(found[0][0][name], values, rtol=1e-5)


class Noise(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))


def test_without_a_seed_random_numbers_may_come_from_wherever_they_are_drawn() -> None:
    seed = context.global_seed()
    tf.random.set_seed(None)
    try:
        model = keras.Sequential([keras.Input((4,)), Noise(), layers.Dense(1)])
        model.compile("sgd", "mse")
        with compiled_fit() as report:
            history = model.fit(X, Y, epochs=2, verbose=0).history
    finally:
        tf.random.set_seed(seed)

    assert (report.mode, report.fallback_reason) == (FitMode.EXACT, None)
    assert np.isfinite(history["loss"]).all()


def test_a_model_that_is_not_built_predicts() -> None:
    def predicted(mode: FitMode) -> Any:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([layers.Dense(3, "relu"), layers.BatchNormalization(), layers.Dense(1)])
        with compiled_fit(mode) as report:
            found = model.predict(X, batch_size=7, verbose=0)
        assert report.fallback_reason is None
        return found.tolist()

    assert predicted(FitMode.EXACT) == predicted(FitMode.KERAS)
