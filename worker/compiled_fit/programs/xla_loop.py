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
        """Train on the rows in an order; returns the number of batches, and the last one's logs."""
        n_full = inputs.train.n_samples // self._batch_size
        n_steps = (inputs.train.n_samples + self._batch_size - 1) // self._batch_size
        # rows of splits that differ by one are padded to one shape, which XLA compiles once
        padding = [[0, inputs.n_padded - inputs.train.n_samples]]
        shuffled = [tf.gather(rows, tf.pad(order, padding)) for rows in inputs.train.rows]
        logs = self._full_batches(n_full, *shuffled)

        def last_batch() -> Tensor:
            first = n_full * self._batch_size
            return self._step.call([rows[first : inputs.train.n_samples] for rows in shuffled])

        return n_steps, tf.cond(n_full < n_steps, last_batch, lambda: logs)


def _compiled_loop(step: Step, batch_size: int) -> Callable[..., Tensor]:
    def run_batch(number: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return number + 1, step.call([some_rows(row, number * batch_size, batch_size) for row in rows])

    def full_batches(n_full: Tensor, *rows: Tensor) -> Tensor:
        _, logs = tf.while_loop(
            lambda number, _: number < n_full,
            lambda number, _: run_batch(number, rows),
            [tf.constant(0), step.no_logs],
            parallel_iterations=1,
        )
        return logs

    compiled: Callable[..., Tensor] = tf.function(full_batches, autograph=False, jit_compile=True)
    return compiled
