"""What can't be compiled runs as Keras runs it, with the reason and Keras' own result; and nothing stays patched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from tensorflow.python.eager import context
from tensorflow.python.framework import random_seed
from tensorflow.python.ops import gen_stateless_random_ops_v2

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit
from gridfleet.worker.compiled_fit.programs.train import TrainProgram
from tests.thinning import some_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype("float32"), RNG.integers(0, 2, 40)
#: Seconds after which a test gives up on another thread.
PATIENCE_S = 60


def mlp(*inner: Any, kind: Any = keras.Sequential, **settings: Any) -> Any:
    model = kind([layers.Input((4,)), *inner, layers.Dense(3, activation="relu"), layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **settings})
    return model


def fit(model: Any, *data: Any, **arguments: Any) -> Any:
    return model.fit(*(data or (X, Y)), **{"epochs": 2, "verbose": 0, "batch_size": 16, **arguments})


def fit_elsewhere(model: Any, data: Any, **arguments: Any) -> Any:
    return fit(model, data, batch_size=None, **arguments)


def dataset() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


class OwnTrainFunction(keras.Sequential):
    def make_train_function(self, force: bool = False) -> None:
        super().make_train_function(force)
        once = self.train_function
        self.train_function = lambda iterator: once(iterator) and once(iterator)


class Rows(keras.Sequential):
    """Returns a value for each row with its logs."""

    def train_step(self, data: Any) -> Any:
        return {**super().train_step(data), "rows": self(data[0])}


class Noise(layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))


class FailsOnce(layers.Layer):
    """Fails at one batch and never again, as a machine does that is short of memory for a moment."""

    def __init__(self, at_batch: int) -> None:
        super().__init__()
        self.batches_to_go = at_batch

    def call(self, inputs: Any) -> Any:
        passed = tf.grad_pass_through(lambda x: tf.numpy_function(self._pass, [x], tf.float32))(inputs)
        passed.set_shape(inputs.shape)
        return passed

    def _pass(self, inputs: Any) -> Any:
        self.batches_to_go -= 1
        if self.batches_to_go == 0:
            raise MemoryError("just now")
        return inputs


def of_words() -> Any:
    words = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = keras.Sequential([layers.Input((1,), dtype="string"), words, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def of_two_outputs() -> Any:
    inputs = layers.Input((4,))
    model = keras.Model(inputs, [layers.Dense(1, name="one")(inputs), layers.Dense(1, name="other")(inputs)])
    model.compile("sgd", ["mse", None])
    return model


def with_own_train_function() -> Any:
    model = mlp()
    own = keras.Model.make_train_function
    model.make_train_function = lambda force=False: own(model, force)
    return model


@contextmanager
def distributed() -> Iterator[None]:
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        yield


@contextmanager
def eager() -> Iterator[None]:
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextmanager
def capped() -> Iterator[None]:
    keras.config.set_max_epochs(2)
    try:
        yield
    finally:
        keras.config.set_max_epochs(None)


@dataclass(frozen=True)
class Refusal:
    """A training that can't be compiled.

    Parameters
    ----------
    reason : str
        A part of what is to be reported.
    fit : callable, default=fit
        Trains a model.
    build : callable, default=mlp
        Returns a compiled model.
    around : callable, default=nullcontext
        Returns a context to build and train in.
    """

    reason: str
    fit: Callable[[Any], Any] = fit
    build: Callable[[], Any] = mlp
    around: Callable[[], Any] = nullcontext


REFUSALS = {
    "a Dataset of sparse rows": Refusal(
        "a batch of the Dataset has a part that is no dense tensor",
        lambda model: fit_elsewhere(model, dataset().map(lambda x, y: (tf.sparse.from_dense(x), y))),
    ),
    "a sparse tensor": Refusal(
        "the data are sparse or ragged", lambda model: fit(model, tf.sparse.from_dense(X), Y, shuffle=False)
    ),
    "a sparse matrix": Refusal(
        "the data are sparse or ragged", lambda model: fit(model, scipy.sparse.csr_matrix(X), Y, shuffle=False)
    ),
    "strings": Refusal(
        "the data are objects or strings", lambda model: fit(model, tf.constant([["a"], ["b"]] * 20), Y), of_words
    ),
    "no target for an output": Refusal(
        "a part of the data is None", lambda model: fit(model, X, [Y, None]), of_two_outputs
    ),
    "run_eagerly": Refusal("the model runs eagerly", build=lambda: mlp(run_eagerly=True)),
    "functions that run eagerly": Refusal("the model runs eagerly", around=eager),
    "a distribution strategy": Refusal("a distribution strategy is in use", around=distributed),
    "a cap on epochs": Refusal("KERAS_MAX_EPOCHS", around=capped),
    "a loop of its own": Refusal(
        "OwnTrainFunction overrides make_train_function", build=lambda: mlp(kind=OwnTrainFunction)
    ),
    "a loop of one model's own": Refusal("Sequential overrides make_train_function", build=with_own_train_function),
    "silu and dice in several steps": Refusal(
        "silu beside a constant that is added to a sum",
        build=lambda: mlp(layers.Dense(3, "silu"), loss="dice", steps_per_execution=2),
    ),
    "a result for each row": Refusal("neither a number nor an array of a known shape", build=lambda: mlp(kind=Rows)),
    "random numbers by their place in the graph": Refusal("stateful RandomUniform", build=lambda: mlp(Noise())),
}


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the variables' values, the History, and how it ran."""

    variables: list[Any]
    history: dict[str, list[float]]
    report: FitReport


def trained(refusal: Refusal, mode: FitMode | None) -> Trained:
    keras.utils.clear_session(free_memory=False)
    with nullcontext(FitReport()) if mode is None else compiled_fit(mode) as report, refusal.around():
        keras.utils.set_random_seed(1)
        model = refusal.build()
        history = refusal.fit(model).history
    variables = [*model.variables, *model.optimizer.variables]
    return Trained([keras.ops.convert_to_numpy(variable) for variable in variables], history, report)


def assert_equal(found: Trained, expected: Trained) -> None:
    assert len(found.variables) == len(expected.variables)
    for one, other in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(found.history) == list(expected.history)
    np.testing.assert_equal(found.history, expected.history)


@pytest.mark.parametrize("name", some_of(REFUSALS, every=4))
def test_what_cannot_be_compiled_is_trained_by_keras_and_the_reason_is_reported(name: str) -> None:
    refusal = REFUSALS[name]

    found = trained(refusal, FitMode.EXACT)

    assert found.report.modes == [FitMode.KERAS]
    assert refusal.reason in found.report.fallback_reason
    assert_equal(found, trained(refusal, None))


@pytest.mark.parametrize("mode", some_of([FitMode.EXACT, FitMode.AUTO, FitMode.XLA], every=3))
def test_a_failure_inside_a_program_leaves_no_trace_in_the_result(mode: FitMode) -> None:
    at_the_second_batch = Refusal("just now", build=lambda: mlp(FailsOnce(2), layers.Dropout(0.2)))
    never = Refusal("", build=lambda: mlp(FailsOnce(-1), layers.Dropout(0.2)))

    found = trained(at_the_second_batch, mode)

    assert found.report.modes == [FitMode.KERAS]
    assert "the program failed with" in found.report.fallback_reason
    assert_equal(found, trained(never, None))


@pytest.mark.parametrize("mode", some_of([FitMode.EXACT, FitMode.KERAS]))
def test_the_mode_is_reported_without_a_reason_where_nothing_went_wrong(mode: FitMode) -> None:
    found = trained(Refusal("", lambda model: fit(model, validation_split=0.25)), mode)

    assert (found.report.modes, found.report.fallback_reason) == ([mode], None)


def test_predict_and_evaluate_fall_back_by_themselves() -> None:
    model = mlp()
    data = scipy.sparse.csr_matrix(X)
    expected = model.predict(data, verbose=0), model.evaluate(data, Y, verbose=0)

    with compiled_fit() as report:
        found = model.predict(data, verbose=0), model.evaluate(data, Y, verbose=0)

    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert (report.mode, report.fallback_reason) == (None, "the data are sparse or ragged")


# A user's own errors


@pytest.mark.parametrize(
    "error",
    some_of(
        [tf.errors.InternalError(None, None, "mine"), ValueError("mine"), KeyboardInterrupt(), RuntimeError("mine")]
    ),
)
def test_a_callbacks_own_exception_reaches_the_user(error: BaseException) -> None:
    epochs = []

    class Raises(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            epochs.append(epoch)
            if epoch == 1:
                raise error

    with compiled_fit() as report, pytest.raises(type(error)) as raised:
        fit(mlp(), callbacks=[Raises()])

    assert raised.value is error
    assert epochs == [0, 1]  # and Keras' own fit did not start over
    assert report.fallback_reason is None


def test_terminate_on_nan_may_raise() -> None:
    def diverge(model: Any) -> Any:
        return fit(model, callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)])

    with compiled_fit() as report, pytest.raises(RuntimeError, match="NaN or Inf loss encountered at batch"):
        diverge(mlp(optimizer=keras.optimizers.SGD(1e30)))

    assert report.fallback_reason is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"y": Y[:7]},
        {"x": X[:, :3]},
        {"x": X.tolist()},
        {"epoch": 3},
        {"sample_weight": np.ones(7)},
        {"class_weight": [1, 2]},
    ],
)
def test_keras_says_what_is_wrong_with_a_call(arguments: dict[str, Any]) -> None:
    def message() -> str:
        with pytest.raises(Exception, match=r"(?s).") as raised:
            mlp().fit(**{"x": X, "y": Y, "verbose": 0, **arguments})
        return f"{type(raised.value)} {str(raised.value)[:60]}"

    expected = message()

    with compiled_fit():
        assert message() == expected


# Nothing stays behind


def patchable() -> list[Any]:
    return [
        *(vars(TensorFlowTrainer)[name] for name in ("fit", "evaluate", "predict")),
        context.Context._set_global_seed,
        random_seed.get_seed,
        gen_stateless_random_ops_v2.stateless_random_uniform_v2,
    ]


@pytest.mark.parametrize("mode", some_of(FitMode, every=4))
def test_nothing_stays_patched_after_a_block(mode: FitMode) -> None:
    before = patchable()

    with compiled_fit(mode):
        fit(mlp(layers.Dropout(0.2)))

    assert patchable() == before


def test_nothing_stays_patched_after_a_block_that_raises_or_lies_in_another() -> None:
    before = patchable()

    with pytest.raises(LookupError), compiled_fit(), compiled_fit("xla"):
        raise LookupError

    assert patchable() == before


def test_an_inner_block_reports_for_itself() -> None:
    with compiled_fit() as outer:
        with compiled_fit("keras") as inner:
            fit(mlp())
        fit(mlp())

    assert (inner.modes, outer.modes) == ([FitMode.KERAS], [FitMode.EXACT])


# Threads


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_other_threads_train_as_keras_does_while_a_block_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Any] = []
    monkeypatch.setattr(TrainProgram, "__init__", lambda self, *_args, **_keywords: programs.append(self))
    histories: list[Any] = []

    with compiled_fit() as report:
        thread = in_thread(lambda: histories.append(fit(mlp()).history))
        thread.join(PATIENCE_S)

    assert len(histories[0]["loss"]) == 2
    assert (report.modes, programs) == ([], [])


def test_blocks_of_two_threads_may_overlap_and_end_in_any_order() -> None:
    before = patchable()
    is_first_open, is_second_open, is_first_closed = threading.Event(), threading.Event(), threading.Event()
    reports: list[FitReport] = []

    def second() -> None:
        is_first_open.wait(PATIENCE_S)
        with compiled_fit() as report:
            is_second_open.set()
            is_first_closed.wait(PATIENCE_S)
            fit(mlp())
            reports.append(report)

    thread = in_thread(second)
    with compiled_fit() as first:
        is_first_open.set()
        is_second_open.wait(PATIENCE_S)
        fit(mlp())
    is_first_closed.set()
    thread.join(PATIENCE_S)

    assert (first.modes, reports[0].modes) == ([FitMode.EXACT], [FitMode.EXACT])
    assert patchable() == before
