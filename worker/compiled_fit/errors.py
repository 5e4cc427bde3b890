"""Why a call has to run as Keras runs it; nothing here reaches a user but as the reason of a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

#: How the lines of TensorFlow's errors begin that say where it failed, and not why.
WHERE_IT_FAILED = ("Graph execution error:", "Detected at node", "File ", "<stack traces", "[[{{node")
#: What XLA names where it fails, and what that means.
XLA_IN_WORDS = {"TensorList": "XLA can't compile a recurrent layer behind a layer that is trained (an Embedding, say)"}
#: Characters of an error's message that a report keeps.
MAX_MESSAGE = 200


class KerasTakesOverError(Exception):
    """A call has to run as Keras runs it; the message is the reason, as a sentence without a full stop.

    Attributes
    ----------
    callbacks : CallbackList or None
        For Keras' own ``fit``, if callbacks have already been called for the beginning of an epoch.
    epoch : int or None
        That epoch, if it is not the first one.
    """

    callbacks: Any = None
    epoch: int | None = None


class NotEligibleError(KerasTakesOverError):
    """Compiled loops can't do what the call asks for."""


class BatchByBatchError(KerasTakesOverError):
    """Python is called at every batch, or hands it over: Keras' own loop runs, whose function models can share."""


class ProgramFailedError(KerasTakesOverError):
    """TensorFlow failed inside a program; the model is as it was before."""


class StepChangedError(KerasTakesOverError):
    """A callback had Keras make its step anew between two epochs; the model is as that callback left it."""


@contextmanager
def running_a_program() -> Iterator[None]:
    """Turn TensorFlow's failures at run time into `ProgramFailedError`."""
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        raise ProgramFailedError(_summary(error)) from error


@contextmanager
def preparing_a_program() -> Iterator[None]:
    """Leave whatever can't be converted or traced to Keras, which says better what is wrong, or can do it."""
    try:
        yield
    except KerasTakesOverError:
        raise
    except Exception as error:
        raise ProgramFailedError(_summary(error)) from error


def in_words(message: str) -> str:
    """Return what a message of XLA's means, where that is known."""
    return next((words for name, words in XLA_IN_WORDS.items() if name in message), message)


def _summary(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(WHERE_IT_FAILED)]
    reason = next(iter(reasons or lines), "")
    return f"the program failed with {type(error).__name__}: {reason[:MAX_MESSAGE]}"
