"""A traced function that runs on the variables of any model of the same structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import tensorflow as tf

from gridfleet.worker.compiled_fit.patches.grappler import without_grappler
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs, PassInputs, StreamInputs
from gridfleet.worker.compiled_fit.programs.operations import check_random_operations
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import ConcreteFunction

Inputs = TypeVar("Inputs", PassInputs, EpochInputs, PassInputs | StreamInputs)


class SharedFunction(Generic[Inputs]):
    """A function of a model, traced once; it takes the variables of another model with its inputs.

    Parameters
    ----------
    function : callable
        Takes the inputs, inside the graph.
    specs : PassInputs, StreamInputs or EpochInputs
        The inputs' types.
    variables : VariableSet
        Of the model that it is traced with.
    uses_grappler : bool, default=True
        Whether TensorFlow optimizes the graph.
    is_checked : bool, default=False
        Whether it is known to draw no random numbers that depend on their place in the graph.
    """

    def __init__(
        self,
        function: Callable[[Inputs], Any],
        specs: Inputs,
        variables: VariableSet,
        *,
        uses_grappler: bool = True,
        is_checked: bool = False,
    ) -> None:
        self._traced = tf.function(function, autograph=False, input_signature=[specs]).get_concrete_function()
        if not is_checked:
            check_random_operations(self._traced)
        self._types = variables.types
        self._captures = variables.captures_of(self._traced)
        self._uses_grappler = uses_grappler

    def __call__(self, inputs: Inputs, variables: VariableSet) -> Any:
        """Run it on a model's variables."""
        if variables.types != self._types:  # a defect of the cache's key: never train with the wrong program
            raise RuntimeError("the model's variables are not those of the program's structure")
        with nullcontext() if self._uses_grappler else without_grappler():
            return self._traced._call_flat(tf.nest.flatten(inputs), variables.handles(self._captures))


class Program:
    """The part that all programs have: a model's traced steps, and the variables that they captured.

    Parameters
    ----------
    steps : sequence of ConcreteFunction
        The traced steps.
    variables : VariableSet
        Those of the model, all of which the steps have built by now.
    outputs : object
        What names the results; equal ones have equal representations.
    """

    def __init__(self, steps: Sequence[ConcreteFunction], variables: VariableSet, outputs: object) -> None:
        self.steps = steps
        self._variables = variables
        self._outputs = outputs

    @property
    def fingerprint(self) -> object:
        """What the graphs of the steps do not show."""
        captures = [self._variables.captures_of(step) for step in self.steps]
        return self._variables.types, captures, self._outputs

    @property
    def is_shareable(self) -> bool:
        """Whether all that the steps captured are variables, which another model can stand in for."""
        return self._variables.covers(self.steps)
