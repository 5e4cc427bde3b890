"""Every activation, optimizer, loss and metric that the installed Keras has, by name, so that a new one is noticed.

What needs arguments or data of its own gets them here; one that is not known is tried with the plain data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src import activations as keras_activations
from keras.src import losses as keras_losses
from keras.src import metrics as keras_metrics
from keras.src import optimizers as keras_optimizers

from gridfleet.worker.compiled_fit.selfcheck.families import Data, Family, layers
from gridfleet.worker.compiled_fit.selfcheck.tolerances import XLA_TOLERANCE
from gridfleet.worker.compiled_fit.types import Layer, Model

#: Classes, and wrappers of what somebody else writes: nothing to train with.
ABSTRACT = frozenset(
    ("Optimizer", "OptimizerMap", "Loss", "LossFunctionWrapper", "Metric", "MeanMetricWrapper", "Mean", "Sum")
)
#: Arguments of those that need some.
ARGUMENTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "threshold": lambda: {"threshold": 0.1, "default_value": 0.0},
    "LossScaleOptimizer": lambda: {"inner_optimizer": keras.optimizers.Adam()},
    "MultiOptimizer": lambda: {
        "optimizer_map": keras.optimizers.OptimizerMap(keras.optimizers.SGD(), {".*kernel": keras.optimizers.Adam()})
    },
    # one number, and not one for each class
    "F1Score": lambda: {"average": "macro"},
    "FBetaScore": lambda: {"average": "macro"},
    "IoU": lambda: {"num_classes": 3, "target_class_ids": [0, 2], "sparse_y_pred": False},
    "MeanIoU": lambda: {"num_classes": 3, "sparse_y_pred": False},
    "OneHotIoU": lambda: {"num_classes": 3, "target_class_ids": [0, 2]},
    "OneHotMeanIoU": lambda: {"num_classes": 3},
    "BinaryIoU": lambda: {"target_class_ids": [0, 1], "threshold": 0.3},
    "PrecisionAtRecall": lambda: {"recall": 0.5},
    "RecallAtPrecision": lambda: {"precision": 0.5},
    "SensitivityAtSpecificity": lambda: {"specificity": 0.5},
    "SpecificityAtSensitivity": lambda: {"sensitivity": 0.5},
}
#: Activations that change a shape, which a Dense layer does not expect.
CHANGE_SHAPE = frozenset(("glu",))
#: Losses and metrics whose targets are numbers of classes.
TAKES_CLASSES = frozenset(
    (
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        "SparseCategoricalAccuracy",
        "SparseTopKCategoricalAccuracy",
        "Circle",
        "circle",
        "IoU",
        "MeanIoU",
    )
)
#: Losses of sequences.
TAKES_SEQUENCES = frozenset(("CTC", "ctc"))
N_CLASSES = 3


def activations() -> list[str]:
    """Return the names of Keras' activations."""
    return _names(keras_activations.ALL_OBJECTS)


def optimizers() -> list[str]:
    """Return the names of Keras' optimizers."""
    return _names(keras_optimizers.ALL_OBJECTS)


def losses() -> list[str]:
    """Return the names of Keras' losses, classes and functions."""
    return _names(keras_losses.ALL_OBJECTS)


def metrics() -> list[str]:
    """Return the names of Keras' metrics."""
    return _names(keras_metrics.ALL_OBJECTS)


def make_optimizer(name: str, **arguments: Any) -> Any:
    """Return a new optimizer of Keras'."""
    return getattr(keras.optimizers, name)(**_arguments(name), **arguments)


def families() -> tuple[Family, ...]:
    """Return a family for each activation, loss and metric."""
    return (
        *(_of_activations(f"activation_{name}", [name]) for name in activations()),
        *(_of_losses(f"loss_{name}", [name]) for name in losses()),
        *(_of_metrics(f"metric_{name}", [name]) for name in metrics()),
    )


def joint_families() -> tuple[Family, ...]:
    """Return few families that have all of them together."""
    named_losses = [name for name in losses() if inspect.isclass(getattr(keras.losses, name))]
    return (
        _of_activations("activations", activations()),
        *(_of_losses(f"losses_of_{kind}", names) for kind, names in _by_data(named_losses).items()),
        *(_of_metrics(f"metrics_of_{kind}", names) for kind, names in _by_data(metrics()).items()),
    )


def _family(
    title: str,
    build: Callable[[], Model],
    draw: Callable[[np.random.Generator, int], Data],
    compile_arguments: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    xla_tolerance: Mapping[str, float] | None = None,
) -> Family:
    """Return a family of parts of Keras, some of which XLA has no operations for (sparsemax, CTC)."""
    return Family(
        title,
        build,
        draw,
        compile_arguments,
        takes_class_weight=False,
        xla_tolerance=xla_tolerance or {},
        may_leave_xla=True,
    )


def _names(objects: Iterable[Any]) -> list[str]:
    return sorted({one.__name__ for one in objects} - ABSTRACT)


def _by_data(names: Iterable[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_data_of(name), []).append(name)
    return kinds


def _data_of(name: str) -> str:
    return "sequences" if name in TAKES_SEQUENCES else "classes" if name in TAKES_CLASSES else "shares"


def _arguments(name: str) -> dict[str, Any]:
    return ARGUMENTS[name]() if name in ARGUMENTS else {}


def _of_activations(title: str, names: list[str]) -> Family:
    def build() -> Model:
        start = layers.Input((8,))
        branches = [_activated(name)(layers.Dense(6)(start)) for name in names]
        joined = layers.Concatenate()(branches) if len(branches) > 1 else branches[0]
        return keras.Model(start, layers.Dense(N_CLASSES, activation="softmax")(joined))

    return _family(title, build, _draw("shares"), {"loss": "categorical_crossentropy"})


def _activated(name: str) -> Layer:
    function = getattr(keras.activations, name)
    if name in CHANGE_SHAPE or name in ARGUMENTS:
        return layers.Lambda(partial(function, **_arguments(name)))
    return layers.Activation(name)


def _of_losses(title: str, names: list[str]) -> Family:
    kind = _data_of(names[0])

    def build() -> Model:
        start = layers.Input((4, 2) if kind == "sequences" else (8,))
        hidden = layers.Dense(6, activation="tanh")(start)
        last = layers.Softmax if kind != "sequences" else layers.Identity
        outputs = [last(name=f"out_{name}")(layers.Dense(N_CLASSES)(hidden)) for name in names]
        return keras.Model(start, outputs if len(outputs) > 1 else outputs[0])

    def draw(generator: np.random.Generator, n_rows: int) -> Data:
        data = _draw(kind)(generator, n_rows)
        return Data(data.x, [data.y] * len(names) if len(names) > 1 else data.y)

    def compile_arguments() -> dict[str, Any]:
        made = [_loss(name) for name in names]
        return {"loss": made if len(made) > 1 else made[0]}

    # what they round to adds up
    return _family(title, build, draw, compile_arguments, {"adam": len(names) * XLA_TOLERANCE})


def _loss(name: str) -> Any:
    found = getattr(keras.losses, name)
    return found(**_arguments(name)) if inspect.isclass(found) else name


def _of_metrics(title: str, names: list[str]) -> Family:
    kind = _data_of(names[0])
    loss = "sparse_categorical_crossentropy" if kind == "classes" else "categorical_crossentropy"

    def build() -> Model:
        return keras.Sequential(
            [layers.Input((8,)), layers.Dense(6, activation="tanh"), layers.Dense(N_CLASSES, activation="softmax")]
        )

    def compile_arguments() -> dict[str, Any]:
        return {"loss": loss, "metrics": [getattr(keras.metrics, name)(**_arguments(name)) for name in names]}

    return _family(title, build, _draw(kind), compile_arguments)


def _draw(kind: str) -> Callable[[np.random.Generator, int], Data]:
    """Return a drawer of features and, by kind, numbers of classes, their shares (one of them 1), or sequences."""

    def draw(generator: np.random.Generator, n_rows: int) -> Data:
        if kind == "sequences":
            x = generator.normal(size=(n_rows, 4, 2)).astype("float32")
            return Data(x, generator.integers(1, N_CLASSES, size=(n_rows, 2)))
        x = generator.normal(size=(n_rows, 8)).astype("float32")
        classes = x[:, :N_CLASSES].argmax(axis=1)
        return Data(x, classes if kind == "classes" else np.eye(N_CLASSES, dtype="float32")[classes])

    return draw
