"""Which models may share a program: those that would be traced to the same graph."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import config as keras_config
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from tensorflow.python.framework.config import is_op_determinism_enabled

_TRANSPARENT = """
    Activation ActivityRegularization Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU
    EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D
    MaxPooling3D Maximum Minimum MultiHeadAttention Multiply PReLU Permute ReLU RepeatVector Reshape SeparableConv1D
    SeparableConv2D SimpleRNN SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D Subtract
    TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
#: Layers whose computation is told by their config alone. Others may keep arrays or tensors that end as
#: constants in the graph (an adapted Normalization, say); models with one are compared by their graph.
TRANSPARENT_LAYERS = frozenset(getattr(keras.layers, name) for name in _TRANSPARENT.split())
#: Keys of configs that give a variable its first value and change nothing in the graph.
VALUES_OF_VARIABLES = ("seed",)
INITIALIZER = "_initializer"
#: Attributes that change a layer's computation behind its config's back when they are set on the instance.
REPLACEABLE = ("call", "train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
#: Models whose outputs are told by their class.
PLAIN_MODELS = (keras.Sequential, keras.Model, keras.src.models.functional.Functional)
#: Where Keras' own functions are written; their names alone can be borrowed (``functools.wraps``).
KERAS_FOLDER = f"{Path(keras.src.__file__).parent}{os.sep}"


def structure_of(model: Any, *, trains: bool = False) -> str | None:
    """Return what a model's program depends on, but for the data's types.

    Learning rate, seeds, initial weights and the number of epochs are values of variables or arguments of
    the program and do not count. Names count, since they are keys of the History: Keras numbers layers anew
    for each split (`gridfleet.worker.trial.cross_validation`), so equal models have equal names.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    trains : bool, default=False
        Whether the program trains it, and so depends on its optimizer.

    Returns
    -------
    str or None
        A digest; None if the model has a part that its config does not tell all about: a class or function
        that is not Keras' own, a callable, a layer that is not in `TRANSPARENT_LAYERS`.
    """
    if type(model) not in PLAIN_MODELS:
        return None
    layers = list(model._flatten_layers(include_self=False))
    if not model.built or any(not is_transparent(layer) for layer in layers):
        return None
    optimizer = model.optimizer if trains else None
    if optimizer is not None and not (_is_kerass_own(type(optimizer)) and _has_own_functions_only(optimizer)):
        return None
    if not _is_told_by_compile(model) or not _has_own_functions_only(model):
        return None
    if any(name in vars(model) for name in REPLACEABLE):
        return None
    try:
        told = [
            type(model).__name__,
            model.get_config(),
            [(layer.name, bool(layer.trainable), bool(layer.autocast)) for layer in layers],
            [_told_of_variable(variable) for variable in model.variables],
            [(type(metric).__name__, metric.name) for metric in model.metrics],
            None if optimizer is None else _optimizer_config(optimizer),
            _compile_settings(model),
            global_settings(),
        ]
        text = json.dumps(_without_values(told), sort_keys=True, default=_refuse)
    except (_OpaqueError, TypeError, ValueError, NotImplementedError):  # Keras can't tell of a functools.partial, say
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def graph_digest(functions: list[Any], told: Any) -> str:
    """Return a digest of traced functions, their constants included.

    Parameters
    ----------
    functions : list of ConcreteFunction
        Traced from one model.
    told : object
        What their graphs do not show: which variable is captured where, names of results. Equal ones have equal
        representations.

    Returns
    -------
    str
        Equal only for functions that compute the same from the same variables.
    """
    sha = hashlib.sha256(json.dumps(global_settings()).encode())
    sha.update(repr(told).encode())
    for function in functions:
        graph = function.graph.as_graph_def(add_shapes=False)
        _forget_unique_names(graph)
        sha.update(graph.SerializeToString(deterministic=True))
        sha.update(str([(tensor.shape, tensor.dtype) for tensor in function.captured_inputs]).encode())
    return sha.hexdigest()


def global_settings() -> list[Any]:
    """Return the settings of Keras and TensorFlow that a trace depends on."""
    return [
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras_config.is_nnx_enabled() if hasattr(keras_config, "is_nnx_enabled") else False,
        str(keras.config.dtype_policy().name),
        is_op_determinism_enabled(),
        bool(tf.config.functions_run_eagerly()),
    ]


class _OpaqueError(Exception):
    pass


def is_transparent(layer: Any) -> bool:
    """Whether a layer is Keras' own and does what its config tells."""
    if isinstance(layer, (keras.Sequential, keras.src.models.functional.Functional)):
        known = type(layer) in (keras.Sequential, keras.src.models.functional.Functional)
    else:
        known = type(layer) in TRANSPARENT_LAYERS
    # a config tells of a function its name alone: someone's own "relu" would pass for Keras'
    is_told = _has_own_functions_only(layer) and not _is_other_function(type(layer).call)
    return known and is_told and not layer._losses and not any(name in vars(layer) for name in REPLACEABLE)


def _has_own_functions_only(item: Any) -> bool:
    return not any(_is_other_function(value) for value in vars(item).values())


def _is_told_by_compile(model: Any) -> bool:
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


def _told_of_variable(variable: Any) -> list[Any]:
    """Return what training makes of a variable: its own regularizer counts, and not its layer's of the same name."""
    return [
        list(variable.shape),
        str(variable.dtype),
        bool(variable.trainable),
        bool(getattr(variable, "overwrite_with_gradient", False)),
        *(_told_by_config(getattr(variable, name, None)) for name in ("regularizer", "constraint")),
    ]


def _is_kerass_own(kind: type) -> bool:
    return kind.__module__.startswith("keras.src.")


def _optimizer_config(optimizer: Any) -> list[Any]:
    config = dict(optimizer.get_config())
    if not isinstance(config.get("learning_rate"), dict):  # a schedule is in the graph, a number in a variable
        if not hasattr(optimizer._learning_rate, "assign"):
            raise _OpaqueError
        config.pop("learning_rate", None)
    if any(
        hasattr(one, "_exclude_from_weight_decay") for one in (optimizer, getattr(optimizer, "inner_optimizer", None))
    ):
        raise _OpaqueError  # no config tells of it
    return [type(optimizer).__name__, config]


def _compile_settings(model: Any) -> dict[str, Any]:
    settings = dict(model._compile_config.config)
    settings.pop("optimizer", None)
    settings.update(jit_compile=model.jit_compile, steps_per_execution=model.steps_per_execution)
    for name in ("loss", "metrics", "weighted_metrics"):
        settings[name] = keras.tree.map_structure(_told_by_config, settings.get(name))
    return settings


def _told_by_config(item: Any) -> Any:
    """Return what tells all about a loss, metric, regularizer or constraint: its name, or class and config."""
    if item is None or isinstance(item, str):
        return item
    if callable(item) and _is_kerass_own_function(item):
        return [item.__module__, item.__qualname__]
    if not _is_kerass_own(type(item)) or not _has_own_functions_only(item):
        raise _OpaqueError
    # Huber's delta and CosineSimilarity's axis are in no config, nor is any loss's dtype
    return [
        type(item).__name__,
        item.get_config(),
        getattr(item, "_fn_kwargs", None),
        str(getattr(item, "dtype", None)),
    ]


def _is_kerass_own_function(item: Any) -> bool:
    return type(item).__name__ == "function" and not _is_other_function(item) and item.__closure__ is None


def _is_other_function(value: Any) -> bool:
    if type(value).__name__ not in ("function", "method", "builtin_function_or_method"):
        return False
    code = getattr(value, "__code__", None)
    return code is None or not code.co_filename.startswith(KERAS_FOLDER)


def _without_values(part: Any) -> Any:
    """Drop seeds and initializers from nested configs; refuse whatever is registered by somebody else."""
    if isinstance(part, dict):
        if part.get("class_name") == "__lambda__" or part.get("registered_name") is not None:
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


def _refuse(part: Any) -> Any:
    if isinstance(part, tf.DType):
        return part.name
    raise _OpaqueError


def _forget_unique_names(graph: Any) -> None:
    """Name functions by their place, for TensorFlow gives every traced one a name of its own."""
    library = graph.library
    names = {function.signature.name: f"f{place}" for place, function in enumerate(library.function)}
    nodes = [*graph.node, *(node for function in library.function for node in function.node_def)]
    for node in nodes:
        _rename(node, names)
    for function in library.function:
        function.signature.name = names[function.signature.name]
    for gradient in library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)


def _rename(node: Any, names: dict[str, str]) -> None:
    node.op = names.get(node.op, node.op)
    if "_gradient_op_type" in node.attr:  # a number of its own, and of no meaning once the gradient is in the graph
        del node.attr["_gradient_op_type"]
    for attribute in node.attr.values():
        functions = [attribute.func] if attribute.HasField("func") else attribute.list.func
        for function in functions:
            function.name = names.get(function.name, function.name)
