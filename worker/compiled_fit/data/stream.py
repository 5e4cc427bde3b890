"""Data that come batch by batch out of Keras' iterator: a Dataset, or arrays of which an epoch takes some batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TFEpochIterator

from gridfleet.worker.compiled_fit.data.keras_traces import types_signature
from gridfleet.worker.compiled_fit.errors import BatchByBatchError, NotEligibleError
from gridfleet.worker.compiled_fit.types import Model, Structure, Tensor, TensorSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """Batches as Keras' iterator delivers them.

    Parameters
    ----------
    source : TFEpochIterator or None
        Keras' own, which knows when an epoch ends and when the data begin anew; None in a program, which outlives it.
    structure : nested tuples and dicts of TensorSpec
        What a batch is, as Keras hands it to ``train_step``.
    knows_size : bool, default=True
        Whether Keras would trace the model's step for batches of this size alone, or has done so.
    """

    source: Any
    structure: Structure
    knows_size: bool = True

    @property
    def n_steps(self) -> int:
        """Batches of an epoch."""
        steps: int = self.source.num_batches
        return steps

    @property
    def specs(self) -> list[TensorSpec]:
        """The types that a program must accept, with any number of rows."""
        return [tf.TensorSpec((None, *spec.shape[1:]), spec.dtype) for spec in tf.nest.flatten(self.structure)]

    @property
    def fixed_batch_size(self) -> int | None:
        """Rows of every batch where the iterator knows it, and Keras' step was traced for that size; None otherwise."""
        size: int | None = tf.nest.flatten(self.structure)[0].shape[0]
        return size if self.knows_size else None

    @property
    def signature(self) -> tuple[Hashable, ...]:
        """The part of the data's types that two calls must have in common to use one program."""
        return types_signature(self.structure, keras.tree.flatten(self.structure))

    def pack(self, batch: list[Tensor]) -> Structure:
        """Return a batch's tensors as Keras hands them to a step."""
        return tf.nest.pack_sequence_as(self.structure, batch)

    def without_rows(self) -> Stream:
        """Return the types that a step is traced for, without the data."""
        return replace(self, source=None)

    def symbolic(self) -> Structure:
        """Return the structure with Keras' symbolic tensors, to build a model's state with."""
        return tf.nest.map_structure(
            lambda spec: keras.KerasTensor((None, *spec.shape[1:]), keras.backend.standardize_dtype(spec.dtype)),
            self.structure,
        )

    def one_pass(self, run: Callable[[Any, int], tuple[T, int]], *, is_cut: Callable[[T], bool]) -> tuple[T, int]:
        """Run an epoch's batches at one go, and have Keras' iterator see what its own loop would have taken from it.

        Parameters
        ----------
        run : callable
            Takes the iterator and how many batches to take from it at most; returns a result, and how many it took.
        is_cut : callable
            Whether Keras' loop would break off after them, told by the result.

        Returns
        -------
        result, n_steps
            Of `run`.
        """
        executions = self.source._enumerate_iterator()
        _, _, iterator = next(executions)  # there is a batch: see `_check_dataset`
        result, n_steps = run(iterator, self._limit())
        for _ in range(-(-n_steps // self.source.steps_per_execution) - 1):
            next(executions)
        if not is_cut(result):
            for _ in executions:  # at its end Keras' iterator begins anew, or warns that batches ran out
                pass
        return result, n_steps

    def _limit(self) -> int:
        """Return how many batches Keras' loop asks for that has asked for the first ones."""
        source, at_once = self.source, self.source.steps_per_execution
        steps, n_batches = source.steps_per_epoch or source._num_batches, source._num_batches
        n_executions = -(-steps // at_once)
        if n_batches:
            seen = source._steps_seen - at_once
            n_executions = min(n_executions, -(-(n_batches - seen) // at_once))
        return int(n_executions * at_once)


def is_dataset(x: Any) -> bool:
    """Whether data are a ``tf.data.Dataset``."""
    return isinstance(x, tf.data.Dataset)


def make_stream(
    model: Model, x: Any, y: Any = None, sample_weight: Any = None, *, source: Any = None, **options: Any
) -> Stream:
    """Return data as Keras' iterator delivers them.

    Parameters
    ----------
    model : keras.Model
        That is to take them.
    x, y, sample_weight : Dataset, or nested structure of array-like
        As for Keras' ``fit``.
    source : TFEpochIterator, default=None
        Keras' iterator over them; None: a new one.
    **options : dict
        Those of ``TFEpochIterator``.

    Returns
    -------
    Stream

    Raises
    ------
    NotEligibleError
        If a batch has something else than dense tensors with rows.
    BatchByBatchError
        If nobody knows how many batches a Dataset has.
    """
    steps = options.get("steps_per_epoch")
    if steps and steps < 0:
        raise NotEligibleError("a number of steps is negative")  # Keras runs to the end of the data then
    if is_dataset(x):
        _check_dataset(model, x, steps)
    if source is None:
        source = TFEpochIterator(
            x=x,
            y=y,
            sample_weight=sample_weight,
            distribute_strategy=model.distribute_strategy,
            steps_per_execution=model.steps_per_execution,
            **options,
        )
    structure = source._distributed_dataset.element_spec
    check_types(structure)
    source.reset()
    return Stream(source, structure)


def check_types(structure: Structure) -> None:
    """Make sure that batches have dense tensors with rows, and nothing else.

    Raises
    ------
    NotEligibleError
        If they do not.
    """
    specs = tf.nest.flatten(structure)
    if not specs or not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        raise NotEligibleError("a batch of the Dataset has a part that is no dense tensor")
    if any(spec.dtype in (tf.string, tf.variant, tf.resource) for spec in specs):
        raise NotEligibleError("the data are objects or strings")
    if any(spec.shape.rank in (None, 0) for spec in specs):
        raise NotEligibleError("the Dataset is not batched, or does not say what shape a batch has")
    if len({spec.shape[0] for spec in specs}) > 1:
        raise NotEligibleError("the parts of a batch differ in what is known of their size")


def _check_dataset(model: Model, dataset: Any, steps: int | None) -> None:
    n_batches = int(dataset.cardinality())
    # at the end Keras' step fails for want of a batch, when it may have drawn seeds already
    if n_batches in (0, tf.data.UNKNOWN_CARDINALITY) or (not steps and n_batches == tf.data.INFINITE_CARDINALITY):
        raise BatchByBatchError("the Dataset has no batches, or does not know how many")
    handles = {id(_handle(variable)) for variable in model.variables}
    if any(id(tensor) in handles for function in _functions_of(dataset) for tensor in function.captured_inputs):
        raise NotEligibleError("the Dataset computes with the model's variables")


def _handle(variable: Any) -> Any:
    return getattr(variable.value, "handle", None)


def _functions_of(dataset: Any) -> Iterator[Any]:
    for function in dataset._functions():
        yield function.function
    for one in dataset._inputs():
        yield from _functions_of(one)
