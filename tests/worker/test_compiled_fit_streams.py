"""Datasets, and epochs of some batches of arrays, train as Keras trains them, and leave their iterators alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from gridfleet.worker.compiled_fit.data.stream import make_stream
from gridfleet.worker.compiled_fit.errors import NotEligibleError
from tests.thinning import some_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(46, 4)).astype("float32"), RNG.integers(0, 2, (46, 1)).astype("float32")

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")


def mlp(**settings: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), layers.Dropout(0.2), layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **settings})
    return model


def dataset(size: int = 8, **shuffle: Any) -> Any:
    rows = tf.data.Dataset.from_tensor_slices((X, Y))
    return (rows.shuffle(50, **shuffle) if shuffle else rows).batch(size).prefetch(2)


def fit(model: Any, *data: Any, **arguments: Any) -> Any:
    return model.fit(*data, **{"epochs": 3, "verbose": 0, **arguments}).history


def noisy() -> Any:
    return dataset().cache().map(lambda x, y: (x + tf.random.normal(tf.shape(x)), y))


def one_for_both(model: Any) -> Any:
    data = dataset(reshuffle_each_iteration=True)
    return fit(model, data, validation_data=data)


def several_fits(model: Any) -> Any:
    histories = [fit(model, dataset(size)) for size in (23, 8)]
    return [*histories, fit(model, X, Y), model.evaluate(dataset(), verbose=0)]


def evaluated(model: Any) -> Any:
    fit(model, X, Y, epochs=1)
    return [model.evaluate(X, Y, batch_size=8, steps=2, verbose=0), model.evaluate(dataset(), verbose=0)]


CALLS: dict[str, Callable[[Any], Any]] = {
    "batches": lambda model: fit(model, dataset(23)),
    "shuffled": lambda model: fit(model, dataset(seed=3), validation_data=(X, Y), class_weight={0: 1.0, 1: 3.0}),
    "steps_per_epoch": lambda model: fit(model, X, Y, epochs=5, batch_size=8, steps_per_epoch=4),
    "more steps than batches": lambda model: fit(model, X, Y, steps_per_epoch=9, batch_size=8),
    "validation_steps": lambda model: fit(model, X, Y, validation_split=0.3, validation_steps=2, batch_size=6),
    "one Dataset to train and validate on": one_for_both,
    "without end": lambda model: fit(
        model, dataset(seed=3).repeat(), steps_per_epoch=4, validation_data=dataset().repeat(), validation_steps=3
    ),
    "random": lambda model: fit(model, noisy(), validation_data=dataset()),
    "fewer steps than batches": lambda model: fit(model, dataset(), epochs=4, steps_per_epoch=4),
    "several": several_fits,
    "evaluate": evaluated,
    "stopped": lambda model: fit(model, dataset(), epochs=9, callbacks=[keras.callbacks.EarlyStopping("loss", 9.0)]),
}


def life(mode: FitMode, call: Callable[[Any], Any], build: Callable[[], Any] = mlp) -> tuple[Any, FitReport]:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with compiled_fit(mode) as report:
        model = build()
        found = call(model)
    variables = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    return (found, variables, [variable.numpy() for variable in model.metrics_variables]), report


def assert_as_keras(call: Callable[[Any], Any], build: Callable[[], Any] = mlp) -> None:
    expected, _ = life(FitMode.KERAS, call, build)
    found, report = life(FitMode.EXACT, call, build)
    assert (report.mode, report.fallback_reason) == (FitMode.EXACT, None)
    keras.tree.assert_same_structure(expected, found)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(one, other)


#: Trained in every run: together they have each way in which an iterator ends.
TRAINED = ("shuffled", "validation_steps", "without end", "fewer steps than batches")


@pytest.mark.parametrize(
    "name", [*TRAINED, *(pytest.param(one, marks=pytest.mark.complete) for one in CALLS if one not in TRAINED)]
)
def test_batches_of_an_iterator_are_trained_on_as_in_keras(name: str) -> None:
    assert_as_keras(CALLS[name])


@pytest.mark.parametrize("name", some_of(["without end", "steps_per_epoch", "batches"], every=3))
def test_several_batches_to_an_execution_come_out_of_an_iterator_as_in_keras(name: str) -> None:
    assert_as_keras(CALLS[name], lambda: mlp(steps_per_execution=4))


def test_an_epoch_of_an_iterator_ends_at_the_first_loss_that_is_not_finite() -> None:
    def diverge(model: Any) -> Any:
        return fit(model, dataset(), callbacks=[keras.callbacks.TerminateOnNaN()])

    assert_as_keras(diverge, lambda: mlp(optimizer=keras.optimizers.SGD(1e30)))


def test_in_xla_batches_of_an_iterator_are_trained_on_in_the_graph() -> None:
    expected, _ = life(FitMode.EXACT, CALLS["batches"])
    found, report = life(FitMode.XLA, CALLS["batches"])

    assert report.fallback_reason == "not in XLA: its batches come out of an iterator"
    assert found[0] == expected[0]


def test_a_dataset_that_computes_with_the_model_is_left_to_keras() -> None:
    model = mlp()

    with pytest.raises(NotEligibleError, match="computes with the model's variables"):
        make_stream(model, dataset().map(lambda x, y: (x + model(x), y)))


def test_a_validation_that_cannot_be_compiled_leaves_the_fit_compiled() -> None:
    def call(model: Any) -> Any:
        return fit(model, X, Y, validation_data=dataset().filter(lambda x, y: tf.reduce_any(y > 0)))

    expected, _ = life(FitMode.KERAS, call)
    found, report = life(FitMode.EXACT, call)

    assert report.mode is FitMode.EXACT
    assert report.fallback_reason == "the Dataset has no batches, or does not know how many"
    assert found[0] == expected[0]


# Callbacks before a validation


class ShiftsWeights(keras.callbacks.Callback):
    def on_test_begin(self, logs: Any = None) -> None:
        self.model.layers[-1].bias.assign_add([0.5])


@pytest.mark.parametrize("callback", some_of([keras.callbacks.SwapEMAWeights, ShiftsWeights]))
def test_a_callback_may_change_the_weights_for_a_validation(callback: type) -> None:
    def call(model: Any) -> Any:
        return fit(model, X, Y, callbacks=[callback()], validation_split=0.25, validation_freq=2)

    assert_as_keras(call, lambda: mlp(optimizer=keras.optimizers.SGD(0.1, use_ema=True)))
