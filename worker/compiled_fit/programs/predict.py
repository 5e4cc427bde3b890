"""Keras' ``predict`` as a program: one pass of ``predict_step`` over data, batch by batch as there."""

from __future__ import annotations

import keras
import tensorflow as tf

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.programs.function import Program, SharedFunction
from gridfleet.worker.compiled_fit.programs.inputs import PassInputs, as_from_an_iterator, some_rows
from gridfleet.worker.compiled_fit.programs.step import trace_as_keras
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Model, Structure, Tensor, TensorArray


class PredictProgram(Program):
    """The predictions of one model, and of all others of its structure.

    Parameters
    ----------
    model : keras.Model
        Built.
    data : Batches
        What to predict from; only types and structure count.
    sizes : tuple of int or None
        Rows for which the step is traced that takes the full batches, and the one for the rest, if another one does;
        None: any number.
    """

    def __init__(self, model: Model, data: Batches, sizes: tuple[int | None, ...]) -> None:
        by_size = {
            size: trace_as_keras(model, model.predict_step, data, batch_size=size) for size in dict.fromkeys(sizes)
        }
        steps = [by_size[size] for size in sizes]
        variables = VariableSet.of_prediction(model)  # only now, for the step builds those that are missing
        self._structure = steps[0].structured_outputs
        super().__init__(steps, variables, keras.tree.map_structure(lambda _: 0, self._structure))
        loop = _PredictLoop(steps, sizes, keras.tree.flatten(self._structure))
        # the steps were checked
        self._function = SharedFunction(loop.run, PassInputs.specs(data.specs), variables, is_checked=True)

    def run(self, variables: VariableSet, data: Batches) -> Structure:
        """Return the predictions of a model with these variables, as arrays in the structure of its outputs."""
        flat = self._function(PassInputs.of(data), variables)
        return keras.tree.pack_sequence_as(self._structure, [output.numpy() for output in flat])


class _PredictLoop:
    """The loop over batches, to be traced; how many rows there are, and in a batch, are arguments.

    Parameters
    ----------
    steps : list of ConcreteFunction
        The one for full batches, and the one for the rest if another one takes it.
    sizes : tuple of int or None
        Rows that each takes; None: any number.
    outputs : list of Tensor
        What a step returns, flat.
    """

    def __init__(self, steps: list[ConcreteFunction], sizes: tuple[int | None, ...], outputs: list[Tensor]) -> None:
        for output in outputs:
            if not isinstance(output, tf.Tensor) or output.shape.rank in (None, 0) or None in output.shape[1:]:
                raise NotEligibleError("an output of the model has rows of varying shape")
        self._full, self._rests = steps[0], list(zip(steps[1:], sizes[1:], strict=True))
        self._size = sizes[0]
        self._outputs = outputs

    def run(self, inputs: PassInputs) -> list[Tensor]:
        """Return the predictions, one tensor for each output."""
        n_steps = inputs.n_steps - len(self._rests)
        parts = [self._no_predictions(output, inputs.n_steps) for output in self._outputs]
        _, *parts = tf.while_loop(
            lambda number, *_: number < n_steps,
            lambda number, *parts: (number + 1, *self._write(self._full, self._size, inputs, number, list(parts))),
            [tf.constant(0), *parts],
            parallel_iterations=1,
        )
        for rest, size in self._rests:
            parts = self._write(rest, size, inputs, n_steps, parts)
        return [part.concat() for part in parts]

    def _no_predictions(self, output: Tensor, n_parts: Tensor) -> TensorArray:
        return tf.TensorArray(
            output.dtype,
            size=n_parts,
            infer_shape=False,
            element_shape=(None, *output.shape[1:]),
        )

    def _write(
        self, step: ConcreteFunction, size: int | None, inputs: PassInputs, number: Tensor, parts: list[TensorArray]
    ) -> list[TensorArray]:
        first = number * inputs.batch_size
        count = tf.minimum(inputs.batch_size, inputs.n_samples - first) if size is None else size
        batch = [some_rows(rows, first, count) for rows in inputs.rows]
        # a step that was traced for any number of rows is not to know how many there are
        predicted = keras.tree.flatten(step(*as_from_an_iterator(batch, size)))
        return [part.write(number, one) for part, one in zip(parts, predicted, strict=True)]
