"""The data of a call as tensors, converted as Keras' own array adapter does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import Any
from weakref import WeakKeyDictionary, ref

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

from gridfleet.worker.compiled_fit.eligibility import NotEligibleError


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

    structure: Any
    tensors: list[Any]
    n_samples: int
    batch_size: int
    knows_size: bool = True

    @property
    def n_steps(self) -> int:
        """Batches of one pass."""
        return -(-self.n_samples // self.batch_size)

    @property
    def specs(self) -> list[Any]:
        """What a program must accept: the tensors' types, with any number of rows."""
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
    def signature(self) -> tuple[Any, ...]:
        """Hashable: what two calls must share to share a program."""
        return (
            str(keras.tree.map_structure(lambda _: 0, self.structure)),
            *((tuple(tensor.shape[1:]), tensor.dtype.name) for tensor in self.tensors),
        )

    def without_rows(self) -> Batches:
        """Return what a step is traced for, without the data."""
        return replace(self, structure=keras.tree.map_structure(lambda _: 0, self.structure), tensors=self.specs)

    def symbolic(self) -> Any:
        """Return the structure with Keras' symbolic tensors, to build a model's state with."""
        return keras.tree.map_structure(
            lambda tensor: keras.KerasTensor((None, *tensor.shape[1:]), keras.backend.standardize_dtype(tensor.dtype)),
            self.structure,
        )


#: For models that were trained or evaluated: what they were compiled with then, and for which sizes of batches their
#: steps were traced since; None stands for any.
_traced_for: WeakKeyDictionary[Any, tuple[Any, dict[Any, list[int | None]]]] = WeakKeyDictionary()


def as_traced(model: Any, kind: str, data: Batches) -> Batches:
    """Return batches as Keras' step sees them.

    Between two ``compile`` the steps that Keras traced stay. For a second size of batches TensorFlow traces one for any
    number of rows (``reduce_retracing``), which takes all sizes but the first from then on.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    kind : {"train", "test"}
        Which step.
    data : Batches
        What it is to run on.

    Returns
    -------
    Batches
    """
    traced = _traced_since_compile(model).setdefault((kind, data.signature), [])
    size = data.fixed_batch_size
    if size not in traced:
        size = None if traced else size
        if size not in traced:
            traced.append(size)
    return data if size == data.fixed_batch_size else replace(data, knows_size=False)


def was_trained(model: Any) -> bool:
    """Whether a model was trained here since it was compiled, so that Keras would go on with the step of then."""
    return any(kind == "train" for kind, _ in _traced_since_compile(model))


def _traced_since_compile(model: Any) -> dict[Any, list[int | None]]:
    compiled, sizes = _traced_for.get(model, (lambda: None, {}))
    if compiled() is not model._compile_config:
        compiled, sizes = ref(model._compile_config), {}
        _traced_for[model] = compiled, sizes
    return sizes


def make_batches(
    x: Any, y: Any = None, sample_weight: Any = None, *, batch_size: int | None, class_weight: Any = None
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
