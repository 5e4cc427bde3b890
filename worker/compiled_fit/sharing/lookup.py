"""A program for a model: from the cache where that is safe, else traced anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.sharing.cache import Entry, ProgramCache
from gridfleet.worker.compiled_fit.sharing.graph_digest import graph_digest
from gridfleet.worker.compiled_fit.types import ConcreteFunction


class Shareable(Protocol):
    """The part of a program by which it is compared with others."""

    @property
    def steps(self) -> Sequence[ConcreteFunction]:
        """The traced steps of a model."""

    @property
    def fingerprint(self) -> object:
        """What the graphs of the steps do not show; equal ones have equal representations."""

    @property
    def is_shareable(self) -> bool:
        """Whether all that the steps captured are variables, which another model can stand in for."""


P = TypeVar("P", bound=Shareable)


def find_or_trace(
    cache: ProgramCache, *, structure: str | None, signature: Hashable, trace: Callable[[], P]
) -> Entry[P]:
    """Return a program for a model.

    Parameters
    ----------
    cache : ProgramCache
        Where to look and keep.
    structure : str or None
        The digest of what the model's graph depends on; None if that is not known without tracing it.
    signature : hashable
        Kind of program and types of the data.
    trace : callable
        Makes the program, by tracing the model's steps.

    Returns
    -------
    Entry
        With the program.

    Raises
    ------
    NotEligibleError
        If none can be made, which is kept as a program is.
    """
    if structure is not None:
        entry = cache.get((structure, signature))
        if entry is not None:
            if isinstance(entry.program, NotEligibleError):
                raise NotEligibleError(str(entry.program))
            return entry
    try:
        program = trace()
    except NotEligibleError as error:
        if structure is not None:
            cache.put((structure, signature), NotEligibleError(str(error)))
        raise
    if not program.is_shareable:
        return cache.use_once(program)
    if structure is not None:
        return cache.put((structure, signature), program)
    key = (graph_digest(program.steps, program.fingerprint), signature)
    return cache.get(key) or cache.put(key, program)
