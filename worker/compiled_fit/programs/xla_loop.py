"""A pass over batches whose full ones XLA compiles."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs, some_rows
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.types import Tensor


class XlaLoop:
    """A step at each full batch, in XLA; the shorter last one runs in the graph, which spares a second compilation.

    Parameters
    ----------
    step : Step
        For the last batch.
    full_step : Step
        For the others.
    batch_size : int
        Their rows.
    """

    def __init__(self, step: Step, full_step: Step, batch_size: int) -> None:
        self._step = step
        self._batch_size = batch_size
        self._full_batches = _compiled_loop(full_step, batch_size)

    def __call__(self, inputs: EpochInputs, order: Tensor) -> tuple[Tensor, Tensor]:
        """Train on the rows in an order; returns the number of batches, and no logs."""
        n_full = inputs.train.n_samples // self._batch_size
        n_steps = (inputs.train.n_samples + self._batch_size - 1) // self._batch_size
        # rows of splits that differ by one are padded to one shape, which XLA compiles once
        padding = [[0, inputs.n_padded - inputs.train.n_samples]]
        shuffled = [tf.gather(rows, tf.pad(order, padding)) for rows in inputs.train.rows]
        self._full_batches(n_full, *shuffled)

        def last_batch() -> Tensor:
            first = n_full * self._batch_size
            self._step.call([rows[first : inputs.train.n_samples] for rows in shuffled])
            return tf.constant(0)

        tf.cond(n_full < n_steps, last_batch, lambda: tf.constant(0))
        return n_steps, self._step.no_logs


def _compiled_loop(step: Step, batch_size: int) -> Callable[..., Tensor]:
    def run_batch(number: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor]:
        step.call([some_rows(row, number * batch_size, batch_size) for row in rows])
        return (number + 1,)

    def full_batches(n_full: Tensor, *rows: Tensor) -> Tensor:
        return tf.while_loop(
            lambda number: number < n_full,
            lambda number: run_batch(number, rows),
            [tf.constant(0)],
            parallel_iterations=1,
        )

    compiled: Callable[..., Tensor] = tf.function(full_batches, autograph=False, jit_compile=True)
    return compiled
