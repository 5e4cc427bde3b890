"""Which layers, classes and functions are Keras' own, and so do what their config or name says."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path
from typing import Any

import keras

from gridfleet.worker.compiled_fit.types import Layer, Model

_TRANSPARENT = """
    Activation ActivityRegularization Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU
    EinsumDense Embedding Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D
    MaxPooling3D Maximum Minimum MultiHeadAttention Multiply PReLU Permute ReLU RepeatVector Rescaling Reshape
    SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D
    Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D
    ZeroPadding3D
"""
#: Layers whose computation their config alone determines. Others may keep arrays or tensors that end as
#: constants in the graph (an adapted Normalization, say); models with one are compared by their graph.
TRANSPARENT_LAYERS = frozenset(getattr(keras.layers, name) for name in _TRANSPARENT.split())
#: Models of which the same holds.
TRANSPARENT_MODELS = (keras.Sequential, keras.src.models.functional.Functional)
#: Models whose class determines their outputs.
PLAIN_MODELS = (keras.Sequential, keras.Model, keras.src.models.functional.Functional)
#: Methods that change a computation behind its config's back when they are replaced on the instance.
REPLACEABLE = ("call", "train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")
#: Where Keras' own functions are written; their names alone can be borrowed (``functools.wraps``).
KERAS_FOLDER = f"{Path(keras.src.__file__).parent}{os.sep}"


def is_transparent(layer: Layer) -> bool:
    """Whether a layer is Keras' own and does what its config says."""
    is_model = isinstance(layer, TRANSPARENT_MODELS)
    if type(layer) not in (TRANSPARENT_MODELS if is_model else TRANSPARENT_LAYERS):
        return False
    # a config names a function, and no more: a user's own "relu" would pass for Keras'
    if not has_keras_functions_only(layer) or _is_foreign_function(type(layer).call):
        return False
    return not layer._losses and not has_replaced_method(layer)


def has_replaced_method(part: Layer | Model) -> bool:
    """Whether a method of `REPLACEABLE` was set on the instance."""
    return any(name in vars(part) for name in REPLACEABLE)


def has_keras_functions_only(part: Any, *, but_for: Container[str] = ()) -> bool:
    """Whether no attribute of a layer, model, optimizer, loss or metric is a function of somebody else's."""
    return not any(_is_foreign_function(value) for name, value in vars(part).items() if name not in but_for)


def is_keras_class(kind: type) -> bool:
    """Whether a class is written in Keras."""
    return kind.__module__.startswith("keras.src.")


def is_keras_function(item: Any) -> bool:
    """Whether something is a function that is written in Keras and that its name determines."""
    return type(item).__name__ == "function" and not _is_foreign_function(item) and item.__closure__ is None


def _is_foreign_function(value: Any) -> bool:
    if type(value).__name__ not in ("function", "method", "builtin_function_or_method"):
        return False
    code = getattr(value, "__code__", None)
    return code is None or not code.co_filename.startswith(KERAS_FOLDER)
