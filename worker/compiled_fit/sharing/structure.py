"""Which models may use one program: those that would be traced to the same graph."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

from gridfleet.worker.compiled_fit.sharing.keras_parts import (
    PLAIN_MODELS,
    has_keras_functions_only,
    has_replaced_method,
    is_keras_class,
    is_keras_function,
    is_transparent,
)
from gridfleet.worker.compiled_fit.sharing.settings import global_settings
from gridfleet.worker.compiled_fit.types import Layer, Model, Optimizer, Variable

#: Keys of configs that give a variable its first value and change nothing in the graph.
VALUES_OF_VARIABLES = ("seed",)
INITIALIZER = "_initializer"
#: Attributes of a model that hold what ``compile`` was given, and that a prediction does not use.
GIVEN_TO_COMPILE = ("loss",)
#: A model inside another one: Keras' own, though its config names it as it names what users register.
FUNCTIONAL = {"module": "keras.src.models.functional", "registered_name": "Functional"}


class _OpaqueError(Exception):
    """A part of the model does something that its config does not show."""


def structure_of(model: Model, *, trains: bool = False, predicts: bool = False) -> str | None:
    """Return what a model's program depends on, but for the data's types.

    Learning rate, seeds, initial weights and the number of epochs are values of variables or arguments of
    the program and do not count. Names count, since they are keys of the History: where Keras numbers layers anew
    for each split, as trials do, equal models have equal names.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    trains : bool, default=False
        Whether the program trains it, and so depends on its optimizer.
    predicts : bool, default=False
        Whether the program predicts, and so depends on no loss and no metric.

    Returns
    -------
    str or None
        A digest; None if the model has a part that its config does not determine: a class or function
        that is not Keras' own, a callable, a layer that is not in `TRANSPARENT_LAYERS`.
    """
    if type(model) not in PLAIN_MODELS:
        return None
    layers = list(model._flatten_layers(include_self=False))
    optimizer = model.optimizer if trains else None
    if not _is_determined_by_configs(model, layers, optimizer, predicts=predicts):
        return None
    try:
        fingerprint = _fingerprint(model, layers, optimizer, predicts=predicts)
        text = json.dumps(_without_values(fingerprint), sort_keys=True, default=_refuse)
    except (_OpaqueError, TypeError, ValueError, NotImplementedError):  # Keras has no config of functools.partial, say
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _is_determined_by_configs(
    model: Model, layers: list[Layer], optimizer: Optimizer | None, *, predicts: bool
) -> bool:
    if not model.built or not all(is_transparent(layer) for layer in layers):
        return False
    if optimizer is not None and not (is_keras_class(type(optimizer)) and has_keras_functions_only(optimizer)):
        return False
    if has_replaced_method(model):
        return False
    if predicts:
        return has_keras_functions_only(model, but_for=GIVEN_TO_COMPILE)
    return _is_determined_by_compile(model) and has_keras_functions_only(model)


def _is_determined_by_compile(model: Model) -> bool:
    """Whether the arguments of ``compile`` are all that its losses and metrics come from."""
    if getattr(model, "_compile_config", None) is None:
        return False
    config, loss, metrics = model._compile_config.config, model._compile_loss, model._compile_metrics
    if type(loss) not in (CompileLoss, type(None)) or type(metrics) not in (CompileMetrics, type(None)):
        return False
    # what an earlier compile() gave stays in force if a later one gives none
    if loss is not None and config.get("loss") is None:
        return False
    return metrics is None or not (config.get("metrics") is None and config.get("weighted_metrics") is None)


def _fingerprint(model: Model, layers: list[Layer], optimizer: Optimizer | None, *, predicts: bool) -> list[Any]:
    return [
        type(model).__name__,
        model.get_config(),
        [(layer.name, bool(layer.trainable), bool(layer.autocast), _attributes_of(layer)) for layer in layers],
        [_fingerprint_of_variable(variable) for variable in model.variables],
        None if predicts else [(type(metric).__name__, metric.name) for metric in model.metrics],
        None if optimizer is None else _fingerprint_of_optimizer(optimizer),
        [model.jit_compile, model.steps_per_execution] if predicts else _compile_settings(model),
        global_settings(),
    ]


def _fingerprint_of_variable(variable: Variable) -> list[Any]:
    """Return what training makes of a variable: its own regularizer counts, and not its layer's of the same name."""
    return [
        list(variable.shape),
        str(variable.dtype),
        bool(variable.trainable),
        bool(getattr(variable, "overwrite_with_gradient", False)),
        *(_fingerprint_of_part(getattr(variable, name, None)) for name in ("regularizer", "constraint")),
    ]


def _fingerprint_of_optimizer(optimizer: Optimizer) -> list[Any]:
    config = dict(optimizer.get_config())
    if not isinstance(config.get("learning_rate"), dict):  # a schedule is in the graph, a number in a variable
        if not hasattr(optimizer._learning_rate, "assign"):
            raise _OpaqueError
        config.pop("learning_rate", None)
    both = (optimizer, getattr(optimizer, "inner_optimizer", None))
    if any(hasattr(one, "_exclude_from_weight_decay") for one in both):  # no config shows it
        raise _OpaqueError
    return [type(optimizer).__name__, config, _attributes_of(optimizer)]


def _attributes_of(part: Any) -> dict[str, Any]:
    """Return what an object has beside its config: plain values, and which functions of Keras.

    No config shows an LSTM's ``implementation`` or a bias that was taken away; ``keras.ops.gelu`` passes for "gelu"
    there, with other defaults.
    """
    return {
        name: [value.__module__, value.__qualname__] if type(value).__name__ == "function" else value
        for name, value in vars(part).items()
        if type(value).__name__ == "function" or (not name.startswith("_") and _is_plain(value))
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _compile_settings(model: Model) -> dict[str, Any]:
    settings = dict(model._compile_config.config)
    settings.pop("optimizer", None)
    settings.update(jit_compile=model.jit_compile, steps_per_execution=model.steps_per_execution)
    for name in ("loss", "metrics", "weighted_metrics"):
        settings[name] = keras.tree.map_structure(_fingerprint_of_part, settings.get(name))
    return settings


def _fingerprint_of_part(part: Any) -> Any:
    """Return what determines a loss, metric, regularizer or constraint: its name, or class and config."""
    if part is None or isinstance(part, str):
        return part
    if callable(part) and is_keras_function(part):
        return [part.__module__, part.__qualname__]
    if not is_keras_class(type(part)) or not has_keras_functions_only(part):
        raise _OpaqueError
    # Huber's delta and CosineSimilarity's axis are in no config, nor is any loss's dtype
    return [
        type(part).__name__,
        part.get_config(),
        getattr(part, "_fn_kwargs", None),
        str(getattr(part, "dtype", None)),
        _attributes_of(part),
    ]


def _without_values(part: Any) -> Any:
    """Drop seeds and initializers from nested configs; refuse whatever is registered by somebody else."""
    if isinstance(part, dict):
        is_registered = part.get("registered_name") is not None and not part.items() >= FUNCTIONAL.items()
        if part.get("class_name") == "__lambda__" or is_registered:
            raise _OpaqueError
        if not str(part.get("module") or "keras").startswith("keras"):
            raise _OpaqueError
        return {
            str(name): _without_values(value)
            for name, value in part.items()
            if name not in VALUES_OF_VARIABLES and not name.endswith(INITIALIZER)
        }
    if isinstance(part, (list, tuple)):
        return [_without_values(value) for value in part]
    return part


def _refuse(part: Any) -> str:
    if isinstance(part, tf.DType):
        return str(part.name)
    raise _OpaqueError
