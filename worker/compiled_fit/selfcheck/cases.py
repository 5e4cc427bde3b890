"""What `selfcheck` trains: families of models, optimizers, and options of ``fit``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gridfleet.storage.fit_mode import FitMode

#: Rows to train on and, the last of them, to validate on; both end with a batch that is shorter than the others.
N_ROWS, N_VALIDATION_ROWS = 60, 20
#: Divides `N_ROWS`. Keras' graph knows the size of such batches, and TensorFlow divides by known sizes in another
#: way; where it is a power of two, both ways give the same.
BATCH_SIZE_WITHOUT_REMAINDER = 12
#: Larger than the data.
LARGE_BATCH_SIZE = 100
#: What XLA may differ by, relative to the value where that is more than one.
XLA_TOLERANCE = 2e-6
#: The same for Ftrl, whose variables named "linear" add up terms divided by the learning rate of 0.001, and so what
#: their rounding leaves (1.5e-5 at most was seen, in no other variable), and for weights of 16 bits.
XLA_TOLERANCE_OF_FTRL, XLA_TOLERANCE_OF_FLOAT16 = 2e-5, 1e-3
#: The same after a BatchNormalization. The bias before it has no gradient but rounding noise, which optimizers that
#: divide by a gradient's size make steps of; Lion's are whole ones, of its learning rate of 0.001.
XLA_TOLERANCE_OF_NOISE = {"adam": 3e-4, "adamw": 3e-4, "nadam": 3e-3, "ftrl": 3e-4, "lion": 3e-2}
#: Learning rate after whose first step no loss is finite.
EXPLODING = 1e30

layers = keras.layers


@dataclass(frozen=True)
class Data:
    """Arrays of equally many rows.

    Parameters
    ----------
    x, y : ndarray or dict of ndarray
        As for Keras' ``fit``.
    """

    x: Any
    y: Any

    def rows(self, first: int, last: int) -> Data:
        """Return the rows from `first` to before `last`."""
        return Data(*keras.tree.map_structure(lambda array: array[first:last], (self.x, self.y)))

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return len(keras.tree.flatten(self.x)[0])


@dataclass(frozen=True)
class Family:
    """A kind of model, with data for it.

    Parameters
    ----------
    name : str
        As for ``--family``.
    build : callable
        Returns a model that is not compiled.
    draw : callable
        Returns as many rows as asked for, from a generator.
    compile_arguments : mapping
        Loss, metrics and the like.
    takes_class_weight : bool, default=True
        False for models with several outputs, where Keras refuses ``class_weight``.
    xla_tolerance : mapping of str to float, default={}
        What XLA may differ by with an optimizer, where that is more than `XLA_TOLERANCE`.
    """

    name: str
    build: Callable[[], Any]
    draw: Callable[[np.random.Generator, int], Data]
    compile_arguments: Mapping[str, Any]
    takes_class_weight: bool = True
    xla_tolerance: Mapping[str, float] = field(default_factory=dict)


def _nothing(_data: Data, _folder: Path) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Option:
    """A way to call ``compile`` and ``fit``.

    Parameters
    ----------
    name : str
        As in the table.
    fit_arguments : callable
        Returns arguments of ``fit``, from the data and an empty folder for files.
    compile_arguments : mapping
        Arguments of ``compile``.
    optimizer_arguments : callable
        Returns arguments of the optimizer.
    build : callable or None, default=None
        Builds the model in place of the family.
    policy : str, default="float32"
        Keras' dtype policy.
    runs_in_xla : bool, default=True
        False where mode ``xla`` trains as ``exact`` does.
    xla_tolerance : float, default=XLA_TOLERANCE
        What XLA may differ by at least.
    known_fallback : str or None, default=None
        How the reason begins for which ``predict`` runs as Keras runs it, if it has to.
    """

    name: str
    fit_arguments: Callable[[Data, Path], dict[str, Any]] = _nothing
    compile_arguments: Mapping[str, Any] = field(default_factory=dict)
    optimizer_arguments: Callable[[], dict[str, Any]] = dict
    build: Callable[[], Any] | None = None
    policy: str = "float32"
    runs_in_xla: bool = True
    xla_tolerance: float = XLA_TOLERANCE
    known_fallback: str | None = None


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Parameters
    ----------
    family : Family
    optimizer : str
        A key of `OPTIMIZERS`.
    option : Option
    """

    family: Family
    optimizer: str
    option: Option

    def __str__(self) -> str:
        return f"{self.family.name}-{self.optimizer}-{self.option.name}"

    def tolerance(self, mode: FitMode) -> float:
        """Return the difference to Keras' own result that is in order."""
        if mode is FitMode.EXACT:
            return 0.0
        of_optimizer = XLA_TOLERANCE_OF_FTRL if self.optimizer == "ftrl" else XLA_TOLERANCE
        return max(of_optimizer, self.family.xla_tolerance.get(self.optimizer, 0.0), self.option.xla_tolerance)


# Families


def _features(*shape: int) -> Callable[[np.random.Generator, int], Data]:
    """Return a drawer of normal features of a shape, with a binary target."""

    def draw(generator: np.random.Generator, n_rows: int) -> Data:
        x = generator.normal(size=(n_rows, *shape)).astype("float32")
        return Data(x, (x.reshape(n_rows, -1)[:, 0] > 0).astype("int64"))

    return draw


def _words(generator: np.random.Generator, n_rows: int) -> Data:
    x = generator.integers(0, 20, size=(n_rows, 6))
    return Data(x, x[:, :1] % 2)


def _classes(generator: np.random.Generator, n_rows: int) -> Data:
    data = _features(8)(generator, n_rows)
    return Data(data.x, data.x[:, :3].argmax(axis=1))


def _amounts(generator: np.random.Generator, n_rows: int) -> Data:
    data = _features(8)(generator, n_rows)
    return Data(data.x.astype("float64"), data.x[:, 0] - data.x[:, 1])


def _several(generator: np.random.Generator, n_rows: int) -> Data:
    classes = _classes(generator, n_rows)
    x = {"left": classes.x[:, :4], "right": classes.x[:, 4:]}
    return Data(x, {"amount": classes.x[:, 5:6], "kind": classes.y})


def _binary(*hidden: Any) -> Any:
    return keras.Sequential([*hidden, layers.Dense(1, activation="sigmoid")])


def _mlp() -> Any:
    return _binary(layers.Input((8,)), layers.Dense(12, activation="relu"))


def _unbuilt() -> Any:
    return _binary(layers.Dense(12, activation="relu"))


def _l2() -> Any:
    return _binary(
        layers.Input((8,)), layers.Dense(12, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1))
    )


def _normalized() -> Any:
    return _binary(
        layers.Input((8,)), layers.Dense(12), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3)
    )


def _conv1d() -> Any:
    return _binary(
        layers.Input((10, 3)), layers.Conv1D(4, 3, activation="relu"), layers.MaxPooling1D(), layers.Flatten()
    )


def _conv2d() -> Any:
    return _binary(
        layers.Input((6, 6, 1)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()
    )


def _lstm() -> Any:
    return _binary(layers.Input((5, 3)), layers.LSTM(4))


def _gru() -> Any:
    return _binary(layers.Input((5, 3)), layers.GRU(4, dropout=0.2))


def _embedding() -> Any:
    return _binary(layers.Input((6,)), layers.Embedding(20, 4), layers.GlobalAveragePooling1D())


def _multi_class() -> Any:
    return keras.Sequential(
        [layers.Input((8,)), layers.Dense(12, activation="tanh"), layers.Dense(3, activation="softmax")]
    )


def _regression() -> Any:
    return keras.Sequential([layers.Input((8,)), layers.Dense(12, activation="elu"), layers.Dense(1)])


def _several_outputs() -> Any:
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    both = layers.Concatenate()([layers.Dense(6, activation="relu")(left), layers.Dense(6, activation="tanh")(right)])
    outputs = {"amount": layers.Dense(1)(both), "kind": layers.Dense(3, activation="softmax")(both)}
    return keras.Model({"left": left, "right": right}, outputs)


class OwnTrainStep(keras.Model):
    """A model that trains in its own way, as Keras' guide shows it."""

    def train_step(self, data: Any) -> Any:
        """Take a step on a loss of its own."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted, sample_weight) + 0.1 * tf.reduce_mean(tf.square(predicted))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, predicted, sample_weight)
        return self.get_metrics_result()


def _own_train_step() -> Any:
    inputs = layers.Input((8,))
    hidden = layers.Dropout(0.2)(layers.Dense(12, activation="relu")(inputs))
    return OwnTrainStep(inputs, layers.Dense(1, activation="sigmoid")(hidden))


_BINARY = {"loss": "binary_crossentropy", "metrics": ["accuracy"]}

#: The kinds of models that people tune, small.
FAMILIES = (
    Family("mlp", _mlp, _features(8), _BINARY),
    Family("batch_normalization", _normalized, _features(8), _BINARY, xla_tolerance=XLA_TOLERANCE_OF_NOISE),
    Family("conv1d", _conv1d, _features(10, 3), _BINARY),
    Family("conv2d", _conv2d, _features(6, 6, 1), _BINARY),
    Family("lstm", _lstm, _features(5, 3), _BINARY),
    Family("gru", _gru, _features(5, 3), _BINARY),
    Family("embedding", _embedding, _words, {**_BINARY, "metrics": ["accuracy", "auc"]}),
    Family("multi_class", _multi_class, _classes, {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}),
    Family("regression", _regression, _amounts, {"loss": "mse", "metrics": ["mae"], "weighted_metrics": ["mse"]}),
    Family(
        "multi_output",
        _several_outputs,
        _several,
        {
            "loss": {"amount": "mse", "kind": "sparse_categorical_crossentropy"},
            "loss_weights": {"amount": 0.5, "kind": 2.0},
            "metrics": {"amount": ["mae"], "kind": ["accuracy"]},
        },
        takes_class_weight=False,
    ),
    Family("unbuilt", _unbuilt, _features(8), _BINARY),
    Family("own_train_step", _own_train_step, _features(8), _BINARY),
)

#: Makers of optimizers, by name.
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "adagrad": keras.optimizers.Adagrad,
    "nadam": keras.optimizers.Nadam,
    "lion": keras.optimizers.Lion,
    "ftrl": keras.optimizers.Ftrl,
}

# Options


def _fixed(**arguments: Any) -> Callable[[Data, Path], dict[str, Any]]:
    return lambda _data, _folder: dict(arguments)


def _validated(data: Data, _folder: Path, **arguments: Any) -> dict[str, Any]:
    held_out = data.rows(data.n_rows - N_VALIDATION_ROWS, data.n_rows)
    return {"validation_data": (held_out.x, held_out.y), **arguments}


def _weighted(data: Data, _folder: Path) -> dict[str, Any]:
    weights = np.linspace(0.1, 2, data.n_rows).astype("float32")
    return {"sample_weight": keras.tree.map_structure(lambda _: weights, data.y)}


def _calling(*makers: Callable[[Path], Any]) -> Callable[[Data, Path], dict[str, Any]]:
    """Return arguments with new callbacks and a validation for them to look at."""
    return lambda data, folder: _validated(data, folder, callbacks=[make(folder) for make in makers])


def _early_stopping(_folder: Path) -> Any:
    # the loss falls, so the first epoch is the best one, and its weights come back
    return keras.callbacks.EarlyStopping("val_loss", mode="max", patience=1, restore_best_weights=True)


def _reduce_lr_on_plateau(_folder: Path) -> Any:
    return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)


def _learning_rate_scheduler(_folder: Path) -> Any:
    return keras.callbacks.LearningRateScheduler(lambda epoch, learning_rate: learning_rate / (1 + epoch))


def _terminate_on_nan(_folder: Path) -> Any:
    return keras.callbacks.TerminateOnNaN()


def _csv_logger(folder: Path) -> Any:
    return keras.callbacks.CSVLogger(str(folder / "log.csv"))


def _model_checkpoint(folder: Path) -> Any:
    return keras.callbacks.ModelCheckpoint(str(folder / "{epoch:02d}.weights.h5"), save_weights_only=True)


def _lambda_callback(_folder: Path) -> Any:
    def note(*told: Any) -> None:
        sys.stdout.write(f"{[sorted(one) if isinstance(one, dict) else one for one in told]}\n")

    return keras.callbacks.LambdaCallback(
        on_epoch_begin=note, on_epoch_end=note, on_train_begin=note, on_train_end=note
    )


class StopsBeforeAnEpoch(keras.callbacks.Callback):
    """Stops at the beginning of the second epoch, of which Keras trains one batch then."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stop."""
        if epoch == 1:
            self.model.stop_training = True


def _stops_before_an_epoch(_folder: Path) -> Any:
    return StopsBeforeAnEpoch()


def _exponential_decay() -> dict[str, Any]:
    return {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.05, decay_steps=3, decay_rate=0.5)}


#: Ways to hand data to ``fit``, tried with every family and optimizer.
DATA_OPTIONS = (
    Option("remainder"),  # as in all that follow but the next one
    Option("plain", _fixed(batch_size=BATCH_SIZE_WITHOUT_REMAINDER)),
    Option("validation_split", _fixed(validation_split=0.25)),
    Option("validation_data", partial(_validated, validation_freq=2)),
    Option("class_weight", _fixed(class_weight={0: 0.5, 1: 3.0})),
    Option("sample_weight", _weighted),
    Option("large_batch", _fixed(batch_size=LARGE_BATCH_SIZE), runs_in_xla=False),
    Option("no_shuffle", _fixed(shuffle=False)),
    Option("shuffle_batch", _fixed(shuffle="batch")),
)
#: What else ``compile`` and ``fit`` take, tried with one family.
OTHER_OPTIONS = (
    Option("early_stopping", _calling(_early_stopping)),
    Option("reduce_lr_on_plateau", _calling(_reduce_lr_on_plateau)),
    Option("learning_rate_scheduler", _calling(_learning_rate_scheduler)),
    Option("terminate_on_nan", _calling(_terminate_on_nan), runs_in_xla=False),
    Option(
        "terminated_on_nan",
        _calling(_terminate_on_nan),
        optimizer_arguments=lambda: {"learning_rate": EXPLODING},
        runs_in_xla=False,
    ),
    Option("stops_before_epoch", _calling(_stops_before_an_epoch)),
    Option("csv_logger", _calling(_csv_logger)),
    Option("model_checkpoint", _calling(_model_checkpoint)),
    Option("lambda_callback", _calling(_lambda_callback)),
    Option("callbacks", _calling(_reduce_lr_on_plateau, _learning_rate_scheduler, _csv_logger, _early_stopping)),
    Option("clipnorm", optimizer_arguments=lambda: {"clipnorm": 0.01}),
    Option("global_clipnorm", optimizer_arguments=lambda: {"global_clipnorm": 0.01}),
    Option("clipvalue", optimizer_arguments=lambda: {"clipvalue": 0.001}),
    Option("use_ema", optimizer_arguments=lambda: {"use_ema": True}),
    Option("ema_overwrites", optimizer_arguments=lambda: {"use_ema": True, "ema_overwrite_frequency": 3}),
    Option("gradient_accumulation", optimizer_arguments=lambda: {"gradient_accumulation_steps": 3}),
    Option("learning_rate_schedule", optimizer_arguments=_exponential_decay),
    Option("l2", _fixed(validation_split=0.25), build=_l2),
    Option(
        "mixed_float16",
        _fixed(validation_split=0.25),
        policy="mixed_float16",
        xla_tolerance=XLA_TOLERANCE_OF_FLOAT16,
    ),
    Option("jit_compile", compile_arguments={"jit_compile": True}, runs_in_xla=False),
    Option(
        "steps_per_execution",
        _fixed(batch_size=7),
        compile_arguments={"steps_per_execution": 4},
        known_fallback="steps_per_execution",
    ),
    Option("verbose", _fixed(validation_split=0.25, verbose=2)),
    Option("initial_epoch", _fixed(initial_epoch=1)),
)
#: The family that `OTHER_OPTIONS` are tried with, and the optimizer.
OTHER_FAMILY, OTHER_OPTIMIZER = FAMILIES[0], "adam"


def data_cases() -> list[Case]:
    """Return all families, each with all optimizers and all of `DATA_OPTIONS`."""
    cases = itertools.starmap(Case, itertools.product(FAMILIES, OPTIMIZERS, DATA_OPTIONS))
    return [case for case in cases if _keras_takes(case)]


def quick_data_cases() -> list[Case]:
    """Return cases that cover each family with each optimizer, and each family with each of `DATA_OPTIONS`.

    The remainder is part of most of these options, and has no case of its own where there are enough others.
    """
    names, cases = list(OPTIMIZERS), []
    for shift, family in enumerate(FAMILIES):
        options = [option for option in DATA_OPTIONS if _keras_takes(Case(family, names[0], option))]
        cases += [
            Case(family, names[(place + shift) % len(names)], option)
            for place, option in enumerate(options[-len(names) :])
        ]
    return cases


def other_cases() -> list[Case]:
    """Return a case for each of `OTHER_OPTIONS`."""
    return [Case(OTHER_FAMILY, OTHER_OPTIMIZER, option) for option in OTHER_OPTIONS]


def _keras_takes(case: Case) -> bool:
    return case.family.takes_class_weight or case.option.name != "class_weight"


# Trainings
