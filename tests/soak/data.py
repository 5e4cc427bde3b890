"""What the searches of the soak are fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np

N_SPLITS = 2
#: The tag by which a search is known whatever it is called by now: its value is a number.
TAG = "soak"

_RNG = np.random.default_rng(0)
#: Whole numbers, so that their sum is the same in every order.
X, Y = _RNG.integers(-8, 8, (60, 8)).astype("float32"), _RNG.integers(0, 2, 60)


def own_rows(number: int) -> Any:
    """Return rows that only one search has, so that their payload goes with it."""
    return X + number
