"""Names for what Keras and TensorFlow hand around; both come without types, so a checker sees `Any` behind most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src import callbacks as keras_callbacks

Model: TypeAlias = keras.Model
Layer: TypeAlias = keras.layers.Layer
Metric: TypeAlias = keras.Metric
Optimizer: TypeAlias = keras.optimizers.Optimizer
Callback: TypeAlias = keras.callbacks.Callback
#: Keras' own list of all callbacks of a call, with the methods of one.
CallbackList: TypeAlias = keras_callbacks.CallbackList
#: Callbacks as ``fit`` takes them: one, nested lists of them, or None.
Callbacks: TypeAlias = Any

Tensor: TypeAlias = tf.Tensor
TensorSpec: TypeAlias = tf.TensorSpec
TensorArray: TypeAlias = tf.TensorArray
#: A Keras variable or a TensorFlow one.
Variable: TypeAlias = keras.Variable
#: TensorFlow's variable, whose handle a graph captures.
Resource: TypeAlias = tf.Variable
#: A function that TensorFlow has traced for one signature.
ConcreteFunction: TypeAlias = Any
#: A graph, or the definition of one.
Graph: TypeAlias = Any

#: Arrays as ``fit`` takes them: an array, a frame, or dicts, lists and tuples of them; or None.
ArrayLike: TypeAlias = Any
#: Nested tuples and dicts of arrays or tensors, as Keras hands a batch to ``train_step``.
Structure: TypeAlias = Any
#: One batch's function, such as a model's ``train_step``: takes a structure, returns logs or predictions.
StepFunction: TypeAlias = Callable[[Structure], Any]
#: Whether ``fit`` shuffles the rows: all of them, or within each batch.
Shuffle: TypeAlias = bool | Literal["batch"]
#: Names of metrics and their values: numbers, arrays, or dicts of such.
Logs: TypeAlias = dict[str, Any]

#: The rows' places in one epoch, of shape (n_samples,).
Order: TypeAlias = npt.NDArray[np.int64]
#: The same of several epochs, of shape (1, n_samples) where all epochs have one order, or (n_epochs, n_samples).
Orders: TypeAlias = npt.NDArray[np.int64]
#: Whether to validate after an epoch, of shape (n_epochs,).
ValidationPlan: TypeAlias = npt.NDArray[np.bool_]
#: An epoch's metrics, then those of its validation: of shape (n_epochs, n_results).
Results: TypeAlias = npt.NDArray[np.float64]
