"""A program that was found for a model, with the variables that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gridfleet.worker.compiled_fit.errors import KerasTakesOverError, preparing_a_program
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


def find_once(kept: dict[Hashable, Any], signature: Hashable, find: Callable[[], Found[P]]) -> Found[P]:
    """Return what was found for a model before, or find it now; that there is no program is remembered too.

    Parameters
    ----------
    kept : dict
        What was found for the model, by signature.
    signature : hashable
        Kind of program and types of the data.
    find : callable
        Finds or traces the program.

    Raises
    ------
    KerasTakesOverError
        If none can be made: Keras goes on with what it traced itself.
    """
    if signature not in kept:
        try:
            with preparing_a_program():
                kept[signature] = find()
        except KerasTakesOverError as error:
            kept[signature] = type(error)(str(error))  # without a traceback, which holds the model
            raise
    found: Found[P] | KerasTakesOverError = kept[signature]
    if isinstance(found, KerasTakesOverError):
        raise type(found)(str(found))
    return found
