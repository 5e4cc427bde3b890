"""The programs of this process, the longest unused dropped first.

Imports neither Keras nor TensorFlow: processes that never train know how many programs are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

#: Programs kept; one holds its graphs and the variables of the model that it was traced with.
MAX_PROGRAMS = 32

P = TypeVar("P")


@dataclass
class Entry(Generic[P]):
    """A program and what its training cost so far.

    Attributes
    ----------
    program : object
        The program.
    n_graph_steps : int
        Batches that it trained outside XLA.
    graph_step_s, xla_step_s : float or None
        Seconds that a batch last took, outside XLA and in it; None until a second run was measured.
    compiled_shapes : set
        Names of the shapes for which XLA compiled it.
    is_equal : bool or None
        Whether it trained as Keras' own loop where the two were compared; None: they were not.
    """

    program: P
    n_graph_steps: int = 0
    graph_step_s: float | None = None
    xla_step_s: float | None = None
    compiled_shapes: set[Hashable] = field(default_factory=set)
    is_equal: bool | None = None


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
        self._entries: OrderedDict[Hashable, Entry[Any]] = OrderedDict()
        self.n_dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Entry[Any] | None:
        """Return the entry of a key, now the last used one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, program: P) -> Entry[P]:
        """Keep a program; the longest unused one goes if there are too many."""
        entry = self._entries[key] = Entry(program)
        while len(self._entries) > self._max_programs:
            self._entries.popitem(last=False)
            self.n_dropped += 1
        return entry

    def use_once(self, program: P) -> Entry[P]:
        """Return an entry for a program that no other model may use, and that is not kept."""
        self.n_dropped += 1
        return Entry(program)
