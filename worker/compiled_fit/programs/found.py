"""A program that was found for a model, with the variables that it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.sharing.cache import Entry

P = TypeVar("P")


@dataclass(frozen=True)
class Found(Generic[P]):
    """A program, and a model's variables for it.

    Parameters
    ----------
    entry : Entry
        With the program.
    variables : VariableSet
        Those that Keras' own step would run on, whatever becomes of the model later.
    """

    entry: Entry[P]
    variables: VariableSet

    @property
    def program(self) -> P:
        """The program."""
        return self.entry.program
