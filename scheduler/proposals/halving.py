"""Which candidates of a halving search go on to its next round: scikit-learn's own choice, by the scores of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gridfleet.storage.halving import RAISE, Halving
from gridfleet.storage.trials.proposed import RoundTrial


def survivors(scores: Sequence[float], n_kept: int) -> list[int]:
    """Return the places of the candidates that go on, in the order of the next round.

    Parameters
    ----------
    scores : sequence of float
        The mean scores of a round; NaN for one that has none.
    n_kept : int
        How many go on.
    """
    from sklearn.model_selection._search_successive_halving import _top_k

    results = {"iter": [0] * len(scores), "mean_test_score": list(scores), "params": list(range(len(scores)))}
    return [int(place) for place in _top_k(results, n_kept, 0)]


def mean_score(trial: RoundTrial, halving: Halving, n_splits: int) -> float:
    """Return the mean score of a trial as scikit-learn has it: a split without a score counts ``error_score``."""
    instead = math.nan if halving.error_score == RAISE else float(halving.error_score)
    return float(np.average([trial.scores.get(split, instead) for split in range(n_splits)]))


def has_raised(trials: Sequence[RoundTrial], halving: Halving) -> bool:
    """Whether a trial of a round ended with what scikit-learn lets out of ``fit``, so that no other round follows."""
    return any(trial.is_let_out or (halving.error_score == RAISE and trial.has_raised) for trial in trials)


def next_round(
    trials: Sequence[RoundTrial], halving: Halving, index: int, n_splits: int
) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the candidates of a round, with their hyperparameters as ``trials.params`` has them.

    Parameters
    ----------
    trials : sequence of RoundTrial
        All of the round before it, by number.
    halving : Halving
        The search's rounds.
    index : int
        The round, from 1.
    n_splits : int
        Splits of each trial.
    """
    places = survivors([mean_score(trial, halving, n_splits) for trial in trials], halving.n_candidates[index])
    return [(trials[place].candidate, halving.shown(trials[place].params, index)) for place in places]
