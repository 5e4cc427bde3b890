"""A compiled fit that fails does so where Keras does, and leaves behind what Keras leaves."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import compiled_fit, epoch_runner
from tests.worker.as_keras import Counts, DividesByRowsButFifty, X, Y, begin, mlp


class FailsLate(layers.Layer):
    """Fails in the third epoch of four batches."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        with tf.control_dependencies([tf.debugging.assert_less(self.calls.value, 10.0)]):
            return tf.identity(inputs)


def test_a_fit_that_fails_after_the_first_epoch_fails_there_as_in_keras() -> None:
    def outcome(mode: FitMode) -> tuple[Any, list[Any], list[Any]]:
        begin()
        model, counts = mlp(FailsLate()), Counts()
        with compiled_fit(mode) as report, pytest.raises(tf.errors.InvalidArgumentError):
            model.fit(X, Y, epochs=4, batch_size=15, verbose=0, callbacks=[counts])
        return report.fallback_reason, counts.called, model.history.history["loss"]

    found = outcome(FitMode.EXACT)

    assert found == outcome(FitMode.KERAS)
    assert found[1] == ["train", 0, 1, 2]


def test_backup_and_restore_wants_a_model_that_is_built(tmp_path: Path) -> None:
    def outcome(mode: FitMode) -> tuple[str, bool]:
        begin()
        model = keras.Sequential([layers.Dense(1)])
        model.compile("sgd", "mse")
        with compiled_fit(mode), pytest.raises(ValueError, match="must be built before you call") as raised:
            model.fit(X, Y, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path))], verbose=0)
        return str(raised.value), model.built

    assert outcome(FitMode.EXACT) == outcome(FitMode.KERAS)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "metrics": ["accuracy"]},
        pytest.param({"optimizer": "sgd"}, marks=pytest.mark.complete),
    ],
    ids=["fails again", "trains"],
)
def test_fits_that_fail_leave_to_the_next_ones_what_they_leave_in_keras(settings: dict[str, Any]) -> None:
    def life(mode: FitMode) -> list[Any]:
        begin()
        model = keras.Sequential([keras.Input((8,)), layers.Dense(3, activation="softmax")])
        model.compile(loss="categorical_crossentropy", **settings)
        found: list[Any] = []
        with compiled_fit(mode):
            for y in (np.zeros(60), np.zeros((60, 2)), np.eye(3)[np.arange(60) % 3]):
                try:
                    found.append(model.fit(X, y, verbose=0).history)
                except ValueError as error:
                    found.append(str(error))
                found.append([metric.name for metric in model.metrics])
                found.append(len(model.optimizer.variables))
        return found

    assert life(FitMode.EXACT) == life(FitMode.KERAS)


def test_a_callback_that_fails_before_the_first_batch_leaves_what_it_leaves_in_keras() -> None:
    def outcome(mode: FitMode) -> Any:
        begin()
        model = mlp(optimizer="adam", metrics=["accuracy"])
        no_rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: "none")
        with compiled_fit(mode), pytest.raises(ValueError, match="should be a float"):
            model.fit(X, Y, verbose=0, callbacks=[no_rate])
        return [metric.name for metric in model.metrics], len(model.optimizer.variables), len(model.metrics_variables)

    assert outcome(FitMode.EXACT) == outcome(FitMode.KERAS)


def test_an_evaluation_that_fails_is_none_for_the_size_of_the_batches_of_the_next_one() -> None:
    def evaluated(mode: FitMode) -> Any:
        begin()
        model = mlp(layers.Dense(8), DividesByRowsButFifty())
        with compiled_fit(mode):
            with pytest.raises(ValueError, match="not fifty"):
                model.evaluate(X[:50], Y[:50], batch_size=50, verbose=0)
            return model.evaluate(X, Y, batch_size=12, verbose=0)

    assert evaluated(FitMode.EXACT) == evaluated(FitMode.KERAS)


@pytest.mark.complete
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "a program is there"])
def test_targets_of_another_shape_are_refused_in_the_next_fit_as_in_keras(is_known: bool) -> None:
    def life(mode: FitMode) -> list[Any]:
        begin()
        found: list[Any] = []
        with compiled_fit(mode):
            if is_known:
                mlp().fit(X, Y, verbose=0)
            model = mlp()
            for y in (Y[:, 0], Y, Y[:, 0]):
                try:
                    found.append(model.fit(X, y, verbose=0).history)
                except ValueError as error:
                    found.append(str(error))
        return found

    found = life(FitMode.EXACT)

    assert found == life(FitMode.KERAS)
    assert "unknown rank" in found[1]


def copies_of_weights() -> int:
    kind = type(tf.constant(0))
    return sum(type(one) is kind and one.shape == (8, 37) for one in gc.get_objects())


@pytest.mark.parametrize(
    ("max_copied_mb", "inner", "expected"),
    [(64, layers.Lambda, [1, 0, 0]), (0, layers.Lambda, [0, 0, 0]), (0, lambda _: FailsLate(), [1, 0, 0])],
    ids=["small", "large", "large, may fail"],
)
def test_weights_are_copied_for_the_first_epoch_and_where_they_are_large_only_if_it_may_fail(
    max_copied_mb: int, inner: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_runner, "MAX_COPIED_MB", max_copied_mb)
    run, n_copies = epoch_runner.EpochRunner.run, []

    def looking(self: Any, *arguments: Any, **keywords: Any) -> Any:
        n_copies.append(int(copies_of_weights() > 0))
        return run(self, *arguments, **keywords)

    monkeypatch.setattr(epoch_runner.EpochRunner, "run", looking)
    stop = keras.callbacks.EarlyStopping("loss", patience=9)
    with compiled_fit() as report:
        mlp(layers.Dense(37), inner(lambda x: x)).fit(X, Y, epochs=3, batch_size=30, verbose=0, callbacks=[stop])

    assert report.fallback_reason is None
    assert n_copies == expected


def test_a_fit_that_fails_while_it_is_traced_leaves_the_optimizer_unbuilt() -> None:
    def error(mode: FitMode) -> tuple[str, bool, int]:
        model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
        model.compile("adam", "mse")
        with compiled_fit(mode), pytest.raises(ValueError, match=r"equal|shape|broadcast") as raised:
            model.fit(X, np.zeros((60, 2)), verbose=0)
        return str(raised.value)[:60], model.optimizer.built, len(model.optimizer.variables)

    assert error(FitMode.EXACT) == error(FitMode.KERAS)
