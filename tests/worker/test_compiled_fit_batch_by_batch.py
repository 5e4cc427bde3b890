"""Callbacks at every batch see and do what they do in Keras, and equal models trace Keras' functions once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from gridfleet.worker.compiled_fit.data.keras_traces import traced_batches
from tests.worker.as_keras import begin

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 4)).astype("float32"), RNG.integers(0, 2, (24, 1)).astype("float32")
REASON = "the callback AtBatches is called at every batch"

Act = Callable[[Any], None]


class AtBatches(keras.callbacks.Callback):
    """Notes what it is told at every batch, and acts on the model at one of them."""

    def __init__(self, seen: list[Any], act: Act | None = None, *, at: tuple[str, int] = ("end", 1)) -> None:
        super().__init__()
        self.seen, self.act, self.at = seen, act, at

    def note(self, moment: str, batch: int, logs: Any) -> None:
        assert all(isinstance(value, (float, np.ndarray, tf.Tensor)) for value in (logs or {}).values())
        self.seen.append((moment, batch, {name: np.asarray(value) for name, value in (logs or {}).items()}))
        if self.act is not None and (moment, batch) == self.at:
            self.act(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.note("begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.note("end", batch, logs)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.note("test begin", batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.note("test end", batch, logs)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.note("predict end", batch, logs)


def mlp(*inner: Any, **settings: Any) -> Any:
    inner = inner or (layers.Dense(3, "silu"), layers.Dropout(0.2))
    model = keras.Sequential([keras.Input((4,)), *inner, layers.Dense(1, "sigmoid")])
    model.compile(**{"optimizer": "sgd", "loss": "binary_crossentropy", "metrics": ["accuracy"], **settings})
    return model


def fit(model: Any, *callbacks: Any, x: Any = X, y: Any = Y, **arguments: Any) -> Any:
    arguments = {"epochs": 2, "batch_size": 10, "verbose": 0, **arguments}
    history = model.fit(x, y, callbacks=list(callbacks), **arguments)
    return history.history, history.epoch


Call = Callable[[Any, list[Any]], Any]


def life(mode: FitMode, call: Call, build: Callable[[], Any]) -> tuple[Any, FitReport, Any]:
    begin()
    seen: list[Any] = []
    with compiled_fit(mode) as report:
        model = build()
        found = call(model, seen)
    variables = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    return (found, seen, variables, [one.numpy() for one in model.metrics_variables]), report, model


def assert_as_keras(call: Call, build: Callable[[], Any] = mlp, *, mode: FitMode | None = FitMode.EXACT) -> Any:
    """Compare two models, of which the second finds what the first one left; returns the second one."""
    expected, _, _ = life(FitMode.KERAS, call, build)
    model = None
    for _ in range(2):
        del model
        gc.collect()  # what is shared does not need the model that traced it
        found, report, model = life(FitMode.EXACT, call, build)
        assert mode is None or report.mode is mode
        keras.tree.assert_same_structure(expected, found)
        for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
            np.testing.assert_array_equal(one, other)
    return model


def halve(model: Any) -> None:
    model.optimizer.learning_rate = model.optimizer.learning_rate / 2


def shift(model: Any) -> None:
    model.set_weights([weight + 0.01 for weight in model.get_weights()])


def stop(model: Any) -> None:
    model.stop_training = True


def freeze(model: Any) -> None:
    model.layers[0].trainable = False


def freeze_and_trace_anew(model: Any) -> None:
    freeze(model)
    model.make_train_function(force=True)


def test_callbacks_see_each_batch_of_training_validation_evaluation_and_prediction() -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        callback = AtBatches(seen)
        history = fit(model, callback, validation_split=0.3)
        scores = model.evaluate(X, Y, batch_size=9, callbacks=[callback], verbose=0)
        return history, scores, model.predict(X, batch_size=9, callbacks=[callback], verbose=0)

    model = assert_as_keras(call)

    functions = (model.train_function, model.test_function, model.predict_function)
    assert [traced_batches(function) for function in functions] == [[], [], []]


def test_the_reason_why_python_runs_at_every_batch_is_told() -> None:
    _, report, _ = life(FitMode.XLA, lambda model, seen: fit(model, AtBatches(seen)), mlp)

    assert (report.mode, report.fallback_reason) == (FitMode.EXACT, REASON)


@pytest.mark.parametrize(
    "act",
    [stop, *(pytest.param(act, marks=pytest.mark.complete) for act in (halve, shift, freeze, freeze_and_trace_anew))],
    ids=lambda act: act.__name__,
)
def test_what_a_callback_does_between_two_batches_counts_as_in_keras(act: Act) -> None:
    assert_as_keras(lambda model, seen: fit(model, AtBatches(seen, act)))


@pytest.mark.complete
def test_what_a_callback_does_before_the_first_batch_is_traced() -> None:
    assert_as_keras(lambda model, seen: fit(model, AtBatches(seen, freeze, at=("begin", 0))))


@pytest.mark.complete
def test_callbacks_at_batches_of_a_validation_alone_leave_the_training_in_the_graph() -> None:
    class AtTestBatches(keras.callbacks.Callback):
        def __init__(self, seen: list[Any]) -> None:
            super().__init__()
            self.seen = seen

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen.append((batch, dict(logs or {})))

    model = assert_as_keras(lambda model, seen: fit(model, AtTestBatches(seen), validation_data=(X, Y)))

    assert traced_batches(model.test_function) == []


def test_fits_with_and_without_such_callbacks_go_on_with_one_step() -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        callback = AtBatches(seen)
        return [
            fit(model, x=X[:20], y=Y[:20]),
            fit(model, callback, batch_size=8),  # another size: any number of rows from now on
            fit(model, batch_size=8),
            fit(model, callback, x=X[:20], y=Y[:20]),
            model.evaluate(X, Y, verbose=0),
        ]

    assert_as_keras(call)


@pytest.mark.complete
def test_several_batches_to_an_execution_end_at_the_last_one() -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        return fit(model, AtBatches(seen), keras.callbacks.TerminateOnNaN(), batch_size=5)

    assert_as_keras(call, lambda: mlp(steps_per_execution=3, optimizer=keras.optimizers.SGD(1e30)))


def batches() -> Iterator[tuple[Any, Any]]:
    while True:
        for first in (0, 8, 16):
            yield X[first : first + 8], Y[first : first + 8]


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return X[number * 8 :][:8], Y[number * 8 :][:8]


def filtered() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: tf.reduce_any(y > 0))


@pytest.mark.complete
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (batches, "the data are no arrays"),
        (Batches, "the data are no arrays"),
        (filtered, "the Dataset has no batches, or does not know how many"),
    ],
    ids=["generator", "PyDataset", "Dataset of unknown length"],
)
def test_batches_that_python_hands_over_are_trained_on_with_a_shared_step(make: Callable[[], Any], reason: str) -> None:
    def call(model: Any, _: list[Any]) -> Any:
        steps = {"steps_per_epoch": 3} if make is batches else {}
        history = fit(model, x=make(), y=None, batch_size=None, validation_data=(X, Y), **steps)
        return history, model.evaluate(make(), verbose=0, steps=3 if make is batches else None)

    model = assert_as_keras(call)

    assert [traced_batches(function) for function in (model.train_function, model.test_function)] == [[], []]
    _, report, _ = life(FitMode.EXACT, call, mlp)
    assert str(report.fallback_reason).startswith(reason)


@pytest.mark.complete
def test_a_dataset_is_predicted_with_a_shared_function() -> None:
    def call(model: Any, _: list[Any]) -> Any:
        return model.predict(tf.data.Dataset.from_tensor_slices(X).batch(7), verbose=0)

    expected, _, _ = life(FitMode.KERAS, call, mlp)
    for _ in range(2):
        found, _, model = life(FitMode.EXACT, call, mlp)
        np.testing.assert_array_equal(found[0], expected[0])
    assert traced_batches(model.predict_function) == []


@pytest.mark.complete
@pytest.mark.parametrize("kind", ["a lambda", "a list of Keras' own kind"])
def test_callbacks_of_keras_own_kinds_are_called_at_every_batch(kind: str) -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        if kind == "a lambda":
            callback = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(batch))
            return fit(model, callback)
        callbacks = keras.callbacks.CallbackList([AtBatches(seen)], add_history=True, model=model)
        return model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks).history

    assert traced_batches(assert_as_keras(call).train_function) == []


class Noise(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))


@pytest.mark.complete
@pytest.mark.parametrize(
    "inner",
    [lambda: layers.Lambda(lambda x: x / 3), lambda: layers.Dense(3, activation=lambda x: x / 3), Noise],
    ids=["lambda", "own activation", "random numbers by their place in the graph"],
)
def test_a_model_that_its_config_does_not_tell_is_traced_by_keras(inner: Callable[[], Any]) -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        return fit(model, AtBatches(seen), epochs=1)

    assert_as_keras(call, lambda: mlp(inner()), mode=FitMode.KERAS)


def test_what_fails_leaves_the_model_as_keras_does() -> None:
    def call(model: Any, seen: list[Any]) -> Any:
        def fails(_: Any) -> None:
            raise ValueError("no more")

        def attempt(*callbacks: Any, **data: Any) -> Any:
            try:
                return fit(model, *callbacks, **data)
            except Exception as error:
                return str(error)[:80]

        return [
            attempt(AtBatches(seen), x=X[:, :3]),
            attempt(AtBatches(seen, fails)),
            attempt(AtBatches(seen)),
            attempt(),
        ]

    assert_as_keras(call, mode=None)
