"""The graphs that TensorFlow keeps in Keras' ``train_function``, ``test_function`` and ``predict_function`` of a model.

Keras goes on with those graphs in all calls that follow, whatever was changed in the model since. So calls that Keras'
own loop runs and those that programs run have to know each other's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function.polymorphic_function import Function

from gridfleet.worker.compiled_fit.types import ConcreteFunction, Structure, Tensor, TensorSpec


def types_signature(structure: Structure, leaves: Iterable[Tensor | TensorSpec]) -> tuple[Hashable, ...]:
    """Return the part of a batch's types that two calls must have in common to use one graph.

    Parameters
    ----------
    structure : nested tuples and dicts
        As Keras hands a batch to a step.
    leaves : iterable of Tensor or TensorSpec
        Its leaves, or those of all rows.
    """
    return (
        str(keras.tree.map_structure(lambda _: 0, structure)),
        *((tuple(one.shape[1:]), one.dtype.name) for one in leaves),
    )


def traced_batches(function: Callable[..., Any]) -> list[Structure]:
    """Return the types of the batches that Keras' own loop has traced a model's function for.

    Parameters
    ----------
    function : callable
        ``train_function``, ``test_function`` or ``predict_function``.
    """
    outer = _outer_function(function)
    return [_batch_of(concrete) for concrete in ([] if outer is None else outer._list_all_concrete_functions())]


def _batch_of(concrete: ConcreteFunction) -> Structure:
    """Return the types of the batch that a graph takes out of an iterator, or as the first one of a list."""
    (argument,), _ = concrete.structured_input_signature
    return argument._element_spec if isinstance(argument, tf.data.IteratorSpec) else argument[0]


def trace_for(function: Callable[..., Any], batch: Structure) -> None:
    """Trace a model's function as Keras' own loop does at a batch of these types.

    Parameters
    ----------
    function : callable
        ``train_function``, ``test_function`` or ``predict_function``.
    batch : nested tuples and dicts of TensorSpec
    """
    outer = _outer_function(function)
    if outer is not None:
        outer.get_concrete_function([batch] if outer is function else tf.data.IteratorSpec(batch))


def find_step(function: Callable[..., Any] | None, batch: Structure) -> ConcreteFunction | None:
    """Return the graph of a step that a model's function was traced for and would run now, or None.

    Parameters
    ----------
    function : callable or None
        ``train_function`` or ``test_function``.
    batch : nested tuples and dicts of TensorSpec
        Types of the batch that it takes.
    """
    step = _step_function(function)
    for concrete in reversed([] if step is None else step._list_all_concrete_functions()):
        (argument,), _ = concrete.structured_input_signature
        if _types(argument) == _types(batch):
            return concrete  # the last one: the first call is traced twice if it makes variables
    return None


def find_function(function: Callable[..., Any], batch: Structure) -> ConcreteFunction | None:
    """Return what a model's function over an iterator, or ``predict_function``, was traced as for a batch, or None."""
    outer = _outer_function(function)
    for concrete in reversed([] if outer is None else outer._list_all_concrete_functions()):
        if _types(_batch_of(concrete)) == _types(batch):
            return concrete
    return None


def trace_step_of(function: Callable[..., Any] | None, batch: Structure) -> ConcreteFunction | None:
    """Trace a step as the part of a model's function that it is, where Keras' own loop finds it later; None: it can't.

    Parameters
    ----------
    function : callable or None
        ``train_function`` or ``test_function``.
    batch : nested tuples and dicts of TensorSpec
        Types of the batch that it takes.
    """
    step = _step_function(function)
    if step is None or not _has_keras_order(batch):
        return None
    return step.get_concrete_function(batch)


def _has_keras_order(batch: Structure) -> bool:
    """Whether TensorFlow takes the leaves in Keras' order."""
    n_leaves = len(keras.tree.flatten(batch))
    places = keras.tree.pack_sequence_as(batch, list(range(n_leaves)))
    return bool(tf.nest.flatten(places) == list(range(n_leaves)))


def _types(batch: Structure) -> tuple[str, list[Any]]:
    leaves = keras.tree.flatten(batch)
    return str(keras.tree.map_structure(lambda _: 0, batch)), [(one.shape.as_list(), one.dtype) for one in leaves]


def _outer_function(function: Callable[..., Any]) -> Function | None:
    """Return TensorFlow's function over an iterator, or the one of ``predict_function``."""
    found = function if isinstance(function, Function) else _held_by(function, "multi_step_on_iterator")
    return found if isinstance(found, Function) else None


def _step_function(function: Callable[..., Any] | None) -> Function | None:
    """Return TensorFlow's function of a step, which the one over an iterator calls."""
    found = _held_by(_held_by(function, "one_step_on_data"), "step_func")
    return found if isinstance(found, Function) else None


def _held_by(function: Callable[..., Any] | None, name: str) -> Any:
    """Return what a function holds in its closure (keras/src/backend/tensorflow/trainer.py)."""
    return inspect.getclosurevars(function).nonlocals.get(name) if inspect.isfunction(function) else None
