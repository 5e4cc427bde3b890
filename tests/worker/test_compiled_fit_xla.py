"""When XLA compiles a fit, what it refuses, and how it generates code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context
from tensorflow.python.framework import config
from tensorflow.python.ops import gen_stateless_random_ops_v2 as random_ops

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import FitReport, compiled_fit, scope
from gridfleet.worker.compiled_fit.errors import XLA_IN_WORDS
from gridfleet.worker.compiled_fit.patches.code_generator import HAVE_OLDER_CODE_GENERATOR, older_code_generator
from gridfleet.worker.compiled_fit.patches.random_numbers import same_random_numbers
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache
from gridfleet.worker.compiled_fit.xla_policy import SURE_STEPS
from tests.thinning import some_of

FLAG = "--xla_cpu_use_fusion_emitters"


class Decomposes(layers.Layer):
    """Computes what TensorFlow has and XLA has not."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.stop_gradient(tf.linalg.lu(tf.matmul(inputs, inputs, transpose_a=True))[0][0])


def pooling() -> list[layers.Layer]:
    return [layers.Conv1D(2, 3), layers.MaxPooling1D(), layers.Flatten()]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What scikeras asks of TensorFlow for an estimator with a random_state."""
    was_deterministic = config.is_op_determinism_enabled()
    config.enable_op_determinism()
    yield
    if not was_deterministic:
        config.disable_op_determinism()


def fit_in(
    mode: FitMode,
    build: Callable[[], list[layers.Layer]],
    *,
    shape: tuple[int, ...] = (8,),
    epochs: int = 2,
    n_fits: int = 1,
) -> tuple[FitReport, list[Any]]:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Input(shape), *build(), layers.Dense(1)])
    model.compile("sgd", "mse")
    X, y = np.random.default_rng(0).normal(size=(40, *shape)).astype("float32"), np.arange(40) % 2
    with compiled_fit(mode, n_fits=n_fits) as report:
        model.fit(X, y, epochs=epochs, batch_size=20, verbose=0)
    return report, model.get_weights()


@pytest.mark.usefixtures("deterministic")
def test_max_pooling_that_has_to_be_deterministic_is_not_tried_in_xla() -> None:
    report, weights = fit_in(FitMode.XLA, pooling, shape=(8, 2))

    assert report.modes == [FitMode.EXACT]
    assert report.fallback_reason == "not in XLA: XLA has no deterministic MaxPoolGrad"
    assert report.compile_time == 0
    _, expected = fit_in(FitMode.KERAS, pooling, shape=(8, 2))
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", some_of([FitMode.XLA, FitMode.AUTO]))
def test_convolutions_are_left_to_the_graph_as_exact_trains_them(mode: FitMode) -> None:
    def build() -> list[layers.Layer]:
        return [layers.Conv1D(2, 3), layers.Flatten()]

    n_programs = len(scope.programs)
    report, weights = fit_in(mode, build, shape=(8, 2), epochs=3)

    assert report.modes == [FitMode.EXACT]
    assert report.compile_time == 0
    assert len(scope.programs) <= n_programs + 1  # none that is traced for XLA
    expected = "not in XLA: XLA's convolutions are slower on a CPU" if mode is FitMode.XLA else None
    assert report.fallback_reason == expected
    for one, other in zip(weights, fit_in(FitMode.KERAS, build, shape=(8, 2), epochs=3)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_xla_has_not_is_named_and_the_time_of_trying_is_reported() -> None:
    report, _ = fit_in(FitMode.XLA, lambda: [Decomposes()])

    assert report.modes == [FitMode.EXACT]
    assert report.fallback_reason is not None
    assert "Lu" in report.fallback_reason, report.fallback_reason
    assert report.compile_time > 0


def test_auto_compiles_a_long_training_and_not_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "programs", ProgramCache())
    short, _ = fit_in(FitMode.AUTO, lambda: [layers.Dense(4)], epochs=20)
    n_programs = len(scope.programs)  # of the short one
    long, _ = fit_in(FitMode.AUTO, lambda: [layers.Dense(5)], epochs=20, n_fits=SURE_STEPS // 40 + 1)

    assert (short.modes, long.modes) == ([FitMode.EXACT], [FitMode.XLA])
    assert len(scope.programs) == n_programs + 1  # none for the graph, where it is sure


def test_auto_does_not_compile_for_epochs_that_are_planned_and_never_come() -> None:
    x, y = np.ones((512, 4)), np.ones(512)
    with compiled_fit(FitMode.AUTO) as report:
        for _ in range(3):
            model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
            model.compile("sgd", "mse")
            stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
            model.fit(x, y, epochs=4000, batch_size=16, verbose=0, callbacks=[stop])

    assert report.modes == [FitMode.EXACT] * 3
    assert report.compile_time == 0


@pytest.mark.skipif(
    not tf.__version__.startswith(HAVE_OLDER_CODE_GENERATOR), reason="this TensorFlow's flags are not known"
)
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, f"{FLAG}=false"),
        ("", f"{FLAG}=false"),
        ("--xla_cpu_max_isa=AVX2", f"--xla_cpu_max_isa=AVX2 {FLAG}=false"),
        (f"{FLAG}=true", f"{FLAG}=true"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_the_users_flags_for_xla_stay(flags: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)

    with older_code_generator():
        found = os.environ["XLA_FLAGS"]

    assert found == expected
    assert os.environ.get("XLA_FLAGS") == flags


def test_the_flags_of_another_tensorflow_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf, "__version__", "2.99.0")
    monkeypatch.delenv("XLA_FLAGS", raising=False)

    with older_code_generator():
        assert "XLA_FLAGS" not in os.environ


# What XLA would not notice


def embedding(*, largest: int) -> tuple[Any, Any, Any]:
    model = keras.Sequential([layers.Input((3,)), layers.Embedding(5, 2), layers.Flatten(), layers.Dense(1)])
    model.compile("sgd", "mse")
    X = np.arange(120).reshape(40, 3) % 5
    X[-1, -1] = largest
    return model, X, np.arange(40) % 2


def classes(*, largest: int) -> tuple[Any, Any, Any]:
    model = keras.Sequential([layers.Input((3,)), layers.Dense(5, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    y = np.arange(40) % 5
    y[-1] = largest
    return model, np.arange(120).reshape(40, 3) / 100, y


@pytest.mark.parametrize("make", [embedding, classes])
def test_an_index_out_of_range_fails_in_xla_as_in_keras(make: Callable[..., Any]) -> None:
    model, X, y = make(largest=5)

    with compiled_fit(FitMode.XLA), pytest.raises(tf.errors.InvalidArgumentError, match=r"not in|outside"):
        model.fit(X, y, epochs=3, batch_size=16, verbose=0)


@pytest.mark.parametrize("make", some_of([embedding, classes]))
def test_indices_in_range_are_trained_in_xla(make: Callable[..., Any]) -> None:
    model, X, y = make(largest=4)

    with compiled_fit(FitMode.XLA) as report:
        model.fit(X, y, epochs=3, batch_size=16, verbose=0)

    assert (report.mode, report.fallback_reason) == (FitMode.XLA, None)


# What trains as `exact` does, is traced as there


class Checked(layers.Layer):
    """Fails at a number that is not finite, which XLA does not look at."""

    def call(self, inputs: Any) -> Any:
        return tf.debugging.check_numerics(inputs, "not finite")


class Inverts(layers.Layer):
    """Fails at a matrix without an inverse, of which XLA makes NaN."""

    def call(self, inputs: Any) -> Any:
        square = tf.matmul(inputs, inputs, transpose_a=True) + tf.eye(8)
        return tf.matmul(inputs, tf.linalg.inv(square))


class Scatters(layers.Layer):
    """Fails at an index out of range, which XLA leaves out."""

    def call(self, inputs: Any) -> Any:
        places = tf.range(tf.shape(inputs)[0])[:, None]
        return inputs + tf.scatter_nd(places, inputs, tf.shape(inputs))


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (lambda: [layers.ReLU()], "the data are not finite"),
        (lambda: [Checked()], "CheckNumerics"),
        pytest.param(lambda: [Inverts()], "MatrixInverse", marks=pytest.mark.complete),
        pytest.param(lambda: [Scatters()], "ScatterNd", marks=pytest.mark.complete),
        (list, "jit_compile"),
    ],
)
def test_what_xla_makes_another_result_of_trains_as_exact_does(
    inner: Callable[[], list[layers.Layer]], reason: str
) -> None:
    def outcome(mode: FitMode) -> tuple[FitReport, Any]:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([layers.Input((8,)), *inner(), layers.Dropout(0.3), layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=reason == "jit_compile")
        X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
        if "data" in reason:
            X[3, 3] = np.nan
        with compiled_fit(mode) as report:
            history = model.fit(X, np.arange(40) % 2, epochs=2, batch_size=20, verbose=0).history
        return report, (history, model.get_weights())

    report, found = outcome(FitMode.XLA)

    assert report.modes == [FitMode.EXACT]
    assert reason in str(report.fallback_reason)
    np.testing.assert_equal(found, outcome(FitMode.KERAS)[1])


def test_the_sums_of_each_outputs_loss_are_those_of_keras() -> None:
    def outcome(mode: FitMode) -> tuple[FitReport, list[Any]]:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        inputs = layers.Input((8,))
        model = keras.Model(inputs, [layers.Dense(1, name="one")(inputs), layers.Dense(2, name="other")(inputs)])
        model.compile("sgd", ["mse", "mae"])
        X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
        with compiled_fit(mode) as report:
            model.fit(X, [X[:, :1], X[:, 1:3]], epochs=2, batch_size=16, verbose=0)
        return report, [keras.ops.convert_to_numpy(one) for one in model.metrics_variables]

    report, found = outcome(FitMode.XLA)

    assert (report.modes, report.fallback_reason) == ([FitMode.XLA], None)
    for one, other in zip(found, outcome(FitMode.KERAS)[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.complete
def test_the_reason_why_a_recurrent_layer_behind_an_embedding_is_not_compiled_is_in_words() -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Input((5,)), layers.Embedding(9, 4), layers.LSTM(3), layers.Dense(1)])
    model.compile("sgd", "mse")

    with compiled_fit("xla") as report:
        model.fit(np.arange(100).reshape(20, 5) % 9, np.arange(20) % 2, epochs=3, batch_size=8, verbose=0)

    assert report.modes == [FitMode.EXACT]
    assert str(report.fallback_reason).endswith(f"not in XLA: {XLA_IN_WORDS['TensorList']}")


def test_random_numbers_are_patched_until_the_last_of_two_blocks_ends() -> None:
    original = random_ops.stateless_random_uniform_v2
    first, second = ExitStack(), ExitStack()

    first.enter_context(same_random_numbers())
    second.enter_context(same_random_numbers())
    first.close()
    assert random_ops.stateless_random_uniform_v2 is not original
    second.close()

    assert random_ops.stateless_random_uniform_v2 is original


def test_a_fit_in_xla_leaves_tensorflows_optimizations_of_other_functions_on() -> None:
    before = context.context().function_call_options.config_proto_serialized
    report, _ = fit_in(FitMode.XLA, lambda: [layers.Dense(4)])
    assert report.modes == [FitMode.XLA], report.fallback_reason
    assert context.context().function_call_options.config_proto_serialized == before
