"""What callbacks need to be called for, and how they are called where the loop itself is in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src import callbacks as keras_callbacks

from gridfleet.worker.compiled_fit.data.keras_functions import Kind
from gridfleet.worker.compiled_fit.errors import KerasTakesOverError
from gridfleet.worker.compiled_fit.types import Callback, CallbackList, Callbacks, Logs, Model

#: Methods of a callback that Keras calls at every batch, which a loop inside the graph can't.
BATCH_HOOKS: dict[Kind, tuple[str, ...]] = {
    "train": ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
    "predict": ("on_predict_batch_begin", "on_predict_batch_end"),
}
#: Methods of a callback that Keras calls before it traces the first step.
HOOKS_BEFORE_TRACING = ("set_model", "set_params", "on_train_begin", "on_epoch_begin")
#: Methods of a callback that Keras calls after that.
HOOKS_BETWEEN_EPOCHS = ("on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end")


def flat_callbacks(callbacks: Callbacks) -> list[Callback]:
    """Return callbacks as Keras' ``CallbackList`` takes them: None, one, or nested lists."""
    return list(keras.tree.flatten(callbacks)) if callbacks else []


def watches_for_nan(callbacks: Iterable[Callback]) -> bool:
    """Whether a callback stops at the first batch whose loss is not finite, which the graph can do."""
    return any(type(callback) is keras_callbacks.TerminateOnNaN for callback in callbacks)


def acts_before_first_batch(callbacks: Iterable[Callback], *, is_built: bool) -> bool:
    """Whether a callback of the user's own is called before Keras traces the first step, and may change the model.

    BackupAndRestore fails there if the model is not built.
    """
    return any(
        any(_is_users_own(callback, hook) for hook in HOOKS_BEFORE_TRACING)
        or (isinstance(callback, keras_callbacks.BackupAndRestore) and not is_built)
        for callback in callbacks
    )


def acts_in_validation(callbacks: Callbacks) -> bool:
    """Whether a callback is called at batches of a validation, or before it, and may change the model.

    SwapEMAWeights does.
    """
    return any(
        overrides(callback, "on_test_begin") or not is_called_per_epoch_only(callback, "test")
        for callback in flat_callbacks(callbacks)
    )


def acts_between_epochs(callbacks: Iterable[Callback]) -> bool:
    """Whether a callback of the user's own is called between epochs, and may change the model."""
    return any(_is_users_own(callback, hook) for callback in callbacks for hook in HOOKS_BETWEEN_EPOCHS)


def is_called_per_epoch_only(callback: Callback, kind: Kind) -> bool:
    """Whether a callback does its work without being called at every batch of a kind of loop."""
    if type(callback) in (keras_callbacks.ProgbarLogger, keras_callbacks.TerminateOnNaN):
        return True  # the one shows less, the other is done inside the graph
    if type(callback) in (keras_callbacks.ModelCheckpoint, keras_callbacks.BackupAndRestore):
        return bool(callback.save_freq == "epoch")  # its hook does nothing then
    return not any(overrides(callback, hook) for hook in BATCH_HOOKS[kind])


def overrides(callback: Callback, hook: str) -> bool:
    """Whether a callback has a method of its own, in its class or on the instance."""
    return getattr(type(callback), hook, None) is not getattr(keras_callbacks.Callback, hook) or hook in vars(callback)


def _is_users_own(callback: Callback, hook: str) -> bool:
    method = getattr(type(callback), hook, None)
    return hook in vars(callback) or not str(getattr(method, "__module__", "")).startswith("keras.src.")


def may_stop(callbacks: Iterable[Callback]) -> bool:
    """Whether a callback may end the fit before its last epoch: Keras' own that do, and any with code of the user."""
    return acts_between_epochs(callbacks) or any(
        isinstance(callback, (keras_callbacks.EarlyStopping, keras_callbacks.LambdaCallback)) for callback in callbacks
    )


def has_listeners(container: CallbackList) -> bool:
    """Whether a callback other than the History is to be called at each epoch, for which the graph has to be left."""
    return any(type(callback) is not keras_callbacks.History for callback in container.callbacks)


def callback_list(callbacks: Callbacks, model: Model, *, verbose: Any, n_steps: int) -> CallbackList:
    """Return the callbacks of ``evaluate`` or ``predict`` as Keras calls them."""
    return keras_callbacks.CallbackList(
        callbacks, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=n_steps, model=model
    )


def training_callback_list(
    callbacks: Callbacks, model: Model, *, verbose: Any, n_epochs: int, n_steps: int
) -> CallbackList:
    """Return the callbacks of ``fit``, with its History, as Keras calls them."""
    return keras_callbacks.CallbackList(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=n_epochs,
        steps=n_steps,
        model=model,
    )


def report_validation(container: CallbackList, metrics: Logs) -> None:
    """Call the callbacks as a validation does; its metrics are named without "val_" there."""
    container.on_test_begin()
    container.on_test_end(metrics)


def report_nan(container: CallbackList, batch: int, logs: Logs) -> None:
    """Let TerminateOnNaN do what it does at the batch where the epoch ended."""
    if np.isfinite(logs.get("loss", 0.0)):
        return
    for callback in container.callbacks:
        if type(callback) is keras_callbacks.TerminateOnNaN:
            callback.on_batch_end(batch, logs)


@contextmanager
def handing_over_callbacks(container: CallbackList) -> Iterator[None]:
    """Let Keras go on with callbacks that were called for the beginning of an epoch, where it takes over there."""
    try:
        yield
    except KerasTakesOverError as error:
        if not container._history.epoch or error.epoch is not None:
            for hook in ("on_train_begin", "on_epoch_begin"):
                _skip_once(container, hook)
            error.callbacks = container
        raise


def _skip_once(container: CallbackList, hook: str) -> None:
    method = getattr(container, hook)
    setattr(container, hook, lambda *_args, **_keywords: setattr(container, hook, method))
