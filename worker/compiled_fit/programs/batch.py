"""Keras' own function of a batch as a program: traced by one model, run on the variables of others of its structure."""

from __future__ import annotations

from typing import Any

from gridfleet.worker.compiled_fit.programs.function import Program
from gridfleet.worker.compiled_fit.programs.operations import check_random_operations
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Tensor


class BatchProgram(Program):
    """The ``train_function``, ``test_function`` or ``predict_function`` of a model that has run it.

    Parameters
    ----------
    traced : ConcreteFunction
        As Keras' own loop traced it.
    variables : VariableSet
        The model's.

    Raises
    ------
    NotEligibleError
        If it draws random numbers that another model's own would not draw.
    """

    def __init__(self, traced: ConcreteFunction, variables: VariableSet) -> None:
        check_random_operations(traced)
        super().__init__([traced], variables, None)
        self._traced = traced
        self._captures = variables.captures_of(traced)

    def run(self, variables: VariableSet, inputs: list[Tensor]) -> Any:
        """Return what Keras' function returns, on a model's variables."""
        if variables.types != self._variables.types:  # a defect of the cache's key: never train with the wrong program
            raise RuntimeError("the model's variables are not those of the program's structure")
        return self._traced._call_flat(inputs, variables.handles(self._captures))
