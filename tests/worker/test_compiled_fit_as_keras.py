"""What callbacks, metrics and models of one's own see and do in a compiled fit is what they see and do in Keras'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import compiled_fit, releases
from tests.thinning import some_of
from tests.worker.as_keras import At, Counts, DividesByRowsButFifty, X, Y, assert_as_keras, begin, mlp, trained

# Callbacks


def freeze(model: Any) -> None:
    model.layers[0].trainable = False


def drop_more(model: Any) -> None:
    model.layers[1].rate = 0.7


def evaluate(model: Any) -> None:
    model.evaluate(X[:20], Y[:20], verbose=0)


def stop(model: Any) -> None:
    model.stop_training = True


def go_on(model: Any) -> None:
    model.stop_training = False


@pytest.mark.parametrize(
    ("act", "method"),
    [
        (freeze, "on_train_begin"),
        pytest.param(freeze, "on_epoch_begin", marks=pytest.mark.complete),
        *(
            pytest.param(drop_more, method, marks=pytest.mark.complete)
            for method in ("on_train_begin", "on_epoch_begin")
        ),
    ],
)
def test_what_a_callback_changes_before_the_first_batch_counts(act: Callable[[Any], None], method: str) -> None:
    assert_as_keras(mlp, callbacks=lambda: [At(method, act)])


def unfreeze(model: Any) -> None:
    model.layers[0].trainable = True


def frozen(**settings: Any) -> Any:
    dense = layers.Dense(4)
    dense.trainable = False
    return mlp(dense, **settings)


def test_a_callback_may_unfreeze_a_layer_before_the_first_batch() -> None:
    assert_as_keras(frozen, callbacks=lambda: [At("on_train_begin", unfreeze)])


def test_averages_are_of_what_is_trained() -> None:
    def build() -> Any:
        return mlp(layers.Dense(4), optimizer=keras.optimizers.SGD(use_ema=True))

    assert_as_keras(build, callbacks=lambda: [At("on_train_begin", freeze)])


class Shuffles(layers.Layer):
    """Draws stateful random numbers, which no program may."""

    def call(self, inputs: Any) -> Any:
        return tf.random.shuffle(inputs)


def test_callbacks_are_told_once_where_keras_takes_over_after_they_began() -> None:
    counts = Counts()

    _, report = trained(FitMode.EXACT, lambda: mlp(Shuffles()), callbacks=lambda: [counts])

    assert report.mode is FitMode.KERAS
    assert counts.called == ["train", 0, 1, 2]


def test_what_a_callback_changes_after_an_epoch_stays_out_of_programs_in_xla() -> None:
    def losses(mode: FitMode, callbacks: list[Any]) -> Any:
        begin()
        model = keras.Sequential(
            [keras.Input((3, 1)), layers.Dropout(0.1), layers.SimpleRNN(2), layers.Dense(2, activation="softmax")]
        )
        model.compile("sgd", "sparse_categorical_crossentropy")
        with compiled_fit(mode) as report:
            history = model.fit(X[:, :3, None], Y, epochs=3, batch_size=16, verbose=0, callbacks=callbacks)
        assert report.mode is mode
        return history.history["loss"]

    def rate(model: Any) -> None:
        model.layers[0].rate = 0.9

    expected = losses(FitMode.KERAS, [])

    for callbacks in ([At("on_epoch_end", rate)], []):
        assert losses(FitMode.XLA, callbacks) == pytest.approx(expected, rel=1e-5)


def test_a_callback_may_evaluate_before_an_epoch() -> None:
    assert_as_keras(mlp, callbacks=lambda: [At("on_epoch_begin", evaluate)])


def test_a_stop_that_is_taken_back_shortens_one_epoch() -> None:
    assert_as_keras(mlp, callbacks=lambda: [At("on_epoch_begin", stop, epoch=1), At("on_epoch_end", go_on)], epochs=5)


def test_a_seed_that_a_callback_sets_does_not_change_the_order_of_rows() -> None:
    assert_as_keras(
        lambda: mlp(layers.Dense(4)),
        callbacks=lambda: [At("on_train_begin", lambda _: keras.utils.set_random_seed(9))],
    )


class StopsAfterTwo(keras.callbacks.History):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.model.stop_training = epoch == 1


def test_a_history_of_ones_own_is_told_of_each_epoch() -> None:
    assert_as_keras(mlp, callbacks=lambda: [StopsAfterTwo()], epochs=6)


def test_a_callback_may_stop_an_evaluation() -> None:
    class Stops(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            self.model.stop_evaluating = True

    def evaluated(mode: FitMode) -> Any:
        keras.utils.set_random_seed(1)
        model = mlp()
        with compiled_fit(mode):
            return model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[Stops()])

    assert evaluated(FitMode.EXACT) == evaluated(FitMode.KERAS)


# Metrics


def f1() -> Any:
    return keras.metrics.F1Score(average="macro", threshold=0.5)


@pytest.mark.parametrize(
    "metrics",
    some_of(
        [
            lambda: [f1(), keras.metrics.Precision()],
            lambda: [f1(), "accuracy"],
            lambda: [keras.metrics.Recall(), f1(), keras.metrics.Precision()],
            lambda: [keras.metrics.R2Score(), "mse"],
            lambda: [keras.metrics.AUC(multi_label=True, num_labels=1), "accuracy"],
        ],
        every=5,
    ),
    ids=["before another", "before a mean", "between others", "r2", "auc"],
)
def test_metrics_that_make_their_variables_late_are_told_apart_from_others(metrics: Callable[[], list[Any]]) -> None:
    assert_as_keras(lambda: mlp(metrics=metrics()), validation_split=0.3)


# Models


class OnlyInTraining(keras.Model):
    """Uses a layer in training that it does not use otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.helper, self.out = layers.Dense(4), layers.Dense(4), layers.Dense(1, activation="sigmoid")

    def call(self, inputs: Any, training: bool = False) -> Any:
        hidden = self.hidden(inputs)
        return self.out(hidden + self.helper(hidden) if training else hidden)


class MoreInTraining(keras.Model):
    """Has an output in training that it has not otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.helper = layers.Dense(1), layers.Dense(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        out, helper = self.out(inputs), self.helper(inputs)
        return (out, helper) if training else out


def of_kind(kind: type, **settings: Any) -> Any:
    model = kind()
    model.compile(optimizer="sgd", **settings)
    return model


def test_a_layer_that_is_used_in_training_only_is_trained() -> None:
    assert_as_keras(lambda: of_kind(OnlyInTraining, loss="binary_crossentropy"))


def test_a_model_may_have_more_outputs_in_training() -> None:
    def fitted(mode: FitMode) -> Any:
        begin()
        model = of_kind(MoreInTraining, loss=["mse", "mae"])
        with compiled_fit(mode) as report:
            history = model.fit(X, (Y, Y), epochs=2, verbose=0).history
        assert report.mode is mode
        return history, [weight.tolist() for weight in model.get_weights()]

    assert fitted(FitMode.EXACT) == fitted(FitMode.KERAS)


def test_an_output_may_have_a_name_in_a_dict() -> None:
    def build() -> Any:
        inputs = keras.Input((8,))
        model = keras.Model(inputs, {"out": layers.Dense(1, activation="sigmoid")(inputs)})
        model.compile(optimizer="sgd", loss={"out": "binary_crossentropy"}, metrics={"out": ["mae"]})
        return model

    assert_as_keras(build, y={"out": Y})


# Several fits of one model


def fitted_twice(mode: FitMode, *sizes: int, compiles: bool = False) -> Any:
    begin()
    model = mlp(layers.Dense(5, activation="relu"), DividesByRowsButFifty())
    results = []
    with compiled_fit(mode) as report:
        for size in sizes:
            results.append(model.fit(X, Y, batch_size=size, epochs=3, verbose=0).history)
            results.append(model.evaluate(X, Y, batch_size=size, verbose=0))
            if compiles:
                model.compile("sgd", "binary_crossentropy")
    assert report.mode is mode
    return results, [weight.tolist() for weight in model.get_weights()]


@pytest.mark.parametrize(
    ("sizes", "compiles"),
    [
        ((12, 15, 12), False),
        *(
            pytest.param(sizes, compiles, marks=pytest.mark.complete)
            for sizes, compiles in (((14, 10, 12), False), ((12, 15, 12), True), ((14, 10, 12), True))
        ),
    ],
)
def test_a_second_fit_has_batches_of_another_size(sizes: tuple[int, ...], compiles: bool) -> None:
    found = fitted_twice(FitMode.EXACT, *sizes, compiles=compiles)

    assert found == fitted_twice(FitMode.KERAS, *sizes, compiles=compiles)


def test_a_layer_that_is_unfrozen_after_the_first_fit_is_not_trained_as_in_keras() -> None:
    def fitted(mode: FitMode) -> Any:
        begin()
        model = frozen()
        with compiled_fit(mode) as report:
            for _ in range(2):
                history = model.fit(X, Y, epochs=2, verbose=0).history
                unfreeze(model)
        assert (report.modes, report.fallback_reason) == ([mode, mode], None)
        return history, [weight.tolist() for weight in model.get_weights()]

    assert fitted(FitMode.EXACT) == fitted(FitMode.KERAS)


@pytest.mark.parametrize(
    ("by_keras", "activation"),
    [
        ((True, False), "silu"),
        *(
            pytest.param(by_keras, activation, marks=pytest.mark.complete)
            for by_keras, activation in (((False, True), "tanh"), ((True, False), "tanh"), ((False, True), "silu"))
        ),
    ],
)
def test_a_fit_goes_on_with_the_step_of_the_one_before_whichever_of_them_keras_runs(
    by_keras: tuple[bool, bool], activation: str
) -> None:
    def fitted(mode: FitMode) -> Any:
        begin()
        model, results = mlp(layers.Dense(5, activation=activation)), []
        with compiled_fit(mode) as report:
            for size, is_run_by_keras in zip((16, 12), by_keras, strict=True):
                keras.config.set_max_epochs(100 if is_run_by_keras else None)  # no program runs under it
                try:
                    results.append(model.fit(X, Y, epochs=3, batch_size=size, verbose=0).history)
                    results.append(model.evaluate(X, Y, batch_size=size, verbose=0))
                    results.append(model.predict(X, batch_size=size, verbose=0).tolist())
                finally:
                    keras.config.set_max_epochs(None)
                freeze(model)
        assert report.modes == [FitMode.KERAS if is_run_by_keras else mode for is_run_by_keras in by_keras]
        return results, [weight.tolist() for weight in model.get_weights()]

    assert fitted(FitMode.EXACT) == fitted(FitMode.KERAS)


def test_an_evaluation_leaves_the_optimizer_alone() -> None:
    def life(mode: FitMode) -> Any:
        begin()
        model = frozen(optimizer="adam")
        with compiled_fit(mode) as report:
            evaluated = model.evaluate(X, Y, verbose=0)
            n_variables = len(model.optimizer.variables)
            unfreeze(model)
            history = model.fit(X, Y, epochs=2, verbose=0).history
        assert (report.mode, report.fallback_reason) == (mode, None)
        return evaluated, n_variables, history, [weight.tolist() for weight in model.get_weights()]

    found = life(FitMode.EXACT)

    assert found == life(FitMode.KERAS)
    assert found[1] == 2  # iterations and learning rate


def test_an_optimizer_is_of_one_model() -> None:
    with compiled_fit():
        optimizer = keras.optimizers.Adam()
        mlp(optimizer=optimizer).fit(X, Y, verbose=0)
        with pytest.raises(ValueError, match="Unknown variable"):
            mlp(optimizer=optimizer).fit(X, Y, verbose=0)


def freeze_and_trace_anew(model: Any) -> None:
    freeze(model)
    model.make_train_function(force=True)


def test_a_callback_may_have_the_step_made_anew_and_keras_goes_on_from_there() -> None:
    counts = Counts()

    expected, _ = trained(
        FitMode.KERAS, mlp, callbacks=lambda: [At("on_epoch_end", freeze_and_trace_anew, 1)], epochs=4
    )
    found, report = trained(
        FitMode.EXACT, mlp, callbacks=lambda: [At("on_epoch_end", freeze_and_trace_anew, 1), counts], epochs=4
    )

    assert report.fallback_reason == "a callback made the model's train_function anew"
    assert counts.called == ["train", 0, 1, 2, 3]
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_callback_that_takes_the_step_away_ends_the_fit_as_in_keras() -> None:
    def take_away(model: Any) -> None:
        model.train_function = None

    def outcome(mode: FitMode) -> tuple[str, list[Any], list[float]]:
        begin()
        model, counts = mlp(), Counts()
        with compiled_fit(mode), pytest.raises(TypeError) as raised:
            model.fit(X, Y, epochs=3, verbose=0, callbacks=[At("on_epoch_end", take_away, 1), counts])
        return str(raised.value), counts.called, model.history.history["loss"]

    assert outcome(FitMode.EXACT) == outcome(FitMode.KERAS)


def test_a_learning_rate_schedule_that_comes_too_late_changes_nothing_as_in_keras() -> None:
    def schedule(model: Any) -> None:
        model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)

    assert_as_keras(mlp, callbacks=lambda: [At("on_epoch_end", schedule, 0)])


def test_metrics_that_models_share_begin_with_the_sums_of_the_model_before_as_in_keras() -> None:
    def histories(mode: FitMode) -> list[Any]:
        begin()
        shared = [keras.metrics.Recall(name="recall"), keras.metrics.MeanAbsoluteError(name="mae")]
        with compiled_fit(mode) as report:
            found = [mlp(metrics=shared).fit(X, Y, epochs=2, verbose=0).history for _ in range(2)]
            found.append(mlp(metrics=shared).evaluate(X, Y, verbose=0))
        assert (report.mode, report.fallback_reason) == (mode, None)
        return found

    assert histories(FitMode.EXACT) == histories(FitMode.KERAS)


# Arguments


@pytest.mark.parametrize("batch_size", some_of([np.int64(16), np.int32(16)]))
def test_a_batch_size_may_be_numpys(batch_size: Any) -> None:
    assert_as_keras(mlp, batch_size=batch_size)


@pytest.mark.complete
@pytest.mark.filterwarnings("ignore::UserWarning")  # a list, where one array was expected
@pytest.mark.parametrize("kind", [list, tuple])
def test_data_may_be_a_list_of_arrays(kind: Callable[[Any], Any]) -> None:
    assert_as_keras(mlp, x=kind([X]), y=kind([Y]))


def test_a_column_may_be_named_dtype() -> None:
    assert_as_keras(mlp, x=pd.DataFrame(X, columns=["dtype", *"abcdefg"]))


def test_an_empty_validation_is_none() -> None:
    assert_as_keras(mlp, mode=None, validation_data=(X[:0], Y[:0]))


def test_no_epochs_make_no_variables() -> None:
    def outcome(mode: FitMode) -> tuple[int, dict[str, Any]]:
        model = mlp(optimizer="adam")
        with compiled_fit(mode):
            history = model.fit(X, Y, epochs=0, verbose=0).history
        return len(model.optimizer.variables), history

    assert outcome(FitMode.EXACT) == outcome(FitMode.KERAS)


# Releases


def test_a_release_that_was_not_tested_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keras, "__version__", "3.99.1")
    monkeypatch.setattr(releases.logger, "propagate", True)

    for mode in (FitMode.KERAS, FitMode.EXACT, FitMode.EXACT):
        with compiled_fit(mode):
            pass

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "compiled training was not tested with keras 3.99.1"
    ]


def test_the_releases_that_are_installed_are_tested() -> None:
    for library in (keras, tf):
        assert library.__version__.startswith(releases.TESTED_RELEASES[library.__name__])
