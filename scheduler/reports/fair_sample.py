"""Which trials of a large search are looked at: the best, and others drawn by lot, the same at each look."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

#: Trials of a search that are drawn or added up at most; of more it is the best and a sample.
LIMIT = 2_000
#: Trials of a search up to which all are looked at for what reports count in them, without an index that knows it.
ALL = 10_000


@lru_cache(maxsize=256)
def drawn(search_id: int, n_trials: int, limit: int = LIMIT) -> Sequence[int]:
    """Return numbers of a search's trials, all or so many of them drawn by lot, ascending.

    By lot and not at regular steps, for a grid is regular: such a step could meet a single value of a hyperparameter.

    Parameters
    ----------
    search_id : int
        The lot's seed.
    n_trials : int
        The search's.
    limit : int, default=2,000
        How many at most.
    """
    if n_trials <= limit:
        return range(n_trials)
    return sorted(random.Random(search_id).sample(range(n_trials), limit))  # noqa: S311 - no secret


def sampled(search_id: int, n_trials: int) -> Sequence[int] | None:
    """Return the numbers of a large search's trials in which reports count; None: in all of them."""
    return drawn(search_id, n_trials) if n_trials > ALL else None
