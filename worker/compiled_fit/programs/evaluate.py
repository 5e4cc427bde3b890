"""Keras' ``evaluate`` as a program: one pass of ``test_step`` over data."""

from __future__ import annotations

from typing import Any

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.programs.function import Program, SharedFunction
from gridfleet.worker.compiled_fit.programs.graph_loop import GraphLoop
from gridfleet.worker.compiled_fit.programs.inputs import PassInputs, StreamInputs, specs_of
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.programs.stream_loop import StreamLoop
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import Logs, Model, Tensor


class EvaluateProgram(Program):
    """The evaluation of one model, and of all others of its structure.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    data : Batches or Stream
        What it is evaluated on; only types and structure count.
    """

    def __init__(self, model: Model, data: Batches | Stream) -> None:
        step = Step(model, model.test_step, data, batch_size=data.fixed_batch_size)
        self._layout = step.layout
        super().__init__(
            [step.traced],
            VariableSet.of_evaluation(model),  # only now, for the step builds those that are missing
            self._layout,
        )
        loop: Any = StreamLoop(model, step) if isinstance(data, Stream) else GraphLoop(model, step)

        def evaluate(inputs: PassInputs | StreamInputs) -> tuple[Tensor, Tensor]:
            n_steps, logs = loop(inputs)
            return step.results(model, logs), n_steps

        self._function = SharedFunction(evaluate, specs_of(data), self._variables)

    def run(self, variables: VariableSet, inputs: PassInputs | StreamInputs) -> tuple[Logs, int]:
        """Return the metrics on data of a model with these variables, which were reset before, and how many batches."""
        results, n_steps = self._function(inputs, variables)
        return self._layout.unpack(results.numpy()), int(n_steps)
