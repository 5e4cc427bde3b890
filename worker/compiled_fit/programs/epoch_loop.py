"""Epochs of training as a loop in TensorFlow's graph, each followed by a validation where one is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from gridfleet.worker.compiled_fit.programs.graph_loop import GraphLoop
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs, PassInputs
from gridfleet.worker.compiled_fit.programs.results import RESULT
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.types import Model, Tensor, TensorArray

#: One pass over the rows in an order: returns the number of batches that were run, and the last one's logs.
TrainingPass: TypeAlias = Callable[[EpochInputs, Tensor], tuple[Tensor, Tensor]]


class EpochLoop:
    """A run of epochs, to be traced.

    Parameters
    ----------
    model : keras.Model
        The steps'.
    train : Step
        Whose results an epoch has.
    test : Step or None
        For the validation.
    train_pass : callable
        Trains one epoch.
    is_one : bool, default=False
        Whether a run is one epoch, for which there need be no loop around it.
    """

    def __init__(
        self, model: Model, train: Step, test: Step | None, train_pass: TrainingPass, *, is_one: bool = False
    ) -> None:
        self._model = model
        self._is_one = is_one
        self._train = train
        self._train_pass = train_pass
        self._validation = None if test is None else _Validation(model, test)
        self._n_results = train.layout.size + (0 if test is None else test.layout.size)

    def run(self, inputs: EpochInputs) -> tuple[Tensor, Tensor]:
        """Return the results, of shape (n_epochs, n_results), and the number of the last epoch's batches."""
        if self._is_one:
            n_steps, results = self._train_and_validate(inputs, 0)
            return results[None], n_steps
        n_epochs = tf.shape(inputs.validates)[0]
        history = tf.TensorArray(RESULT, size=n_epochs, element_shape=(self._n_results,))
        _, n_steps, history = tf.while_loop(
            lambda number, *_: number < n_epochs,
            lambda number, _, history: self._run_epoch(inputs, number, history),
            [tf.constant(0), tf.constant(0), history],
            parallel_iterations=1,
        )
        return history.stack(), n_steps

    def _run_epoch(
        self, inputs: EpochInputs, number: Tensor, history: TensorArray
    ) -> tuple[Tensor, Tensor, TensorArray]:
        # the first one's metrics were reset before its callbacks, which may have used them since
        tf.cond(number > 0, self._reset, lambda: tf.constant(0))
        n_steps, results = self._train_and_validate(inputs, number)
        return number + 1, n_steps, history.write(number, results)

    def _train_and_validate(self, inputs: EpochInputs, number: Tensor | int) -> tuple[Tensor, Tensor]:
        n_steps, logs = self._train_pass(inputs, inputs.orders[0] if self._is_one else inputs.order_of(number))
        results = self._train.results(self._model, logs)
        if self._validation is not None:
            validated = self._validation.run_if(inputs.validates[number], inputs.validation)
            results = tf.concat([results, validated], 0)
        return n_steps, results

    def _reset(self) -> Tensor:
        self._model.reset_metrics()
        return tf.constant(0)


class _Validation:
    """A pass over the data to validate on, after an epoch."""

    def __init__(self, model: Model, step: Step) -> None:
        self._model = model
        self._step = step
        self._loop = GraphLoop(model, step)

    def run_if(self, is_wanted: Tensor, data: PassInputs) -> Tensor:
        """Return its results, or zeros."""
        return tf.cond(is_wanted, lambda: self._run(data), lambda: tf.zeros((self._step.layout.size,), RESULT))

    def _run(self, data: PassInputs) -> Tensor:
        self._model.reset_metrics()
        _, logs = self._loop(data)
        return self._step.results(self._model, logs)
