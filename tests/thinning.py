"""What a run of ten minutes has of many similar cases; a complete one has all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_of(cases: Iterable[Any], *, every: int = 2) -> list[Any]:
    """Return parameters for `pytest.mark.parametrize` of which only each second, or so, is not for complete runs."""
    return [
        case if number % every == 0 else pytest.param(*_values(case), marks=pytest.mark.complete)
        for number, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
