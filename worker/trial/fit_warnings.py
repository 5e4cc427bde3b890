"""The warnings of a trial's fits and scores: filtered as in the script, noted with their number, and shown there."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import cloudpickle

from gridfleet.storage.exceptions import qualified_name
from gridfleet.storage.trial_results import MAX_WARNING, MAX_WARNINGS, WarningResult


class WarningFilters:
    """The script's ``warnings.filters``, able to travel.

    A filter may name a category of any package that the script imported. Those go by name, and one of a package that
    a worker has not is left out there: nothing on that worker can give such a warning.

    Parameters
    ----------
    filters : sequence of tuple
        ``(action, message, category, module, lineno)`` each, as Python keeps them.
    """

    def __init__(self, filters: Sequence[Any]) -> None:
        self.filters = [_plain(*each) for each in filters]

    def __reduce__(self) -> tuple[Any, ...]:
        return _travelled, ([(*rest, [_category(kind) for kind in kinds]) for *rest, kinds in self.filters],)

    def apply(self) -> None:
        """Put these filters in the place of all that there are; inside `warnings.catch_warnings`."""
        warnings.resetwarnings()
        for action, message, module, lineno, kinds in self.filters:
            for kind in kinds:  # simplefilter takes a tuple of classes too, as scikit-learn notes
                warnings.filterwarnings(action, message, kind, module, lineno, append=True)


def _plain(action: Any, message: Any, category: Any, module: Any, lineno: int) -> tuple[Any, ...]:
    kinds = category if isinstance(category, tuple) else (category,)
    return action, _pattern(message), _pattern(module), lineno, list(kinds)


def _pattern(pattern: str | re.Pattern[str] | None) -> str:
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern or ""


def _category(kind: type) -> Any:
    by_value = {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    return kind if kind.__module__ in by_value or "<" in kind.__qualname__ else (kind.__module__, kind.__qualname__)


def _travelled(filters: list[Any]) -> WarningFilters:
    arrived = WarningFilters([])
    for *rest, kinds in filters:
        found = [kind for kind in map(_found, kinds) if kind is not None]
        if found:
            arrived.filters.append((*rest, found))
    return arrived


def _found(kind: Any) -> Any:
    if not isinstance(kind, tuple):
        return kind
    module, name = kind
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:  # noqa: BLE001 - a package that is not here, or not whole
        return None
    return found


class WarningNotes:
    """What the fits of one trial warned of: each text once."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], tuple[str | None, int]] = {}
        self._of_this_fit: set[tuple[str, str]] = set()

    @contextmanager
    def of_a_fit(self, filters: WarningFilters | None) -> Iterator[None]:
        """Note the warnings of one fit and its scores, under the script's filters.

        Each goes to the worker's log too, where it is seen while the trial runs.
        """
        self._of_this_fit = set()
        with warnings.catch_warnings():
            if filters is not None:
                filters.apply()
            self._show = warnings.showwarning
            warnings.showwarning = self._note_and_show
            yield

    def note(self, category: type[Warning], message: str, module: str | None) -> bool:
        """Note a warning of the fit; returns whether it is the first of its kind in the trial."""
        text = message if len(message) <= MAX_WARNING else _shortened(message)
        key = qualified_name(category), text
        is_new = key not in self._noted
        if key in self._of_this_fit or (is_new and len(self._noted) >= MAX_WARNINGS):
            return False
        self._of_this_fit.add(key)
        first_module, n_fits = self._noted.get(key, (module, 0))
        self._noted[key] = first_module, n_fits + 1
        return is_new

    def results(self) -> list[WarningResult]:
        """Return what was noted, as it came."""
        return [
            WarningResult(category, text, module, n_fits) for (category, text), (module, n_fits) in self._noted.items()
        ]

    def _note_and_show(
        self, message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any, **keywords: Any
    ) -> None:
        if self.note(category, str(message), _module_at(filename, lineno)):
            self._show(message, category, filename, lineno, *rest, **keywords)


def _shortened(message: str) -> str:
    """Cut the middle: filters look at the beginning, and the end of a traceback says most."""
    half = (MAX_WARNING - 3) // 2
    return f"{message[:half]} … {message[-half:]}"


def _module_at(filename: str, lineno: int) -> str | None:
    """Name the module that warned, which Python knew when it looked at the filters, and does not tell."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            return str(frame.f_globals.get("__name__"))
        frame = frame.f_back
    return None
