"""Why a call of ``fit``, ``evaluate`` or ``predict`` has to run as Keras runs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
from keras.src import callbacks as keras_callbacks
from keras.src.backend import config as keras_config
from keras.src.trainers.data_adapters.array_data_adapter import can_convert_arrays

#: Methods of a callback that Keras calls at every batch, which a loop inside the graph can't.
BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_predict_batch_begin",
    "on_predict_batch_end",
)
#: Methods of a callback that Keras calls before it traces the first step.
HOOKS_BEFORE_TRACING = ("set_model", "set_params", "on_train_begin", "on_epoch_begin")
#: Methods of a callback that Keras calls after that.
HOOKS_BETWEEN_EPOCHS = ("on_epoch_begin", "on_epoch_end", "on_test_end")
#: What makes Keras' loops; a model that overrides one of these wants another loop.
LOOP_METHODS = (
    "fit",
    "evaluate",
    "predict",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
    "_make_function",
)


class KerasTakesOverError(Exception):
    """A call has to run as Keras runs it; the message is the reason, as a sentence without a full stop.

    Attributes
    ----------
    callbacks : CallbackList or None
        For Keras' own ``fit``, if callbacks were told that the first epoch begins.
    """

    callbacks: Any = None


class NotEligibleError(KerasTakesOverError):
    """Ours can't do what the call asks for."""


def check_model(model: Any) -> None:
    """Make sure that a model's training loop is Keras' own, on TensorFlow, in graph mode.

    Raises
    ------
    NotEligibleError
        With the reason.
    """
    if model.run_eagerly or tf.config.functions_run_eagerly():
        raise NotEligibleError("the model runs eagerly")
    if model._distribute_strategy is not None or tf.distribute.has_strategy():
        raise NotEligibleError("a distribution strategy is in use")
    for method in LOOP_METHODS:
        if getattr(type(model), method) is not getattr(keras.Model, method) or method in vars(model):
            raise NotEligibleError(f"{type(model).__name__} overrides {method}")
    if keras_config.max_epochs() or keras_config.max_steps_per_epoch():
        raise NotEligibleError("KERAS_MAX_EPOCHS or KERAS_MAX_STEPS_PER_EPOCH is set")


def check_arrays(arrays: Any) -> None:
    """Make sure that the data are dense arrays of numbers.

    Parameters
    ----------
    arrays : nested structure of arrays
        For instance ``(x, y, sample_weight)``; None stands for what is not given.

    Raises
    ------
    NotEligibleError
        With the reason.
    """
    if not can_convert_arrays(arrays):
        raise NotEligibleError("the data are no arrays (a generator, a Dataset, a list of numbers)")
    for array in keras.tree.flatten(arrays):
        if isinstance(array, (tf.SparseTensor, tf.RaggedTensor)) or type(array).__module__.startswith("scipy.sparse"):
            raise NotEligibleError("the data are sparse or ragged")
        dtype = None if hasattr(array, "columns") else getattr(array, "dtype", None)  # a column may be named so
        if getattr(dtype, "kind", "f") in "OUS" or dtype == tf.string:
            raise NotEligibleError("the data are objects or strings")


def check_callbacks(callbacks: Any, *, validates: bool = False, steps_per_execution: int = 1) -> None:
    """Make sure that no callback wants to be called inside an epoch.

    Parameters
    ----------
    callbacks : callback, nested list of callbacks or None
        As for Keras' ``fit``.
    validates : bool, default=False
        Whether epochs end with a validation: it follows the training in one go, with no call before it.
    steps_per_execution : int, default=1
        The model's.

    Raises
    ------
    NotEligibleError
        That names the callback.
    """
    if isinstance(callbacks, keras_callbacks.CallbackList):
        raise NotEligibleError("callbacks is a CallbackList")
    for callback in flat_callbacks(callbacks):
        if not _is_called_per_epoch_only(callback):
            raise NotEligibleError(f"the callback {type(callback).__name__} is called at every batch")
        if validates and _overrides(callback, "on_test_begin"):  # SwapEMAWeights changes the weights there
            raise NotEligibleError(f"the callback {type(callback).__name__} is called before each validation")
        if type(callback) is keras_callbacks.TerminateOnNaN and steps_per_execution > 1:
            raise NotEligibleError("TerminateOnNaN looks at the last of steps_per_execution batches only")


def flat_callbacks(callbacks: Any) -> list[Any]:
    """Return callbacks as Keras' ``CallbackList`` takes them: None, one, or nested lists."""
    return list(keras.tree.flatten(callbacks)) if callbacks else []


def watches_for_nan(callbacks: Iterable[Any]) -> bool:
    """Whether a callback stops at the first batch whose loss is not finite, which the graph can do."""
    return any(type(callback) is keras_callbacks.TerminateOnNaN for callback in callbacks)


def acts_before_first_batch(callbacks: Iterable[Any]) -> bool:
    """Whether a callback of somebody's own is called before Keras traces the first step, and may change the model."""
    return any(_is_users_own(callback, hook) for callback in callbacks for hook in HOOKS_BEFORE_TRACING)


def acts_between_epochs(callbacks: Iterable[Any]) -> bool:
    """Whether a callback of somebody's own is called between epochs, and may change the model."""
    return any(_is_users_own(callback, hook) for callback in callbacks for hook in HOOKS_BETWEEN_EPOCHS)


def _is_called_per_epoch_only(callback: Any) -> bool:
    if type(callback) in (keras_callbacks.ProgbarLogger, keras_callbacks.TerminateOnNaN):
        return True  # the one shows less, the other is done inside the graph
    if type(callback) in (keras_callbacks.ModelCheckpoint, keras_callbacks.BackupAndRestore):
        return bool(callback.save_freq == "epoch")  # its hook does nothing then
    return not any(_overrides(callback, hook) for hook in BATCH_HOOKS)


def _overrides(callback: Any, hook: str) -> bool:
    return getattr(type(callback), hook, None) is not getattr(keras_callbacks.Callback, hook) or hook in vars(callback)


def _is_users_own(callback: Any, hook: str) -> bool:
    method = getattr(type(callback), hook, None)
    return hook in vars(callback) or not str(getattr(method, "__module__", "")).startswith("keras.src.")
