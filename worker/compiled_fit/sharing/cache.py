"""The programs of this process, the longest unused dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

#: Programs kept; one holds its graphs and the variables of the model that it was traced with.
MAX_PROGRAMS = 32


@dataclass
class Entry:
    """A program and what its training cost so far.

    Attributes
    ----------
    program : object
        The program.
    steps_without_xla : int
        Batches that it trained outside XLA.
    seconds_per_step : dict of bool to float
        What a batch last took, with XLA and without; missing until a second run told.
    compiled : set
        Names of the shapes for which XLA compiled it.
    """

    program: Any
    steps_without_xla: int = 0
    seconds_per_step: dict[bool, float] = field(default_factory=dict)
    compiled: set[Hashable] = field(default_factory=set)


class ProgramCache:
    """Programs by what they depend on.

    Parameters
    ----------
    max_programs : int, default=MAX_PROGRAMS
        How many are kept.

    Attributes
    ----------
    n_dropped : int
        Programs that are gone, or used once only. What TensorFlow prepared for them stays until all of its
        kernels are cleared: half a MB each.
    """

    def __init__(self, max_programs: int = MAX_PROGRAMS) -> None:
        self._max_programs = max_programs
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.n_dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Entry | None:
        """Return the entry of a key, now the last used one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, program: Any) -> Entry:
        """Keep a program; the longest unused one goes if there are too many."""
        entry = self._entries[key] = Entry(program)
        while len(self._entries) > self._max_programs:
            self._entries.popitem(last=False)
            self.n_dropped += 1
        return entry

    def once(self, program: Any) -> Entry:
        """Return an entry for a program that no other model may share, and that is not kept."""
        self.n_dropped += 1
        return Entry(program)

    def clear(self) -> None:
        """Drop all programs."""
        self._entries.clear()


def find_or_make(
    cache: ProgramCache,
    *,
    structure: Hashable | None,
    signature: Hashable,
    make: Callable[[], Any],
    digest: Callable[[Any], Hashable],
) -> Entry:
    """Return a program for a model, from the cache where it is safe.

    Parameters
    ----------
    cache : ProgramCache
        Where to look and keep.
    structure : hashable or None
        What the model's graph depends on; None if that is not known without tracing it.
    signature : hashable
        Kind of program and types of the data.
    make : callable
        Traces the model's steps.
    digest : callable
        Tells two programs' steps apart, constants included.

    Returns
    -------
    Entry
        With the program.
    """
    if structure is not None:
        entry = cache.get((structure, signature))
        if entry is not None:
            return entry
        program = make()
        if not program.is_shareable:
            return cache.once(program)
        return cache.put((structure, signature), program)
    program = make()
    if not program.is_shareable:
        return cache.once(program)
    key = (digest(program), signature)
    entry = cache.get(key)
    if entry is not None:
        return entry
    return cache.put(key, program)
