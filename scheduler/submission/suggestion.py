"""The end of a sentence about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names that are listed where none is near.
MAX_NAMES = 20


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
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names[:MAX_NAMES]) or 'none'}"
