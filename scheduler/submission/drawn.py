"""What of a search is drawn anew each time that it is made, for nobody gave a seed: its splits, its combinations."""

from __future__ import annotations

import numbers
import re
from typing import Any

from gridfleet.scheduler.submission.fingerprint import NotSeenError, fingerprint

#: Characters of a splitter's repr that are stored.
MAX_REPR = 1_000
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def splits_are_drawn(search: Any) -> bool:
    """Whether a search may have other splits each time: of its splitter, or, halving, of its samples."""
    cv: Any = getattr(search, "cv", None)
    if hasattr(cv, "random_state") and getattr(cv, "shuffle", True) and not _is_seed(cv.random_state):
        return True
    return getattr(search, "resource", None) == "n_samples" and not _is_seed(search.random_state)


def candidates_are_drawn(search: Any) -> bool:
    """Whether a search has other combinations each time."""
    return hasattr(search, "param_distributions") and not _is_seed(getattr(search, "random_state", None))


def _is_seed(value: Any) -> bool:
    return isinstance(value, numbers.Integral)


def splitter_of(search: Any) -> str:
    """Return ``cv`` as it was given, as text that is the same in every process."""
    cv = getattr(search, "cv", None)
    if cv is not None and not isinstance(cv, numbers.Integral) and not hasattr(cv, "split"):
        return "given splits"
    return shown(cv)


def space_digest(search: Any) -> str | None:
    """Return the digest of a grid or of distributions; None if they can't be seen into, or there are none."""
    space = getattr(search, "param_grid", getattr(search, "param_distributions", None))
    try:
        return None if space is None else fingerprint(space, "the space")
    except NotSeenError:
        return None


def shown(value: Any) -> str:
    """Return the repr of a value in one line, shortened, without addresses."""
    try:
        text = " ".join(repr(value).replace("\x00", "\\x00").split())
    except ValueError:  # an integer of more than 4,300 digits among its parameters
        text = type(value).__name__
    text = _ADDRESS.sub("", text)
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 1] + "…"
