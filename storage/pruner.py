"""A pruner by its name: at which epochs trials are compared, with which others, and which go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: Those that let the best of each rung go on.
HALVING = ("asha", "hyperband")
#: Those that stop what is behind others that were completed.
QUANTILE = ("median", "percentile")
#: The one that compares scores of splits in pairs, and no epochs.
WILCOXON = "wilcoxon"
#: How many times more epochs each rung has, where nothing else is set.
REDUCTION_FACTOR = 3
#: What the numbers of trials are multiplied with, as a part of all places of brackets, so that those of one bracket do
#: not follow each other: the golden ratio's.
SPREAD = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Bracket:
    """Which trials are compared with each other: those whose number times `stride`, modulo `n_places`, is in a range.

    Parameters
    ----------
    number : int
        From 0; each begins to compare one rung later than the one before.
    first, last : int
        The range.
    stride, n_places : int
        How numbers become places.
    """

    number: int = 0
    first: int = 0
    last: int = 0
    stride: int = 1
    n_places: int = 1

    def has(self, trial_number: int) -> bool:
        """Whether a trial is of this bracket."""
        return self.first <= trial_number * self.stride % self.n_places <= self.last


@dataclass(frozen=True, slots=True)
class Standing:
    """How a trial stands among those that it is compared with.

    Parameters
    ----------
    n_compared : int
        How many others there are.
    n_better : int
        How many of them are better.
    n_completed : int
        How many trials are completed that it may know of, whether or not they are among those.
    cut : float or None
        The value that it has to reach, for median and percentile; None: there is none to be had.
    """

    n_compared: int
    n_better: int
    n_completed: int = 0
    cut: float | None = None

    @property
    def rank(self) -> int:
        """Its place among them and itself, from 1 on; equals share one."""
        return self.n_better + 1


@dataclass(frozen=True)
class Pruner:
    """What stops poor trials.

    Parameters
    ----------
    name : str
        ``asha``, ``hyperband``, ``median``, ``percentile`` or ``wilcoxon``.
    min_resource : int, default=1
        Epochs before the first comparison.
    settings : mapping
        Whatever else was set, as Optuna's class of that pruner calls it; of ``hyperband`` also ``max_resource``.
    """

    name: str
    min_resource: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return it as the text that is stored and signed."""
        described = {"name": self.name, "min_resource": self.min_resource, **self.settings}
        return json.dumps(described, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Pruner:
        """Return the pruner that a text is of."""
        settings = json.loads(text)
        return cls(settings.pop("name"), settings.pop("min_resource"), settings)

    @property
    def compares_epochs(self) -> bool:
        """Whether trials are compared before their first split has ended."""
        return self.name != WILCOXON

    @property
    def compares_completed(self) -> bool:
        """Whether a trial is compared with completed ones only."""
        return self.name in QUANTILE

    @property
    def keeps_quantile(self) -> float:
        """The part of the others, the worse first, that a trial has to be above, for median and percentile."""
        percentile = 50.0 if self.name == "median" else float(self.settings["percentile"])
        return (100 - percentile) / 100

    @property
    def reduction_factor(self) -> int:
        """One trial of how many goes on, and how many times more epochs it has until the next rung."""
        return int(self.settings.get("reduction_factor", REDUCTION_FACTOR))

    def bracket_of(self, trial_number: int) -> Bracket:
        """Return which trials a trial is compared with."""
        return next(bracket for bracket in self._brackets if bracket.has(trial_number))

    def is_rung(self, epoch: int, trial_number: int) -> bool:
        """Whether a trial is compared when it has trained for some epochs."""
        return self.next_rung(epoch - 1, trial_number) == epoch

    def next_rung(self, epoch: int, trial_number: int) -> int:
        """Return after how many epochs a trial is compared next that has trained for some."""
        settings = self.settings
        if self.name in QUANTILE:
            warmup = int(settings.get("n_warmup_steps", 0))
            at_least = max(epoch + 1, self.min_resource, warmup)
            if "interval_steps" in settings:
                return at_least + (warmup - at_least) % int(settings["interval_steps"])
            return self._power(at_least, 0)
        bracket = self.bracket_of(trial_number).number
        return self._power(epoch + 1, bracket + int(settings.get("min_early_stopping_rate", 0)))

    def _power(self, at_least: int, exponent: int) -> int:
        rung: int = self.min_resource * self.reduction_factor**exponent
        while rung < at_least:
            rung *= self.reduction_factor
        return rung

    @cached_property
    def _brackets(self) -> Sequence[Bracket]:
        if self.name != "hyperband":
            return [Bracket()]
        factor, sizes = self.reduction_factor, []
        n_brackets = 1
        while self.min_resource * factor**n_brackets <= int(self.settings["max_resource"]):
            n_brackets += 1
        for number in range(n_brackets):
            rungs = n_brackets - 1 - number
            sizes.append(math.ceil(n_brackets * factor**rungs / (rungs + 1)))
        n_places = sum(sizes)
        stride = max(1, round(n_places * SPREAD))
        while math.gcd(stride, n_places) > 1:
            stride += 1
        ends = [sum(sizes[: number + 1]) for number in range(n_brackets)]
        return [
            Bracket(number, end - size, end - 1, stride, n_places)
            for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]

    def goes_on(self, value: float | None, standing: Standing) -> bool:
        """Whether a trial goes on: a function of how it stands.

        Parameters
        ----------
        value : float or None
            What it is compared by, for median and percentile the best that it had so far; None: no number.
        standing : Standing
            How it stands.
        """
        if self.name in HALVING:
            if value is None:
                return False
            n_all = standing.n_compared + 1
            if n_all <= int(self.settings.get("bootstrap_count", 0)):
                return False
            # of fewer than the factor, the best one
            return standing.n_better < max(n_all // self.reduction_factor, 1)
        if standing.n_completed < max(1, int(self.settings.get("n_startup_trials", 5))):
            return True
        if value is None:
            return False
        if standing.cut is None or standing.n_compared < int(self.settings.get("n_min_trials", 1)):
            return True
        return value >= standing.cut

    def goes_on_beside(self, values: Sequence[float], best: Sequence[float], best_mean: float) -> bool:
        """Whether a trial goes on whose scores are compared with those of the best one, split by split.

        Parameters
        ----------
        values : sequence of float
            Its scores, of split 0 on.
        best : sequence of float
            Those of the best trial, of the same splits.
        best_mean : float
            The best trial's mean over all splits.
        """
        from scipy.stats import wilcoxon

        if len(values) < max(2, int(self.settings.get("n_startup_steps", 2))):
            return True
        if not all(map(math.isfinite, (*values, *best))) or sum(values) / len(values) >= best_mean:
            return True
        differences = [one - other for one, other in zip(values, best, strict=True)]
        # zsplit: equal scores are no reason to fail
        found = wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue
        return not found < float(self.settings.get("p_threshold", 0.1))


def cut_between(low: float, high: float, part: float) -> float:
    """Return what lies between two values, as numpy's percentiles do to the last bit."""
    if part >= 0.5:
        return high - (high - low) * (1 - part)
    return low + (high - low) * part


def place_of_cut(n_values: int, quantile: float) -> tuple[int, float]:
    """Return between which of some sorted values a quantile lies: behind the one of this index, by this part."""
    place = (n_values - 1) * quantile
    index = math.floor(place)
    return index, place - index


#: What names of curves are made of whose smaller values are better, and of those whose greater ones are.
SMALLER_IS_BETTER = (
    *("loss", "error", "mse", "mae", "mape", "msle", "rmse", "crossentropy", "hinge", "divergence", "poisson"),
    *("logcosh", "false_positives", "false_negatives"),
)
GREATER_IS_BETTER = (
    *("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "sensitivity", "specificity", "similarity"),
    *("true_positives", "true_negatives", "score", "dice", "kappa", "mcc"),
)
#: What trials are compared by that are scored between epochs, on the test rows of their split.
SCORE = "score"


def sign_of(monitor: str) -> int | None:
    """Return with what a curve's values are multiplied so that greater is better; None: its name does not say it."""
    for parts, sign in ((SMALLER_IS_BETTER, -1), (GREATER_IS_BETTER, 1)):
        if any(part in monitor.lower() for part in parts):
            return sign
    return None
