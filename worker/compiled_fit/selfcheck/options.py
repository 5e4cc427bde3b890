"""The ways to call ``compile`` and ``fit`` that the self-check tries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gridfleet.worker.compiled_fit.selfcheck.families import Data, binary_classifier, layers
from gridfleet.worker.compiled_fit.selfcheck.tolerances import XLA_TOLERANCE, XLA_TOLERANCE_OF_FLOAT16
from gridfleet.worker.compiled_fit.types import Callback, Model

#: Rows to train on and, the last of them, to validate on; both end with a batch that is shorter than the others.
N_ROWS, N_VALIDATION_ROWS = 60, 20
#: Divides `N_ROWS`. Keras' graph knows the size of such batches, and TensorFlow divides by known sizes in another
#: way; where it is a power of two, both ways give the same.
BATCH_SIZE_WITHOUT_REMAINDER = 12
#: Larger than the data.
LARGE_BATCH_SIZE = 100
#: Learning rate after whose first step no loss is finite.
EXPLODING = 1e30


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
    compile_arguments : mapping or callable
        Arguments of ``compile``, or what makes them anew.
    optimizer_arguments : callable
        Returns arguments of the optimizer.
    build : callable or None, default=None
        Builds the model in place of the family.
    policy : str, default="float32"
        Keras' dtype policy.
    runs_in_xla : bool, default=True
        False where mode ``xla`` trains as ``exact`` does.
    runs_by_keras : bool, default=False
        True where Keras' own loop has to go on with the training.
    xla_tolerance : float, default=XLA_TOLERANCE
        What XLA may differ by at least.
    known_fallback : str or None, default=None
        How the reason begins for which ``predict`` runs as Keras runs it, if it has to.
    """

    name: str
    fit_arguments: Callable[[Data, Path], dict[str, Any]] = _nothing
    compile_arguments: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    optimizer_arguments: Callable[[], dict[str, Any]] = dict
    build: Callable[[], Model] | None = None
    policy: str = "float32"
    runs_in_xla: bool = True
    runs_by_keras: bool = False
    xla_tolerance: float = XLA_TOLERANCE
    known_fallback: str | None = None


def _l2() -> Model:
    return binary_classifier(
        layers.Input((8,)), layers.Dense(12, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1))
    )


def _fixed(**arguments: Any) -> Callable[[Data, Path], dict[str, Any]]:
    return lambda _data, _folder: dict(arguments)


def _validated(data: Data, _folder: Path, **arguments: Any) -> dict[str, Any]:
    held_out = data.rows(data.n_rows - N_VALIDATION_ROWS, data.n_rows)
    return {"validation_data": (held_out.x, held_out.y), **arguments}


def _weighted(data: Data, _folder: Path) -> dict[str, Any]:
    weights = np.linspace(0.1, 2, data.n_rows).astype("float32")
    return {"sample_weight": keras.tree.map_structure(lambda _: weights, data.y)}


def _calling(*makers: Callable[[Path], Callback]) -> Callable[[Data, Path], dict[str, Any]]:
    """Return arguments with new callbacks and a validation for them to look at."""
    return lambda data, folder: _validated(data, folder, callbacks=[make(folder) for make in makers])


def _early_stopping(_folder: Path) -> Callback:
    # the loss falls, so the first epoch is the best one, and its weights come back
    return keras.callbacks.EarlyStopping("val_loss", mode="max", patience=1, restore_best_weights=True)


def _reduce_lr_on_plateau(_folder: Path) -> Callback:
    return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)


def _learning_rate_scheduler(_folder: Path) -> Callback:
    return keras.callbacks.LearningRateScheduler(lambda epoch, learning_rate: learning_rate / (1 + epoch))


def _terminate_on_nan(_folder: Path) -> Callback:
    return keras.callbacks.TerminateOnNaN()


def _csv_logger(folder: Path) -> Callback:
    return keras.callbacks.CSVLogger(str(folder / "log.csv"))


def _model_checkpoint(folder: Path) -> Callback:
    return keras.callbacks.ModelCheckpoint(str(folder / "{epoch:02d}.weights.h5"), save_weights_only=True)


def _lambda_callback(_folder: Path) -> Callback:
    def print_call(*arguments: Any) -> None:
        sys.stdout.write(f"{[sorted(one) if isinstance(one, dict) else one for one in arguments]}\n")

    return keras.callbacks.LambdaCallback(
        on_epoch_begin=print_call, on_epoch_end=print_call, on_train_begin=print_call, on_train_end=print_call
    )


def _lambda_at_batches(_folder: Path) -> Callback:
    return keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: sys.stdout.write(f"{batch}: {sorted(logs.items())}\n")
    )


class StopsBeforeAnEpoch(keras.callbacks.Callback):
    """Stops at the beginning of the second epoch, of which Keras trains one batch then."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stop before the second epoch."""
        if epoch == 1:
            self.model.stop_training = True


def _stops_before_an_epoch(_folder: Path) -> Callback:
    return StopsBeforeAnEpoch()


class AfterAnEpoch(keras.callbacks.Callback):
    """Acts on the model after the first epoch."""

    def __init__(self, act: Callable[[Model], None]) -> None:
        super().__init__()
        self.act = act

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Act on it once."""
        if epoch == 0:
            self.act(self.model)


def _freeze(model: Model) -> None:
    model.layers[0].trainable = False


def _freeze_and_trace_anew(model: Model) -> None:
    _freeze(model)
    model.make_train_function(force=True)


def _shift_weights(model: Model) -> None:
    model.set_weights([weight + 0.01 for weight in model.get_weights()])


def _give_schedule(model: Model) -> None:
    model.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(0.2, 9)


def _after_an_epoch(act: Callable[[Model], None]) -> Callable[[Data, Path], dict[str, Any]]:
    return _calling(lambda _folder: AfterAnEpoch(act))


def _metrics_of_another_model() -> dict[str, Any]:
    """Return metrics that another model was trained with, whose sums are there still."""
    metrics = [keras.metrics.AUC(name="auc"), keras.metrics.MeanAbsoluteError(name="mae")]
    other = binary_classifier(layers.Input((8,)), layers.Dense(3))
    other.compile("sgd", "mse", metrics=metrics)
    x = np.linspace(0, 1, 160, dtype="float32").reshape(20, 8)
    other.fit(x, np.arange(20) % 2, verbose=0)
    return {"metrics": metrics}


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
    Option("freezes_after_epoch", _after_an_epoch(_freeze)),
    Option("traces_step_anew", _after_an_epoch(_freeze_and_trace_anew), runs_by_keras=True),
    Option("shifts_weights", _after_an_epoch(_shift_weights)),
    Option("schedule_after_epoch", _after_an_epoch(_give_schedule)),
    Option("shared_metrics", compile_arguments=_metrics_of_another_model),
    Option("csv_logger", _calling(_csv_logger)),
    Option("model_checkpoint", _calling(_model_checkpoint)),
    Option("lambda_callback", _calling(_lambda_callback)),
    Option(
        "callback_at_batches",
        _calling(_lambda_at_batches),
        runs_in_xla=False,
        known_fallback="the callback LambdaCallback is called at every batch",
    ),
    Option("callbacks", _calling(_reduce_lr_on_plateau, _learning_rate_scheduler, _csv_logger, _early_stopping)),
    Option("clipnorm", optimizer_arguments=lambda: {"clipnorm": 0.01}),
    Option("global_clipnorm", optimizer_arguments=lambda: {"global_clipnorm": 0.01}),
    Option("clipvalue", optimizer_arguments=lambda: {"clipvalue": 0.001}),
    Option("use_ema", optimizer_arguments=lambda: {"use_ema": True}),
    Option("ema_overwrites", optimizer_arguments=lambda: {"use_ema": True, "ema_overwrite_frequency": 3}),
    Option("gradient_accumulation", optimizer_arguments=lambda: {"gradient_accumulation_steps": 3}),
    Option("amsgrad", optimizer_arguments=lambda: {"amsgrad": True}),
    Option("loss_scale_factor", optimizer_arguments=lambda: {"loss_scale_factor": 8.0}),
    Option("weight_decay", optimizer_arguments=lambda: {"weight_decay": 0.1}),
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
