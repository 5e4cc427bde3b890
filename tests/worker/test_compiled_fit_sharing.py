"""Which models share a program: equal structures do, look-alikes never, and what each gets is Keras' own result."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gridfleet.worker.compiled_fit import compiled_fit, scope
from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache
from gridfleet.worker.compiled_fit.sharing.structure import structure_of
from tests.thinning import some_of
from tests.worker.look_alikes import LOOK_ALIKES, Scaled, X, Y, loss_times, model_with, nested


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProgramCache]:
    cache = ProgramCache()
    monkeypatch.setattr(scope, "programs", cache)
    yield cache
    keras.config.set_dtype_policy("float32")


def trained(
    build: Callable[[], Any], mode: str, *, seed: int = 1, rows: int = 50, predicts: bool = False, **arguments: Any
) -> list[Any]:
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(seed)
    with compiled_fit(mode) as report:
        model = build()
        arguments = {"batch_size": 8, "epochs": 2, "verbose": 0, **arguments}
        history = model.fit(X[:rows], Y[:rows], **arguments).history
        predicted = model.predict(X, verbose=0) if predicts else []
    assert report.fallback_reason is None
    names = [list(results) for results in (history, predicted) if isinstance(results, dict)]
    return [*model.get_weights(), *history.values(), *keras.tree.flatten(predicted), *names]


def evaluated(build: Callable[[], Any], mode: str) -> list[Any]:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with compiled_fit(mode) as report:
        results = build().evaluate(X, Y, verbose=0, return_dict=True)
    assert report.fallback_reason is None
    return [*results.values(), list(results)]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def structure(build: Callable[[], Any]) -> str | None:
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(1)
    model = build()
    if not model.built:
        model.build((None, 6))
    return structure_of(model, trains=True)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called on layer")
@pytest.mark.parametrize("difference", LOOK_ALIKES)
def test_look_alikes_are_not_of_one_structure(difference: str) -> None:
    first, second = map(structure, LOOK_ALIKES[difference])

    assert first is None or first != second  # None: no other model shares its programs


#: Trained in every run, for that all are of different structures is tested above; training each takes seconds.
TRAINED = ("activation", "a method of one model")


@pytest.mark.parametrize(
    "difference",
    [*TRAINED, *(pytest.param(one, marks=pytest.mark.complete) for one in LOOK_ALIKES if one not in TRAINED)],
)
def test_look_alikes_do_not_share_a_program(difference: str) -> None:
    first, second = LOOK_ALIKES[difference]

    predicts = difference == TRAINED[0]
    trained(first, "exact", predicts=predicts)

    assert_equal(trained(second, "exact", predicts=predicts), trained(second, "keras", predicts=predicts))


@pytest.mark.parametrize(
    "difference",
    some_of(
        ["a metric's name", "activation", "a function named like an activation", "delta of a loss", "order of weights"],
        every=3,
    ),
)
def test_look_alikes_are_evaluated_by_programs_of_their_own(difference: str) -> None:
    first, second = LOOK_ALIKES[difference]

    evaluated(first, "exact")

    assert_equal(evaluated(second, "exact"), evaluated(second, "keras"))


@pytest.mark.parametrize(
    ("build", "other"),
    some_of(
        [
            (lambda: model_with(layers.Dense(4), layers.Dropout(0.5, seed=9)), {"seed": 2, "rows": 49, "epochs": 5}),
            (lambda: model_with(layers.Dense(4)), {"seed": 2}),
            (lambda: model_with(layers.Dense(4)), {"epochs": 5}),
            (lambda: model_with(Scaled(2.0)), {"seed": 2}),
            (lambda: model_with(layers.Dense(4)), {"rows": 49}),
            (lambda: model_with(layers.Dense(4), optimizer=keras.optimizers.Adam(0.1)), {}),
        ],
        every=6,
    ),
)
def test_models_of_one_structure_share_their_programs(
    build: Callable[[], Any], other: dict[str, int], programs: ProgramCache
) -> None:
    expected = trained(build, "keras", predicts=True, **other)
    trained(build, "exact", predicts=True)
    n_programs = len(programs)

    assert_equal(trained(build, "exact", predicts=True, **other), expected)

    assert len(programs) == n_programs == 2  # one to train, one to predict


def test_another_learning_rate_shares_the_program(programs: ProgramCache) -> None:
    for rate in (0.001, 0.01, 0.1):
        trained(lambda rate=rate: model_with(layers.Dense(4), optimizer=keras.optimizers.SGD(rate)), "exact")

    assert len(programs) == 1


def test_a_model_inside_another_one_needs_no_trace_to_be_known() -> None:
    first, second = structure(nested), structure(nested)

    assert first is not None
    assert first == second
    assert_equal(trained(nested, "exact"), trained(nested, "keras"))


def test_predictions_share_a_program_whatever_was_compiled(programs: ProgramCache) -> None:
    def predicted(mode: str, **settings: Any) -> Any:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = model_with(layers.Dense(4), **settings)
        with compiled_fit(mode):
            return model.predict(X, verbose=0)

    expected = predicted("keras")

    for settings in ({}, {"loss": "mse"}, {"loss": loss_times(3.0)}, {"optimizer": "sgd"}):
        assert np.array_equal(predicted("exact", **settings), expected)

    assert len(programs) == 1
    assert programs.n_dropped == 0


@pytest.mark.parametrize(
    ("sizes", "n_programs"), some_of([((40, 7, 8, 32, 1), 3), ((1, 2, 5, 40, 33), 3), ((7, 39, 8), 3)], every=3)
)
def test_predictions_of_any_number_of_rows_take_as_few_programs_as_keras_takes_graphs(
    sizes: tuple[int, ...], n_programs: int, programs: ProgramCache
) -> None:
    def predicted(mode: str) -> list[Any]:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = model_with(layers.Dense(4, activation="silu"))
        with compiled_fit(mode):
            return [model.predict(X[:size], verbose=0) for size in sizes]

    assert_equal(predicted("exact"), predicted("keras"))
    assert len(programs) == n_programs


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("epochs", some_of([[1, 3, 1], [3, 1], [1, 1, 12]], every=3))
def test_fits_of_one_epoch_and_of_more_go_on_from_each_other(
    epochs: list[int], listens: bool, programs: ProgramCache
) -> None:
    def fitted(mode: str) -> list[Any]:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = model_with(layers.Dense(4))
        histories = []
        with compiled_fit(mode) as report:
            for number, some in enumerate(epochs):
                # a callback of the second fit has its epochs run one by one
                callbacks = [keras.callbacks.EarlyStopping("loss")] if listens and number == 1 else []
                settings = {"validation_data": (X[40:], Y[40:]), "callbacks": callbacks}
                histories += model.fit(
                    X[:40], Y[:40], batch_size=7, epochs=some, verbose=0, **settings
                ).history.values()
        assert report.fallback_reason is None
        return [*model.get_weights(), *histories]

    assert_equal(fitted("exact"), fitted("keras"))
    assert len(programs) == 1


def test_the_longest_unused_program_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ProgramCache(max_programs=2)
    for key in "abac":
        if cache.get(key) is None:
            cache.put(key, object())

    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert (len(cache), cache.n_dropped) == (2, 1)


def test_a_program_that_went_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ProgramCache(max_programs=1)
    monkeypatch.setattr(scope, "programs", cache)

    def build(width: int) -> Any:
        return model_with(layers.Dense(width))

    first, _, again = [trained(partial(build, width), "exact") for width in (3, 4, 3)]

    assert_equal(again, first)
    assert (len(cache), cache.n_dropped) == (1, 2)


def test_a_program_outlives_the_data_that_it_was_made_with() -> None:
    trained(lambda: model_with(layers.Dense(4)), "exact")
    gc.collect()

    kept = [one for one in gc.get_objects() if type(one) is type(tf.constant(0)) and tuple(one.shape) == X.shape]

    assert kept == []


def test_a_seed_starts_random_operations_anew_though_kernels_are_kept() -> None:
    def drawn() -> list[Any]:
        tf.random.set_seed(4)
        draws = tf.function(lambda: tf.random.uniform((3,)))
        return [tf.random.uniform((3,)).numpy(), draws().numpy(), draws().numpy()]

    expected = drawn()

    with kept_kernels():
        for _ in range(3):
            assert_equal(drawn(), expected)


def test_a_seed_starts_functions_anew_that_were_traced_before_it() -> None:
    draws = tf.function(lambda: tf.random.uniform((3,)))

    def drawn() -> Any:
        keras.utils.set_random_seed(4)
        return draws().numpy()

    with kept_kernels():
        first = drawn()

        assert_equal([drawn() for _ in range(3)], [first] * 3)


class Noise(layers.Layer):
    """Draws random numbers in TensorFlow's own way, with a generator inside the operation."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))


def test_a_model_with_a_generator_in_its_graph_draws_what_it_draws_in_keras_after_each_seed() -> None:
    def losses() -> list[float]:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = model_with(Noise())
        found = []
        for _ in range(3):
            keras.utils.set_random_seed(2)
            found += model.fit(X, Y, batch_size=8, epochs=2, verbose=0).history["loss"]
        return found

    expected = losses()

    with compiled_fit() as report:
        assert losses() == expected

    assert report.mode == "keras"


class Shuffles(layers.Layer):
    """Draws numbers that no program may, and counts how often it is traced."""

    n_calls = 0

    def call(self, inputs: Any) -> Any:
        type(self).n_calls += 1
        return tf.random.shuffle(inputs)


def test_that_there_is_no_program_for_a_model_is_found_out_once() -> None:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)  # without it nobody could tell
    model = model_with(Shuffles())
    model.fit(X, Y, verbose=0)  # Keras has traced what it needs
    with compiled_fit() as report:
        model.fit(X, Y, verbose=0)
        n_calls = Shuffles.n_calls
        for _ in range(3):
            model.fit(X, Y, verbose=0)

    assert Shuffles.n_calls == n_calls
    assert report.modes == ["keras"] * 4
    assert report.fallback_reason == "the model draws random numbers with TensorFlow's stateful RandomShuffle"


def test_that_there_is_no_program_for_a_structure_is_found_out_once(programs: ProgramCache) -> None:
    found = []
    for _ in range(2):
        keras.utils.clear_session(free_memory=False)
        model = model_with(layers.Dense(4, activation="silu"), loss="dice", steps_per_execution=2)
        n_programs = len(programs)
        with compiled_fit() as report:
            model.fit(X, Y, verbose=0)
        found.append((report.fallback_reason, len(programs) - n_programs))

    assert found[0][0] == found[1][0] == "with steps_per_execution, silu beside a constant that is added to a sum"
    assert [grown for _, grown in found] == [1, 0]


# Loops that are traced later, with another model than the steps


def test_a_program_learns_to_watch_for_nan_with_another_model(programs: ProgramCache) -> None:
    def build() -> Any:
        return model_with(layers.Dense(4), layers.Dropout(0.1))

    def watching() -> dict[str, Any]:
        return {"callbacks": [keras.callbacks.TerminateOnNaN()], "seed": 2}

    expected = trained(build, "keras", **watching())
    trained(build, "exact")

    for _ in range(2):
        assert_equal(trained(build, "exact", **watching()), expected)

    assert len(programs) == 1


@pytest.mark.complete
def test_a_program_learns_another_batch_size_in_xla_with_another_model(programs: ProgramCache) -> None:
    def build() -> Any:
        return model_with(layers.Dense(4), layers.Dropout(0.1), optimizer="sgd")

    expected = trained(build, "keras", seed=2, batch_size=12)
    trained(build, "xla", batch_size=8)

    found = trained(build, "xla", seed=2, batch_size=12)

    for one, other in zip(found[:-1], expected[:-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert len(programs) == 1
