"""What a program is handed, by name: the order of its arguments stands here and nowhere else."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.types import Orders, Tensor, TensorSpec, ValidationPlan

_SCALAR = tf.TensorSpec((), tf.int32)


class PassInputs(NamedTuple):
    """The data of one pass: tensors, or their types for tracing.

    Parameters
    ----------
    rows : tuple of Tensor
        Each of shape (n_samples, ...), or more rows of which the first are used.
    n_samples, batch_size : Tensor
        Integers.
    """

    rows: tuple[Tensor, ...]
    n_samples: Tensor
    batch_size: Tensor

    @classmethod
    def of(cls, data: Batches | None) -> PassInputs:
        """Return the tensors of a call's data; of no data, sizes alone."""
        if data is None:
            return cls((), tf.constant(0), tf.constant(1))
        return cls(tuple(data.tensors), tf.constant(data.n_samples), tf.constant(data.batch_size))

    @classmethod
    def specs(cls, rows: list[TensorSpec]) -> PassInputs:
        """Return the types to trace a function for."""
        return cls(tuple(rows), _SCALAR, _SCALAR)

    @property
    def n_steps(self) -> Tensor:
        """Batches of the pass, inside the graph."""
        return (self.n_samples + self.batch_size - 1) // self.batch_size


class StreamInputs(NamedTuple):
    """The data of one pass that come out of an iterator.

    Parameters
    ----------
    iterator : Tensor
        The handle of a Dataset's iterator.
    n_steps : Tensor
        Batches to take from it at most.
    """

    iterator: Tensor
    n_steps: Tensor

    @classmethod
    def of(cls, iterator: Any, n_steps: int) -> StreamInputs:
        """Return the tensors of a pass."""
        return cls(iterator._iterator_resource, tf.constant(n_steps))

    @classmethod
    def specs(cls) -> StreamInputs:
        """Return the types to trace a function for."""
        return cls(tf.TensorSpec((), tf.resource), _SCALAR)


def specs_of(data: Batches | Stream | None) -> PassInputs | StreamInputs:
    """Return the types of a pass over data, to trace a function for."""
    return StreamInputs.specs() if isinstance(data, Stream) else PassInputs.specs([] if data is None else data.specs)


class EpochInputs(NamedTuple):
    """The data of a run of epochs: tensors, or their types for tracing.

    Parameters
    ----------
    train, validation : PassInputs, or StreamInputs to train on
        What to train on, and what to validate on.
    orders : Tensor of shape (1, n_samples) or (n_epochs, n_samples)
        In which order the rows are fed; one row: the same in all epochs.
    validates : Tensor of shape (n_epochs,)
        After which epochs to validate.
    n_padded : Tensor
        Rows that XLA is handed.
    """

    train: Any
    validation: PassInputs
    orders: Tensor
    validates: Tensor
    n_padded: Tensor

    @classmethod
    def of(cls, train: Batches, validation: Batches | None, *, orders: Orders, plan: ValidationPlan) -> EpochInputs:
        """Return the tensors of a run."""
        return cls(
            train=PassInputs.of(train),
            validation=PassInputs.of(validation),
            orders=tf.constant(orders),
            validates=tf.constant(plan),
            n_padded=tf.constant(train.n_padded),
        )

    @classmethod
    def of_stream(cls, train: StreamInputs, validation: Batches | None, *, plan: ValidationPlan) -> EpochInputs:
        """Return the tensors of an epoch whose batches come out of an iterator."""
        return cls(
            train=train,
            validation=PassInputs.of(validation),
            orders=tf.zeros((1, 0), tf.int64),
            validates=tf.constant(plan),
            n_padded=tf.constant(0),
        )

    @classmethod
    def specs(cls, train: Batches | Stream, validation: Batches | None) -> EpochInputs:
        """Return the types to trace a function for."""
        return cls(
            train=specs_of(train),
            validation=PassInputs.specs([] if validation is None else validation.specs),
            orders=tf.TensorSpec((None, None), tf.int64),
            validates=tf.TensorSpec((None,), tf.bool),
            n_padded=_SCALAR,
        )

    def order_of(self, number: Tensor) -> Tensor:
        """Return an epoch's order, inside the graph."""
        return self.orders[tf.minimum(number, tf.shape(self.orders)[0] - 1)]


def some_rows(rows: Tensor, first: Tensor, count: Tensor | int) -> Tensor:
    """Return as many rows from the first on; their number is known to the graph if it is a Python number."""
    return tf.slice(rows, [first, *([0] * (rows.shape.rank - 1))], [count, *rows.shape[1:]])


def as_from_an_iterator(batch: list[Tensor], size: int | None) -> list[Tensor]:
    """Return a batch's tensors, of which the graph knows no more than of those of Keras' iterator.

    TensorFlow would find that all have equally many rows, and add them up in another order.
    """
    if size is not None or not batch:
        return batch
    optional = tf.experimental.Optional.from_value(tuple(batch))
    values: list[Tensor] = tf.raw_ops.OptionalGetValue(
        optional=optional._variant_tensor,
        output_types=[rows.dtype for rows in batch],
        output_shapes=[(None, *rows.shape[1:]) for rows in batch],
    )
    return values
