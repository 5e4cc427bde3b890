"""What a search must be like before anything of it is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.validation import unknown_argument


def units_and_rate(units, rate=0.1):
    """Build a model of two arguments."""


def anything(units, **others):
    """Build a model of any arguments."""


def nothing():
    """Build a model without arguments."""


@pytest.mark.parametrize(
    ("name", "build", "said"),
    [
        ("model__units", units_and_rate, None),
        ("model__unit", units_and_rate, "has no argument 'unit'; did you mean 'units'?"),
        ("model__depth", units_and_rate, "has no argument 'depth'; it has rate, units"),
        ("model__depth", nothing, "has no argument 'depth'; it has none"),
        ("model__depth", anything, None),
        ("optimizer__depth", units_and_rate, None),
        ("depth", units_and_rate, None),
    ],
)
def test_only_arguments_that_the_function_has_can_be_searched_over(
    name: str, build: Callable[..., Any], said: str | None
) -> None:
    assert unknown_argument(name, build) == said
