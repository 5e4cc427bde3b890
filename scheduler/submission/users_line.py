"""Which line of the script a warning is about."""

from __future__ import annotations

import inspect

#: Packages between a script's own line and a check of its search.
OURS = ("gridfleet", "sklearn", "joblib", "contextlib", "functools")


def users_stacklevel() -> int:
    """Return the ``stacklevel`` with which `warnings.warn` names the caller's nearest line outside of `OURS`."""
    frame = inspect.currentframe()
    frame = None if frame is None else frame.f_back  # level 1: who calls warn
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    return level if frame is not None else 1
