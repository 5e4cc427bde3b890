"""Pairs of models that differ in one thing only, some in nothing that their configs show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

RNG = np.random.default_rng(0)
#: What they are trained on.
X, Y = RNG.normal(size=(50, 6)).astype("float32"), RNG.integers(0, 2, 50)


@keras.saving.register_keras_serializable()
class Scaled(layers.Layer):
    """Computes with things that its config does not show."""

    def __init__(self, scale: Any, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        return inputs * (self.scale() if callable(self.scale) else self.scale)


class Ordered(layers.Layer):
    """Reads its two weights in an order that only its code shows; none is trained, so no update shows it either."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(name="ordered")
        self.order = first, second

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=shape[1:], initializer="ones", trainable=False)
        self.shift = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        first, second = (getattr(self, name) for name in self.order)
        return inputs * first + second


class Tempered(keras.optimizers.SGD):
    """Has a number that its config does not show."""

    factor = 1.0

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient * self.factor, variable, learning_rate)


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """Has a number that its config does not show."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, step: Any) -> Any:
        return self.rate

    def get_config(self) -> dict[str, Any]:
        return {}


class Shrunk(keras.constraints.Constraint):
    """Has a number that its config does not show."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, weight: Any) -> Any:
        return weight * self.factor


class Named(keras.Model):
    """Returns its output under a name."""

    def __init__(self, name_of_output: str) -> None:
        super().__init__()
        self.name_of_output = name_of_output
        self.dense = layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return {self.name_of_output: self.dense(inputs)}


def model_with(*inner: Any, optimizer: Any = "sgd", loss: Any = "binary_crossentropy", **settings: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), *inner, layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **settings)
    return model


def adapted(mean: float) -> Any:
    normalization = layers.Normalization()
    normalization.adapt(X + mean)
    return model_with(normalization)


def frozen(trainable: bool) -> Any:
    dense = layers.Dense(4)
    dense.trainable = trainable
    return model_with(dense)


def loss_times(factor: float) -> Callable[[Any, Any], Any]:
    return lambda target, predicted: factor * keras.losses.binary_crossentropy(target, predicted)


def scheduled(rate: float) -> Any:
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.5))


def named(function: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    function.__name__ = name
    return function


def decayed(*excluded: str) -> Any:
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    if excluded:
        optimizer.exclude_from_weight_decay(var_names=excluded)
    return model_with(optimizer=optimizer)


def tempered(factor: float) -> Any:
    optimizer = Tempered(0.1)
    optimizer.factor = factor
    return model_with(optimizer=optimizer)


def called_as(call: Callable[..., Any] | None) -> Any:
    dense = layers.Dense(6)
    if call is not None:
        dense.call = call
    return model_with(dense)


def times(constant: Any) -> Any:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(1)(inputs * constant))
    model.compile(optimizer="adam", loss="mse")
    return model


def metric_times(factor: float) -> Callable[[Any, Any], Any]:
    return named(lambda target, predicted: factor * keras.ops.mean(predicted), "metric")


def measured(*metrics: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), Scaled(2.0), layers.Dense(1)])
    model.compile(optimizer="adam", loss="mse", metrics=metrics)
    return model


def with_output(name: str) -> Any:
    model = Named(name)
    model.compile(optimizer="adam", loss="mse")
    return model


def recompiled(first: dict[str, Any], second: dict[str, Any]) -> Any:
    """What an earlier ``compile`` gave stays in force where a later one gives nothing."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    model.compile("sgd", **first)
    model.compile("sgd", **second)
    return model


def with_kernel_that(**attributes: Any) -> Any:
    """Keras goes by a variable's own regularizer and constraint, and not by its layer's."""
    model = model_with(layers.Dense(4), optimizer="sgd")
    for name, value in attributes.items():
        setattr(model.layers[0].kernel, name, value)
    return model


def with_regularizer_set_later(*, at_first: bool) -> Any:
    dense = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5) if at_first else None)
    model = model_with(dense, optimizer="sgd")
    dense.kernel_regularizer = keras.regularizers.L2(0.5)  # of no effect: the variable is built
    return model


def wrapped_like(original: Any, factor: float) -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any) -> Any:
        return factor * original(*args)

    return wrapper


def patched(factor: float, *, method: str) -> Any:
    """With a method of the model or its optimizer replaced on the instance."""
    model = model_with(layers.Dense(4), optimizer="sgd")
    owner = model.optimizer if hasattr(model.optimizer, method) else model
    original = getattr(owner, method)

    def replacement(*args: Any, **keywords: Any) -> Any:
        result = original(*args, **keywords)
        return {name: factor * value for name, value in result.items()} if isinstance(result, dict) else result

    def scaled(gradients: Any, *args: Any) -> Any:
        return original([factor * gradient for gradient in gradients], *args)

    if factor != 1.0:
        setattr(owner, method, scaled if method == "apply" else replacement)
    return model


def without_bias(*, has_bias: bool) -> Any:
    model = model_with(layers.Dense(4))
    if not has_bias:
        model.layers[0].bias = None
    return model


def with_metric(metric: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[metric])
    return model


def with_function(part: Any, name: str, function: Any) -> Any:
    setattr(part, name, function)
    return part


def of_policy(policy: str) -> Any:
    keras.config.set_dtype_policy(policy)
    return model_with(layers.Dense(4))


#: Pairs that have the same variables, of the same shapes and names, and compute something else.
def nested(*, training: bool | None = None, activation: str = "relu", trainable: bool = True) -> Any:
    """A Functional with another one in it, as transfer learning has it."""
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Dense(4, activation)(inputs)))
    base = keras.Model(inputs, hidden, name="base")
    base.trainable = trainable
    outer = keras.Input((6,))
    model = keras.Model(outer, layers.Dense(1, "sigmoid")(base(layers.Rescaling(0.5)(outer), training=training)))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


LOOK_ALIKES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "activation": (
        lambda: model_with(layers.Dense(4, activation="relu")),
        lambda: model_with(layers.Dense(4, activation="tanh")),
    ),
    "a layer named like its activation": (
        lambda: model_with(layers.Dense(4, activation="relu", name="relu")),
        lambda: model_with(layers.Dense(4, activation="tanh", name="tanh")),
    ),
    "how a model inside is called": (lambda: nested(training=False), lambda: nested(training=True)),
    "an activation of a model inside": (lambda: nested(), lambda: nested(activation="tanh")),
    "a model inside that is frozen": (lambda: nested(), lambda: nested(trainable=False)),
    "scale of pixels": (lambda: model_with(layers.Rescaling(0.5)), lambda: model_with(layers.Rescaling([0.5, 2] * 3))),
    "dropout": (lambda: model_with(layers.Dropout(0.1)), lambda: model_with(layers.Dropout(0.5))),
    "regularizer": (
        lambda: model_with(layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1))),
        lambda: model_with(layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.2))),
    ),
    "trainable": (lambda: frozen(True), lambda: frozen(False)),
    "a number of a layer": (lambda: model_with(Scaled(1.0)), lambda: model_with(Scaled(3.0))),
    "an array of a layer": (
        lambda: model_with(Scaled(np.full(6, 1.0, "float32"))),
        lambda: model_with(Scaled(np.full(6, 3.0, "float32"))),
    ),
    "a tensor of a layer": (
        lambda: model_with(Scaled(tf.constant([1.0] * 6))),
        lambda: model_with(Scaled(tf.constant([3.0] * 6))),
    ),
    "a closure of a layer": (lambda: model_with(Scaled(lambda: 1.0)), lambda: model_with(Scaled(lambda: 3.0))),
    "lambda layer": (
        lambda: model_with(layers.Lambda(lambda x: x)),
        lambda: model_with(layers.Lambda(lambda x: 3 * x)),
    ),
    "adapted normalization": (lambda: adapted(0.0), lambda: adapted(5.0)),
    "loss": (lambda: model_with(layers.Dense(4)), lambda: model_with(layers.Dense(4), loss="mse")),
    "a loss' closure": (
        lambda: model_with(loss=loss_times(1.0), optimizer="adam"),
        lambda: model_with(loss=loss_times(9.0)),
    ),
    "a loss' closure, same optimizer": (
        lambda: model_with(loss=loss_times(1.0), optimizer="sgd"),
        lambda: model_with(loss=loss_times(9.0), optimizer="sgd"),
    ),
    "clipping": (
        lambda: model_with(optimizer=keras.optimizers.SGD(1.0, clipnorm=0.01)),
        lambda: model_with(optimizer=keras.optimizers.SGD(1.0, clipnorm=0.1)),
    ),
    "a constant of the optimizer": (
        lambda: model_with(optimizer=keras.optimizers.Adam(beta_1=0.9)),
        lambda: model_with(optimizer=keras.optimizers.Adam(beta_1=0.1)),
    ),
    "learning-rate schedule": (
        lambda: model_with(optimizer=scheduled(0.1)),
        lambda: model_with(optimizer=scheduled(0.9)),
    ),
    "a function named like an activation": (
        lambda: model_with(layers.Dense(4, activation="relu")),
        lambda: model_with(layers.Dense(4, activation=named(lambda x: 3 * x, "relu"))),
    ),
    "two functions of one name": (
        lambda: model_with(layers.Activation(named(lambda x: x, "relu"))),
        lambda: model_with(layers.Activation(named(lambda x: 3 * x, "relu"))),
    ),
    "a function named like an activation of a cell": (
        lambda: model_with(layers.Reshape((3, 2)), layers.GRU(2)),
        lambda: model_with(layers.Reshape((3, 2)), layers.GRU(2, activation=named(lambda x: 3 * x, "tanh"))),
    ),
    "order of weights": (
        lambda: model_with(Ordered("scale", "shift")),
        lambda: model_with(Ordered("shift", "scale")),
    ),
    "call of one layer": (
        lambda: called_as(None),
        lambda: called_as(lambda inputs, training=None: inputs),
    ),
    "a number in the graph of layers": (lambda: times(1.0), lambda: times(3.0)),
    "an array in the graph of layers": (
        lambda: times(np.full(6, 1.0, "float32")),
        lambda: times(np.full(6, 3.0, "float32")),
    ),
    "a regularizer's closure": (
        lambda: model_with(layers.Dense(4, kernel_regularizer=lambda weight: 0.1 * keras.ops.sum(weight))),
        lambda: model_with(layers.Dense(4, kernel_regularizer=lambda weight: 0.9 * keras.ops.sum(weight))),
    ),
    "a constraint of one's own": (
        lambda: model_with(layers.Dense(4, kernel_constraint=Shrunk(1.0))),
        lambda: model_with(layers.Dense(4, kernel_constraint=Shrunk(0.5))),
    ),
    "activity regularizer of a layer that has no such parameter": (
        lambda: model_with(layers.Dropout(0.1, activity_regularizer=keras.regularizers.L2(0.1))),
        lambda: model_with(layers.Dropout(0.1, activity_regularizer=keras.regularizers.L2(0.9))),
    ),
    "frozen normalization": (
        lambda: model_with(layers.BatchNormalization(center=False, scale=False)),
        lambda: model_with(layers.BatchNormalization(center=False, scale=False, trainable=False)),
    ),
    # no config shows Huber's delta, CosineSimilarity's axis and the dtype of a loss
    "delta of a loss": (
        lambda: model_with(loss=keras.losses.Huber(0.1)),
        lambda: model_with(loss=keras.losses.Huber(0.5)),
    ),
    "axis of a loss": (
        lambda: model_with(loss=keras.losses.CosineSimilarity(axis=0)),
        lambda: model_with(loss=keras.losses.CosineSimilarity(axis=1)),
    ),
    "dtype of a loss": (
        lambda: model_with(loss=keras.losses.MeanSquaredError()),
        lambda: model_with(loss=keras.losses.MeanSquaredError(dtype="float16")),
    ),
    "weight of a loss": (
        lambda: model_with(loss_weights=[1.0]),
        lambda: model_with(loss_weights=[9.0]),
    ),
    "a metric's closure": (lambda: measured(metric_times(1.0)), lambda: measured(metric_times(9.0))),
    "a metric's threshold": (
        lambda: measured(keras.metrics.BinaryAccuracy(threshold=0.1)),
        lambda: measured(keras.metrics.BinaryAccuracy(threshold=0.9)),
    ),
    "a metric's name": (
        lambda: measured(keras.metrics.MeanAbsoluteError(name="one")),
        lambda: measured(keras.metrics.MeanAbsoluteError(name="other")),
    ),
    "an output's name": (lambda: with_output("one"), lambda: with_output("other")),
    "weights without decay": (lambda: decayed(), lambda: decayed("kernel", "bias")),
    "an optimizer of one's own": (lambda: tempered(1.0), lambda: tempered(9.0)),
    "a learning-rate schedule of one's own": (
        lambda: model_with(optimizer=keras.optimizers.SGD(Constant(0.1))),
        lambda: model_with(optimizer=keras.optimizers.SGD(Constant(0.9))),
    ),
    "averaged weights": (
        lambda: model_with(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)),
        lambda: model_with(optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.1)),
    ),
    "a loss that compile() was given before": (
        lambda: recompiled({"loss": "mse"}, {}),
        lambda: recompiled({"loss": "mae"}, {}),
    ),
    "metrics that compile() was given before": (
        lambda: recompiled({"loss": "mse", "metrics": ["mae"]}, {"loss": "mse"}),
        lambda: recompiled({"loss": "mse", "metrics": ["cosine_similarity"]}, {"loss": "mse"}),
    ),
    "a variable's regularizer": (
        lambda: with_kernel_that(),
        lambda: with_kernel_that(regularizer=keras.regularizers.L2(0.5)),
    ),
    "a variable's constraint": (
        lambda: with_kernel_that(constraint=keras.constraints.MaxNorm(0.9)),
        lambda: with_kernel_that(constraint=keras.constraints.MaxNorm(0.1)),
    ),
    "a regularizer that came too late": (
        lambda: with_regularizer_set_later(at_first=True),
        lambda: with_regularizer_set_later(at_first=False),
    ),
    "a loss that bears Keras' name": (
        lambda: model_with(loss=keras.losses.mean_squared_error),
        lambda: model_with(loss=wrapped_like(keras.losses.mean_squared_error, 9.0)),
    ),
    "an activation that bears Keras' name": (
        lambda: model_with(layers.Dense(4, activation=keras.activations.relu)),
        lambda: model_with(layers.Dense(4, activation=wrapped_like(keras.activations.relu, 3.0))),
    ),
    "a partial function as an activation": (
        lambda: model_with(layers.Dense(4, activation=partial(keras.activations.elu, alpha=0.1))),
        lambda: model_with(layers.Dense(4, activation=partial(keras.activations.elu, alpha=0.9))),
    ),
    "a method of one optimizer": (lambda: patched(1.0, method="apply"), lambda: patched(9.0, method="apply")),
    "a method of one model": (
        lambda: patched(1.0, method="get_metrics_result"),
        lambda: patched(9.0, method="get_metrics_result"),
    ),
    "functions that serialize alike": (
        lambda: model_with(layers.Dense(4, activation="gelu")),
        lambda: model_with(layers.Dense(4, activation=keras.ops.gelu)),
    ),
    "implementation of a cell": (
        lambda: model_with(layers.Reshape((3, 2)), layers.LSTM(2)),
        lambda: model_with(layers.Reshape((3, 2)), layers.LSTM(2, implementation=1)),
    ),
    "a bias that was taken away": (lambda: without_bias(has_bias=True), lambda: without_bias(has_bias=False)),
    "a loss' function": (
        lambda: model_with(loss=keras.losses.MeanSquaredError()),
        lambda: model_with(loss=with_function(keras.losses.MeanSquaredError(), "fn", keras.losses.mean_absolute_error)),
    ),
    "a metric's function": (
        lambda: with_metric(keras.metrics.MeanSquaredError()),
        lambda: with_metric(with_function(keras.metrics.MeanSquaredError(), "_fn", keras.losses.mean_absolute_error)),
    ),
    "dtype policy": (lambda: of_policy("float32"), lambda: of_policy("mixed_bfloat16")),
}
