"""A pass over batches as a loop in TensorFlow's graph."""

from __future__ import annotations

import tensorflow as tf

from gridfleet.worker.compiled_fit.programs.inputs import PassInputs, as_from_an_iterator, some_rows
from gridfleet.worker.compiled_fit.programs.results import RESULT
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.types import Model, Tensor


class GraphLoop:
    """A step at each batch.

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

    def __call__(self, data: PassInputs, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go over the rows in an order; returns the number of batches that were run, and the last one's logs."""
        n_steps = data.n_steps
        n_done, _, logs = tf.while_loop(
            lambda number, is_finite, _: tf.logical_and(number < n_steps, is_finite),
            lambda number, is_finite, _: self._run_batch(data, order, number, is_finite),
            [tf.constant(0), tf.constant(True), self._step.no_logs],
            parallel_iterations=1,
        )
        return n_done, logs

    def _run_batch(
        self, data: PassInputs, order: Tensor | None, number: Tensor, is_finite: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logs = self._step.call(as_from_an_iterator(self._batch(data, order, number), self._step.batch_size))
        if self._watches_for_nan:
            is_finite = tf.math.is_finite(tf.cast(self._step.loss(self._model, logs), RESULT))
        return number + 1, is_finite, logs

    def _batch(self, data: PassInputs, order: Tensor | None, number: Tensor) -> list[Tensor]:
        first = number * data.batch_size
        size = self._step.batch_size
        count = tf.minimum(data.batch_size, data.n_samples - first) if size is None else size
        if order is None:
            return [some_rows(rows, first, count) for rows in data.rows]
        places = some_rows(order, first, count)
        return [tf.gather(rows, places) for rows in data.rows]
