"""A pass over the batches of an iterator as a loop in TensorFlow's graph."""

from __future__ import annotations

import tensorflow as tf

from gridfleet.worker.compiled_fit.programs.inputs import StreamInputs
from gridfleet.worker.compiled_fit.programs.results import RESULT
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.types import Model, Tensor


class StreamLoop:
    """A step at each batch that an iterator has, up to a number of them.

    The next batch is fetched in the step before, and only if it is wanted: what is left in the iterator, another epoch
    may begin with.

    Parameters
    ----------
    model : keras.Model
        The step's.
    step : Step
        What to do with a batch.
    watches_for_nan : bool, default=False
        Whether to stop at the first batch after which the loss is not finite.
    """

    def __init__(self, model: Model, step: Step, *, watches_for_nan: bool = False) -> None:
        self._model = model
        self._step = step
        self._watches_for_nan = watches_for_nan
        self._types = [spec.dtype for spec in step.specs]
        self._shapes = [(step.batch_size, *spec.shape[1:]) for spec in step.specs]

    def __call__(self, data: StreamInputs, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go over the batches; returns the number of those that were run, and the last one's logs."""
        n_done, _, logs = tf.while_loop(
            lambda _number, batch, _logs: tf.raw_ops.OptionalHasValue(optional=batch),
            lambda number, batch, _: self._run_batch(data, number, batch),
            [tf.constant(0), self._next(data, data.n_steps > 0), self._step.no_logs],
            parallel_iterations=1,
        )
        return n_done, logs

    def _run_batch(self, data: StreamInputs, number: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = tf.raw_ops.OptionalGetValue(optional=batch, output_types=self._types, output_shapes=self._shapes)
        logs = self._step.call(values)
        goes_on = number + 1 < data.n_steps
        if self._watches_for_nan:
            is_finite = tf.math.is_finite(tf.cast(self._step.loss(self._model, logs), RESULT))
            goes_on = tf.logical_and(goes_on, is_finite)
        return number + 1, self._next(data, goes_on), logs

    def _next(self, data: StreamInputs, is_wanted: Tensor) -> Tensor:
        return tf.cond(
            is_wanted,
            lambda: tf.raw_ops.IteratorGetNextAsOptional(
                iterator=data.iterator, output_types=self._types, output_shapes=self._shapes
            ),
            tf.raw_ops.OptionalNone,
        )
