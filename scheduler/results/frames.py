"""Errors of ours leave a call without the frames of ours: their sentence says it all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gridfleet.storage.errors import GridfleetError

P = ParamSpec("P")
R = TypeVar("R")


def without_our_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Let what a function raises show where it was called, and not the fifty lines below that.

    That is so for what says all in its words: `GridfleetError`, and Ctrl-C while a search is waited for. The cause of
    an error, which may be the user's own, stays.
    """

    @functools.wraps(function)
    def called(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*args, **keywords)
        except (GridfleetError, KeyboardInterrupt) as error:
            if not hasattr(error, "_render_traceback_"):  # Ctrl-C somewhere else, maybe in the user's code
                raise
            raise error.with_traceback(None) from error.__cause__

    return called
