"""The end of a sentence about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names that are listed where none is near.
MAX_NAMES = 20
#: How like a name has to be to be suggested, as difflib counts it: its own default.
CLOSE = 0.6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest a known name, or list those that there are.

    Parameters
    ----------
    name : str
        What somebody wrote.
    known : iterable of str
        What would have been right.
    """
    names = list(known)
    found = nearest(name, names)
    return f"did you mean {found!r}?" if found else f"there are {', '.join(names[:MAX_NAMES]) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another one; None if none is like it."""
    found = max(known, key=lambda other: _likeness(name, other), default=None)
    return None if found is None or _likeness(name, found)[0] < CLOSE else found


def _likeness(name: str, known: str) -> tuple[float, float]:
    """Say how like two names are, and how like without their prefixes: ``units`` may mean ``model__units``."""
    whole = _ratio(name, known)
    return max(whole, _ratio(name.rpartition("__")[2], known.rpartition("__")[2])), whole


def _ratio(name: str, known: str) -> float:
    return difflib.SequenceMatcher(None, name, known).ratio()
