"""A space of hyperparameters as JSON and samples of it, which hold no objects of users; and those objects beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gridfleet.storage.errors import SampleError

#: How far a value may be from a whole number of steps, in steps.
STEP_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, by its index; here is how they are shown, as the values themselves may be any objects."""

    shown: Sequence[Any]

    def require(self, value: Any) -> int:
        """Return an index that is one of these."""
        return _whole(value, 0, len(self.shown) - 1)

    def show(self, value: int) -> Any:
        """Return what stands in ``trials.params``."""
        return self.shown[value]


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from ``low`` to ``high``, both among them."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def require(self, value: Any) -> int:
        """Return a number that is one of these."""
        whole = _whole(value, self.low, self.high)
        if (whole - self.low) % self.step:
            raise SampleError(f"{value!r} is no step of {self.step} from {self.low}")
        return whole

    def show(self, value: int) -> Any:
        """Return what stands in ``trials.params``."""
        return value


@dataclass(frozen=True, slots=True)
class Real:
    """Numbers from ``low`` to ``high``; with a step, only those."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def require(self, value: Any) -> float:
        """Return a number that is one of these."""
        number = _real(value, self.low, self.high)
        if self.step is not None:
            steps = (number - self.low) / self.step
            if abs(steps - round(steps)) > STEP_TOLERANCE:
                raise SampleError(f"{value!r} is no step of {self.step} from {self.low}")
        return number

    def show(self, value: float) -> Any:
        """Return what stands in ``trials.params``."""
        return value


#: The most probable and least probable values that are never proposed: their quantiles may be infinite.
SMALLEST_QUANTILE = 2.0**-32


@dataclass(frozen=True, slots=True)
class Quantile:
    """Values of a distribution by their quantile, a number between 0 and 1.

    Parameters
    ----------
    scipy : str or None
        Its name in scipy.stats; None: it is another one's, whose values only those know who have the object.
    arguments : sequence of float
        Its arguments there.
    keywords : mapping of str to float
        The same, by name.
    """

    scipy: str | None = None
    arguments: Sequence[float] = ()
    keywords: Mapping[str, float] | None = None

    @property
    def low(self) -> float:
        """The smallest quantile that is proposed."""
        return SMALLEST_QUANTILE

    @property
    def high(self) -> float:
        """The largest one."""
        return 1 - SMALLEST_QUANTILE

    def require(self, value: Any) -> float:
        """Return a quantile that may be proposed."""
        return _real(value, self.low, self.high)

    def show(self, value: float) -> Any:
        """Return what stands in ``trials.params``: the value, or its quantile where that is all that is known."""
        if self.scipy is None:
            return f"ppf({value!r})"
        from scipy import stats

        kind = getattr(stats, self.scipy, None)
        if not isinstance(kind, (stats.rv_continuous, stats.rv_discrete)):
            raise SampleError(f"{self.scipy!r} is no distribution of scipy.stats")
        return value_at(kind(*self.arguments, **(self.keywords or {})), value)


Dimension = Choice | Whole | Real | Quantile
_KINDS: dict[str, type[Any]] = {"choice": Choice, "whole": Whole, "real": Real, "quantile": Quantile}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class Space:
    """What each hyperparameter may be; of several branches, each proposal is of one.

    Parameters
    ----------
    branches : sequence of dict
        The dimensions, by the name of the hyperparameter.
    """

    branches: Sequence[Mapping[str, Dimension]]

    def to_json(self) -> str:
        """Return it as the text that is stored and signed."""
        branches = [
            {name: {"kind": _NAMES[type(one)], **asdict(one)} for name, one in branch.items()}
            for branch in self.branches
        ]
        return json.dumps(branches, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Space:
        """Return the space that a text is of."""
        return cls([{name: _dimension(one) for name, one in branch.items()} for branch in json.loads(text)])

    def require(self, sample: Any) -> tuple[int, dict[str, Any]]:
        """Return branch and values of a sample that is a point of this space.

        Parameters
        ----------
        sample : object
            As it was stored.

        Returns
        -------
        branch : int
        values : dict
            One for each name of the branch, in its order: an index of a choice, a number, a quantile.

        Raises
        ------
        SampleError
            If it is none.
        """
        if not isinstance(sample, Mapping) or set(sample) != {"branch", "values"}:
            raise SampleError("it has not a branch and values")
        branch = _whole(sample["branch"], 0, len(self.branches) - 1)
        dimensions, values = self.branches[branch], sample["values"]
        if not isinstance(values, Mapping) or set(values) != set(dimensions):
            raise SampleError(f"it has not the hyperparameters of branch {branch}")
        return branch, {name: one.require(values[name]) for name, one in dimensions.items()}

    def shown(self, sample: Any) -> dict[str, Any]:
        """Return the hyperparameters of a sample as ``trials.params`` has them."""
        branch, values = self.require(sample)
        return {name: self.branches[branch][name].show(value) for name, value in values.items()}


@dataclass(frozen=True)
class GivenSpace:
    """A space with the objects that its user gave: what workers make a trial's hyperparameters of.

    Parameters
    ----------
    space : Space
        What may be proposed.
    objects : sequence of mapping
        For each branch, by name: the values of a list, or the distribution whose quantiles are proposed.
    """

    space: Space
    objects: Sequence[Mapping[str, Any]]

    def params(self, sample: Any) -> dict[str, Any]:
        """Return the hyperparameters of a sample, as Python objects.

        Raises
        ------
        SampleError
            If it is no point of this space.
        """
        branch, values = self.space.require(sample)
        dimensions, objects = self.space.branches[branch], self.objects[branch]
        return {name: _value(dimensions[name], objects[name], value) for name, value in values.items()}


def _value(dimension: Dimension, objects: Any, value: Any) -> Any:
    if isinstance(dimension, Choice):
        return objects[value]
    return value_at(objects, value) if isinstance(dimension, Quantile) else value


def value_at(distribution: Any, quantile: float) -> Any:
    """Return the value of a distribution at a quantile: a whole number where it is one of whole numbers."""
    from scipy.stats import rv_discrete

    value = distribution.ppf(quantile)
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(getattr(distribution, "dist", None), rv_discrete) else value


def _dimension(described: Mapping[str, Any]) -> Dimension:
    arguments = dict(described)
    dimension: Dimension = _KINDS[arguments.pop("kind")](**arguments)
    return dimension


def _whole(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SampleError(f"{_short(value)} is no whole number from {low} to {high}")
    return value


def _real(value: Any, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # whole ones first: those of a million digits are no floats
    if not is_number or not low <= value <= high or not math.isfinite(value):
        raise SampleError(f"{_short(value)} is no number from {low!r} to {high!r}")
    return float(value)


def _short(value: Any) -> str:
    return repr(value)[:100] if isinstance(value, (str, float, type(None), bool)) else type(value).__name__
