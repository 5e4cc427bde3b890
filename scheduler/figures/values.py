"""The values of a hyperparameter on an axis: numbers as numbers, all else as categories with texts that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from gridfleet.scheduler.figures.style import MAX_TEXT, shortened, text
from gridfleet.scheduler.reports.plain import plain

#: The value of a hyperparameter in a combination that has it not, as of one grid of several.
MISSING: Final = object()
#: An axis is logarithmic from this ratio of the largest value to the smallest on, and from the lesser one on if its
#: values lie evenly as powers rather than as numbers, as 16, 32, 64, 128, 256 do.
LOG_FROM, POWERS_FROM = 50.0, 10.0
#: Values of a logarithmic axis up to which each is a tick.
MOST_TICKS = 8


@dataclass(frozen=True, slots=True)
class Axis:
    """One hyperparameter over several trials.

    Parameters
    ----------
    name : str
        As its user wrote it.
    values : sequence
        One of each trial: numbers, or the places in `labels`.
    labels : sequence of str
        Of categories, in the order in which they were first tried; without any the values are numbers.
    """

    name: str
    values: Sequence[float]
    labels: Sequence[str] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers."""
        return not self.labels

    @property
    def n_values(self) -> int:
        """How many different ones there are."""
        return len(set(self.values))

    @property
    def is_log(self) -> bool:
        """Whether it is better read as powers: positive numbers of several sizes."""
        different = sorted(set(self.values))
        if not self.is_numeric or len(different) < 3 or different[0] <= 0:
            return False
        low, middle, high = different[0], median(different), different[-1]
        if high / low >= LOG_FROM:
            return True
        of_powers = math.log(middle / low) / math.log(high / low)
        return high / low >= POWERS_FROM and abs(of_powers - 0.5) < abs((middle - low) / (high - low) - 0.5)

    @property
    def title(self) -> str:
        """Its name as a figure may show it."""
        return text(self.name, 30)

    @property
    def shown(self) -> Sequence[str]:
        """Its categories as a figure may show them."""
        return [text(label, len(label)) for label in self.labels]

    def layout(self) -> dict[str, Any]:
        """Return what plotly is told of an axis with these values."""
        if self.is_log:
            # whole numbers at all ticks, where plotly would write some of their digits only
            shown: dict[str, Any] = {"title": {"text": self.title}, "type": "log", "tickformat": "~g"}
            return shown | ({"tickvals": self.log_ticks()} if self.n_values <= MOST_TICKS else {})
        if self.is_numeric:
            return {"title": {"text": self.title}, "type": "linear"}
        # as numbers with texts, for plotly takes a category "10" for a number, and two equal texts for one category
        return {
            "title": {"text": self.title},
            "tickmode": "array",
            "tickvals": list(range(len(self.labels))),
            "ticktext": list(self.shown),
            "range": [-0.5, len(self.labels) - 0.5],
        }

    def log_ticks(self) -> list[float]:
        """Return where a logarithmic axis has ticks: at its values where they are few, else at round numbers."""
        different = sorted(set(self.values))
        if len(different) <= MOST_TICKS:
            return different
        low, high = different[0], different[-1]
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
            if len(shown := [tick for tick in ticks if low <= tick <= high]) <= MOST_TICKS:
                break
        return shown[:: -(-len(shown) // MOST_TICKS)]

    def texts(self) -> list[str]:
        """Return each trial's value as a figure may show it."""
        if self.is_numeric:
            texts = [f"{value:.6g}" for value in self.values]
            return texts if len(set(texts)) == self.n_values else list(map(repr, self.values))
        shown = self.shown
        return [shown[int(place)] for place in self.values]


def names(all_params: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all hyperparameters, in the order in which they first appear."""
    return list(dict.fromkeys(name for params in all_params for name in params))


def axes(all_params: Sequence[Mapping[str, Any]], *, varied: bool = True) -> list[Axis]:
    """Return an axis for each hyperparameter of some trials; with `varied` only of those with two values or more."""
    found = [axis(name, all_params) for name in names(all_params)]
    return [one for one in found if one.n_values > 1] if varied else found


def axis(name: str, all_params: Sequence[Mapping[str, Any]]) -> Axis:
    """Return one hyperparameter's axis over some trials."""
    values = [params.get(name, MISSING) for params in all_params]
    if all(map(is_number, values)):
        return Axis(name, [float(value) for value in values])
    labels = labels_of(values)
    places = {key: place for place, key in enumerate(labels)}
    return Axis(name, [places[key_of(value)] for value in values], list(labels.values()))


def is_number(value: object) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def key_of(value: Any) -> str:
    """Return a text that only equal values of equal types share."""
    return "" if value is MISSING else json.dumps(value, sort_keys=True)


def labels_of(values: Iterable[Any], most: int = MAX_TEXT) -> dict[str, str]:
    """Return a readable text for each different value, by `key_of`, in the order in which they first appear.

    Parameters
    ----------
    values : iterable
        JSON values, or `MISSING`.
    most : int, default=40
        Characters of a text.

    Examples
    --------
    >>> list(labels_of([True, "True", None, [64, 32], "adam"]).values())
    ['True', "'True'", 'None', '[64, 32]', 'adam']
    """
    found = {key_of(value): value for value in values}
    others = {str(value) for value in found.values() if not isinstance(value, str) and value is not MISSING}
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for key, value in found.items():
        label = wanted = shortened(plain(_readable(value, others)), most)
        n = 1
        while label in taken:  # long texts that differ in their middle
            n += 1
            label = f"{wanted} ({n})"
        taken.add(label)
        labels[key] = label
    return labels


def _readable(value: Any, others: set[str]) -> str:
    if value is MISSING:
        return "(not set)"
    return repr(value) if isinstance(value, str) and (value in others or not value.strip()) else str(value)
