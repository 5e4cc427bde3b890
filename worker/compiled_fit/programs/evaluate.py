"""Keras' ``evaluate`` as a program: one pass of ``test_step`` over data."""

from __future__ import annotations

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.programs.function import Program, SharedFunction
from gridfleet.worker.compiled_fit.programs.graph_loop import GraphLoop
from gridfleet.worker.compiled_fit.programs.inputs import PassInputs
from gridfleet.worker.compiled_fit.programs.step import Step
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import Logs, Model, Tensor


class EvaluateProgram(Program):
    """The evaluation of one model, and of all others of its structure.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    data : Batches
        What it is evaluated on; only types and structure count.
    """

    def __init__(self, model: Model, data: Batches) -> None:
        step = Step(model, model.test_step, data, batch_size=data.fixed_batch_size)
        self._metric_names = step.result_names
        super().__init__(
            [step.traced],
            VariableSet.of_evaluation(model),  # only now, for the step builds those that are missing
            self._metric_names,
        )
        loop = GraphLoop(model, step)

        def evaluate(inputs: PassInputs) -> Tensor:
            _, logs = loop(inputs)
            return step.results(model, logs)

        self._function = SharedFunction(evaluate, PassInputs.specs(step.specs), self._variables)

    def run(self, variables: VariableSet, data: Batches) -> Logs:
        """Return the metrics on data of a model with these variables; they were reset before."""
        results = self._function(PassInputs.of(data), variables).numpy()
        return dict(zip(self._metric_names, map(float, results), strict=True))
