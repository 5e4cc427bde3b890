"""One way to replace what belongs to another library while blocks of code are open, and to put it back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: The value of a mapping's key that is not there.
ABSENT: Any = object()


@dataclass(frozen=True)
class Replacement:
    """An attribute, or a mapping's item, and its value while a patch is installed.

    Parameters
    ----------
    owner : module, class, object or mutable mapping
        Whose it is.
    name : str
        The attribute, or the key.
    value : object
        What takes its place.
    """

    owner: Any
    name: str
    value: Any

    def install(self) -> Replacement:
        """Put the value in place; returns the replacement that undoes it."""
        if isinstance(self.owner, MutableMapping):
            return self._install_item(self.owner)
        before = getattr(self.owner, self.name)
        setattr(self.owner, self.name, self.value)
        return Replacement(self.owner, self.name, before)

    def _install_item(self, mapping: MutableMapping[str, Any]) -> Replacement:
        before = mapping.get(self.name, ABSENT)
        if self.value is ABSENT:
            mapping.pop(self.name, None)
        else:
            mapping[self.name] = self.value
        return Replacement(mapping, self.name, before)


class Patch:
    """Replacements that hold while at least one block is open, in any thread.

    The first block that opens installs them, the last one that closes undoes them, in whatever order blocks of
    several threads end.

    Parameters
    ----------
    replacements : callable
        Returns the replacements. Called by the first block, so it may import the library or read what holds now.
    """

    def __init__(self, replacements: Callable[[], Iterable[Replacement]]) -> None:
        self._replacements = replacements
        self._lock = threading.Lock()
        self._n_open = 0
        self._undo: list[Replacement] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Open a block in which the replacements hold."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            if self._n_open == 0:
                self._install()
            self._n_open += 1

    def _leave(self) -> None:
        with self._lock:
            self._n_open -= 1
            if self._n_open == 0:
                self._restore()

    def _install(self) -> None:
        try:
            for replacement in self._replacements():
                self._undo.append(replacement.install())
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop().install()
