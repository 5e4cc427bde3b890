"""The variables that a program runs on, and those that a traced function captured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import keras

from gridfleet.worker.compiled_fit.programs.joint_update import JointState
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Model, Resource, Tensor, Variable

#: A captured variable's place among a model's variables, or whatever else was captured.
Capture: TypeAlias = int | Tensor


def variables_of(model: Model, *, trains: bool = True) -> list[Variable]:
    """Return the variables that training changes, or an evaluation, as far as there are any yet."""
    optimizer = model.optimizer.variables if trains and model.optimizer is not None else []
    return [*model.variables, *optimizer, *(variable for metric in model.metrics for variable in metric.variables)]


class VariableSet:
    """Variables that a program runs on, each once, in an order that equal models have in common.

    Parameters
    ----------
    variables : iterable of variables
        Keras' or TensorFlow's.
    joint : JointState or None, default=None
        Where a program lays the optimizer's variables end to end; its own belong to the set.

    Attributes
    ----------
    types : list of tuple
        Shape and dtype of each.
    """

    def __init__(self, variables: Iterable[Variable], joint: JointState | None = None) -> None:
        self.joint = joint
        self._resources: list[Resource] = []
        self._places: dict[int, int] = {}
        for variable in [*variables, *([] if joint is None else joint.variables)]:
            resource = variable.value if isinstance(variable, keras.Variable) else variable
            if id(resource.handle) not in self._places:
                self._places[id(resource.handle)] = len(self._resources)
                self._resources.append(resource)
        self.types = [(tuple(resource.shape), resource.dtype) for resource in self._resources]

    @classmethod
    def of_training(cls, model: Model, joint: JointState | None = None) -> VariableSet:
        """Return those of a model, its optimizer and its metrics."""
        return cls(variables_of(model), joint)

    @classmethod
    def of_evaluation(cls, model: Model) -> VariableSet:
        """Return those of a model and its metrics."""
        return cls(variables_of(model, trains=False))

    @classmethod
    def of_prediction(cls, model: Model) -> VariableSet:
        """Return those of a model alone."""
        return cls(model.variables)

    def covers(self, functions: Sequence[ConcreteFunction]) -> bool:
        """Whether functions captured nothing but these variables."""
        return all(id(tensor) in self._places for function in functions for tensor in function.captured_inputs)

    def captures_of(self, function: ConcreteFunction) -> list[Capture]:
        """Return the place of each variable that a function captured, or what was captured if it is none of these."""
        return [self._places.get(id(tensor), tensor) for tensor in function.captured_inputs]

    def handles(self, captures: list[Capture]) -> list[Tensor]:
        """Return what to hand to a function in place of what it captured from another model."""
        return [self._resources[capture].handle if isinstance(capture, int) else capture for capture in captures]
