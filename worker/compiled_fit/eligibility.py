"""Why a call of ``fit``, ``evaluate`` or ``predict`` has to run as Keras runs it."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras.src import callbacks as keras_callbacks
from keras.src.backend import config as keras_config
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays

from gridfleet.worker.compiled_fit.callbacks import flat_callbacks, is_called_per_epoch_only
from gridfleet.worker.compiled_fit.data.keras_functions import Kind, has_failed_at_first
from gridfleet.worker.compiled_fit.errors import BatchByBatchError, NotEligibleError
from gridfleet.worker.compiled_fit.types import ArrayLike, Callbacks, Model, Structure

#: The methods that make what Keras' loops call; a model that overrides one of a call's wants something else at each
#: batch. An own ``fit``, ``evaluate`` or ``predict`` has done its part where it calls Keras'.
LOOP_METHODS: dict[Kind, tuple[str, ...]] = {
    "train": ("make_train_function", "_make_function"),
    "test": ("make_test_function", "_make_function"),
    "predict": ("make_predict_function",),
}


def check_model(model: Model, kind: Kind) -> None:
    """Make sure that a model's loop is Keras' own, on TensorFlow, in graph mode.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    kind : {"train", "test", "predict"}
        Which loop.

    Raises
    ------
    NotEligibleError
        With the reason.
    """
    if model.run_eagerly or tf.config.functions_run_eagerly():
        raise NotEligibleError("the model runs eagerly")
    if model._distribute_strategy is not None or tf.distribute.has_strategy():
        raise NotEligibleError("a distribution strategy is in use")
    for method in LOOP_METHODS[kind]:
        if is_overridden(model, method):
            raise NotEligibleError(f"{type(model).__name__} overrides {method}")
    if has_failed_at_first(model, kind):
        raise NotEligibleError("the model's first call failed, after which Keras may refuse the next ones")
    if keras_config.max_epochs() or keras_config.max_steps_per_epoch():
        raise NotEligibleError("KERAS_MAX_EPOCHS or KERAS_MAX_STEPS_PER_EPOCH is set")


def is_overridden(model: Model, method: str) -> bool:
    """Whether a model has another method than Keras', by its class or on the instance."""
    return getattr(type(model), method) is not getattr(keras.Model, method) or method in vars(model)


def check_arrays(arrays: Structure) -> None:
    """Make sure that the data are dense arrays of numbers.

    Parameters
    ----------
    arrays : nested structure of arrays
        For instance ``(x, y, sample_weight)``; None stands for what is not given.

    Raises
    ------
    NotEligibleError, BatchByBatchError
        With the reason.
    """
    if not can_convert_arrays(arrays):
        raise BatchByBatchError("the data are no arrays (a generator, a list of numbers)")
    for array in keras.tree.flatten(arrays):
        _check_array(array)


def _check_array(array: ArrayLike) -> None:
    if isinstance(array, (tf.SparseTensor, tf.RaggedTensor)) or type(array).__module__.startswith("scipy.sparse"):
        raise NotEligibleError("the data are sparse or ragged")
    dtype = None if hasattr(array, "columns") else getattr(array, "dtype", None)  # a column may be named so
    if getattr(dtype, "kind", "f") in "OUS" or dtype == tf.string:
        raise NotEligibleError("the data are objects or strings")


def check_callbacks(callbacks: Callbacks, kind: Kind, *, steps_per_execution: int = 1) -> None:
    """Make sure that no callback wants to be called inside an epoch.

    Parameters
    ----------
    callbacks : callback, nested list of callbacks, CallbackList or None
        As for Keras' ``fit``.
    kind : {"train", "test", "predict"}
        Which loop calls them.
    steps_per_execution : int, default=1
        The model's.

    Raises
    ------
    BatchByBatchError
        That names the callback.
    """
    for callback in flat_callbacks(callbacks):
        if isinstance(callback, keras_callbacks.CallbackList):
            raise BatchByBatchError("callbacks is a CallbackList")
        if not is_called_per_epoch_only(callback, kind):
            raise BatchByBatchError(f"the callback {type(callback).__name__} is called at every batch")
        if type(callback) is keras_callbacks.TerminateOnNaN and steps_per_execution > 1:
            raise BatchByBatchError("TerminateOnNaN looks at the last of steps_per_execution batches only")
