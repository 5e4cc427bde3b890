"""The data of a call as tensors, converted as Keras' own array adapter does it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

from gridfleet.worker.compiled_fit.data.keras_traces import types_signature
from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.types import ArrayLike, Structure, Tensor, TensorSpec


@dataclass(frozen=True)
class Batches:
    """Arrays of one pass over data.

    Parameters
    ----------
    structure : nested tuples and dicts of tensors
        ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, as Keras hands it to ``train_step``.
    tensors : list of Tensor
        Its leaves, each of shape (n_samples, ...).
    n_samples : int
        Rows.
    batch_size : int
        Rows of a batch; the last one may be shorter.
    knows_size : bool, default=True
        Whether Keras would trace the model's step for batches of this size alone, or has done so.
    """

    structure: Structure
    tensors: list[Tensor]
    n_samples: int
    batch_size: int
    knows_size: bool = True

    @property
    def n_steps(self) -> int:
        """Batches of one pass."""
        return -(-self.n_samples // self.batch_size)

    @property
    def specs(self) -> list[TensorSpec]:
        """The types that a program must accept: those of the tensors, with any number of rows."""
        return [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in self.tensors]

    @property
    def fixed_batch_size(self) -> int | None:
        """Rows of every batch where all have as many, and Keras' step was traced for that size.

        None otherwise.

        Keras' graph knows the size in the one case and not in the other, and TensorFlow then rounds in another way
        here and there: it divides by a known size as it multiplies by the inverse, say.
        """
        return self.batch_size if self.knows_size and self.n_samples % self.batch_size == 0 else None

    @property
    def first_batch_size(self) -> int:
        """Rows of the first batch, and of all others but the last one."""
        return min(self.batch_size, self.n_samples)

    @property
    def has_remainder(self) -> bool:
        """Whether the last batch is shorter than the first one."""
        return self.n_samples % self.first_batch_size != 0

    @property
    def n_padded(self) -> int:
        """Rows that XLA is handed, so that splits of nearly equal size have one shape."""
        return padded_size(self.n_samples)

    @property
    def signature(self) -> tuple[Hashable, ...]:
        """The part of the data's types that two calls must have in common to use one program."""
        return types_signature(self.structure, self.tensors)

    def pack(self, batch: list[Tensor]) -> Structure:
        """Return a batch's tensors as Keras hands them to a step."""
        return keras.tree.pack_sequence_as(self.structure, batch)

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(tf.reduce_all(tf.math.is_finite(one))) for one in self.tensors if one.dtype.is_floating)

    def without_rows(self) -> Batches:
        """Return the types that a step is traced for, without the data."""
        return replace(self, structure=keras.tree.map_structure(lambda _: 0, self.structure), tensors=self.specs)

    def first_execution(self, steps_per_execution: int) -> Batches:
        """Return the batches that Keras still runs if a callback stopped the model before the first one."""
        return replace(self, n_samples=min(self.batch_size * steps_per_execution, self.n_samples))

    def symbolic(self) -> Structure:
        """Return the structure with Keras' symbolic tensors, to build a model's state with."""
        return keras.tree.map_structure(
            lambda tensor: keras.KerasTensor((None, *tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype)),
            self.structure,
        )


def padded_size(n: int) -> int:
    """Round a number of rows up, so that splits of nearly equal size have one shape.

    Parameters
    ----------
    n : int
        Rows.

    Returns
    -------
    int
        More than `n`, a multiple of an eighth of the power of two below it: at most 12.5 % more.
    """
    grain = 1 << max(0, n.bit_length() - 4)
    return (n // grain + 1) * grain


def make_batches(
    x: ArrayLike,
    y: ArrayLike = None,
    sample_weight: ArrayLike = None,
    *,
    batch_size: int | None,
    class_weight: Any = None,
) -> Batches:
    """Convert arrays to tensors.

    Parameters
    ----------
    x, y, sample_weight : nested structure of array-like
        As for Keras' ``fit``.
    batch_size : int or None
        None: 32, as in Keras.
    class_weight : dict, default=None
        As for Keras' ``fit``; becomes a sample weight.

    Returns
    -------
    Batches

    Raises
    ------
    NotEligibleError
        If something is no dense tensor.
    """
    adapter = ArrayDataAdapter(x, y, sample_weight, batch_size=batch_size, class_weight=class_weight)
    arrays = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    structure = keras.tree.map_structure(
        lambda array: None if array is None else tf.convert_to_tensor(array), keras.tree.lists_to_tuples(arrays)
    )
    tensors = keras.tree.flatten(structure)
    if any(tensor is None for tensor in tensors):
        raise NotEligibleError("a part of the data is None")
    if any(tensor.shape.rank == 0 for tensor in tensors):
        raise NotEligibleError("a part of the data has no rows")
    if not adapter._num_samples:
        raise NotEligibleError("there are no rows")
    return Batches(structure, tensors, adapter._num_samples, index(adapter._batch_size))  # numpy's 64 bits are too many
