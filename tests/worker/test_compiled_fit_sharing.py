"""Which models share a program: equal structures do, look-alikes never, and what each gets is Keras' own result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from worker.compiled_fit import compiled_fit, scope
from worker.compiled_fit.cache import ProgramCache
from worker.compiled_fit.kernels import kept_kernels

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 6)).astype("float32"), RNG.integers(0, 2, 50)


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProgramCache]:
    cache = ProgramCache()
    monkeypatch.setattr(scope, "programs", cache)
    yield cache
    keras.config.set_dtype_policy("float32")


@keras.saving.register_keras_serializable()
class Scaled(layers.Layer):
    """Computes with things that its config does not tell."""

    def __init__(self, scale: Any, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        return inputs * (self.scale() if callable(self.scale) else self.scale)


def model_with(*inner: Any, optimizer: Any = "adam", loss: Any = "binary_crossentropy", **settings: Any) -> Any:
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


def of_policy(policy: str) -> Any:
    keras.config.set_dtype_policy(policy)
    return model_with(layers.Dense(4))


#: Pairs that have the same variables, of the same shapes and names, and compute something else.
LOOK_ALIKES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "activation": (
        lambda: model_with(layers.Dense(4, activation="relu")),
        lambda: model_with(layers.Dense(4, activation="tanh")),
    ),
    "a layer named like its activation": (
        lambda: model_with(layers.Dense(4, activation="relu", name="relu")),
        lambda: model_with(layers.Dense(4, activation="tanh", name="tanh")),
    ),
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
        lambda: model_with(loss=loss_times(1.0)),
        lambda: model_with(loss=loss_times(9.0), optimizer="sgd"),
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
    "dtype policy": (lambda: of_policy("float32"), lambda: of_policy("mixed_bfloat16")),
}


def trained(build: Callable[[], Any], mode: str, *, seed: int = 1, rows: int = 50, epochs: int = 2) -> list[Any]:
    keras.utils.clear_session()
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(seed)
    with compiled_fit(mode) as report:
        model = build()
        history = model.fit(X[:rows], Y[:rows], batch_size=8, epochs=epochs, verbose=0).history
        predicted = model.predict(X, verbose=0)
    assert report.fallback_reason is None
    return [*model.get_weights(), history["loss"], predicted]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("difference", LOOK_ALIKES)
def test_look_alikes_do_not_share_a_program(difference: str) -> None:
    first, second = LOOK_ALIKES[difference]

    trained(first, "exact")

    assert_equal(trained(second, "exact"), trained(second, "keras"))


@pytest.mark.parametrize(
    ("build", "other"),
    [
        (lambda: model_with(layers.Dense(4)), {"seed": 2}),
        (lambda: model_with(layers.Dense(4)), {"epochs": 5}),
        (lambda: model_with(layers.Dense(4)), {"rows": 49}),
        (lambda: model_with(layers.Dense(4), optimizer=keras.optimizers.Adam(0.1)), {}),
        (lambda: model_with(layers.Dense(4), layers.Dropout(0.5, seed=9)), {"seed": 2}),
        (lambda: model_with(Scaled(2.0)), {"seed": 2}),
    ],
)
def test_models_of_one_structure_share_their_programs(
    build: Callable[[], Any], other: dict[str, int], programs: ProgramCache
) -> None:
    expected = trained(build, "keras", **other)
    trained(build, "exact")
    n_programs = len(programs)

    assert_equal(trained(build, "exact", **other), expected)

    assert len(programs) == n_programs == 2  # one to train, one to predict


def test_another_learning_rate_shares_the_program(programs: ProgramCache) -> None:
    for rate in (0.001, 0.01, 0.1):
        trained(lambda rate=rate: model_with(layers.Dense(4), optimizer=keras.optimizers.Adam(rate)), "exact")

    assert len(programs) == 2


def test_the_longest_unused_program_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ProgramCache(max_programs=2)
    for key in "abac":
        if cache.get(key) is None:
            cache.put(key, object())

    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert (len(cache), cache.n_dropped) == (2, 1)


def test_a_seed_starts_random_operations_anew_though_kernels_are_kept() -> None:
    def drawn() -> list[Any]:
        tf.random.set_seed(4)
        draws = tf.function(lambda: tf.random.uniform((3,)))
        return [tf.random.uniform((3,)).numpy(), draws().numpy(), draws().numpy()]

    expected = drawn()

    with kept_kernels():
        for _ in range(3):
            assert_equal(drawn(), expected)
