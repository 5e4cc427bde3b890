"""From the ``space`` of a search file to scikit-learn's grids and scipy's distributions."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gridfleet.storage.suggestion import did_you_mean

#: A hyperparameter's values: a list, or a frozen distribution of scipy.stats.
Values = Any

#: Bound of integers that scipy draws.
MAX_INTEGER = 2**63 - 1

_EXAMPLE = "{uniform: [0, 1]}"


def parse_values(raw: Any) -> Values:
    """Turn what stands behind a hyperparameter into its values.

    Parameters
    ----------
    raw : object
        A list of values, or a dict with one distribution and its two bounds: ``{uniform: [a, b]}``,
        ``{loguniform: [a, b]}`` or ``{randint: [a, b]}`` (integers from ``a`` to ``b - 1``, as in scipy).

    Returns
    -------
    list or scipy distribution

    Raises
    ------
    ValueError
        If it is neither; the sentence says what is expected.
    """
    if isinstance(raw, list):
        if not raw:
            raise ValueError("has no values to try; give at least one, as in [1, 2]")
        return raw
    if isinstance(raw, Mapping):
        return _distribution(raw)
    raise ValueError(f"is {raw!r}; write a list of values, as in [{raw!r}], or a distribution, as in {_EXAMPLE}")


def is_distribution(values: Values) -> bool:
    """Whether values have to be drawn."""
    return not isinstance(values, list)


def _distribution(raw: Mapping[str, Any]) -> Values:
    if len(raw) != 1:
        raise ValueError(f"is {dict(raw)!r}; a distribution has one name, as in {_EXAMPLE}")
    name, bounds = next(iter(raw.items()))
    if name not in _DISTRIBUTIONS:
        raise ValueError(f"names the distribution {name!r}; {did_you_mean(str(name), _DISTRIBUTIONS)}")
    low, high = _bounds(name, bounds)
    return _DISTRIBUTIONS[name](low, high)


def _bounds(name: str, raw: Any) -> tuple[float, float]:
    if not isinstance(raw, list) or len(raw) != 2 or not all(map(_is_number, raw)):
        raise ValueError(f"has {name}: {raw!r}; write two numbers, as in {{{name}: [{_BOUNDS_EXAMPLE[name]}]}}")
    low, high = raw
    if not low < high:
        raise ValueError(f"has {name}: {raw!r}; the first bound must be below the second")
    if name == "loguniform" and low <= 0:
        raise ValueError(f"has loguniform: {raw!r}; its bounds must be above 0")
    if name == "randint" and not all(isinstance(bound, int) for bound in raw):
        raise ValueError(f"has randint: {raw!r}; its bounds must be integers")
    if name == "randint" and max(map(abs, raw)) > MAX_INTEGER:
        raise ValueError(f"has randint: {raw!r}; its bounds must be at most {MAX_INTEGER}")
    if name == "uniform" and math.isinf(high - low):
        raise ValueError(f"has uniform: {raw!r}; the bounds are too far apart")
    return low, high


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # as doubles, in which distributions draw
    return is_number and abs(value) <= sys.float_info.max


def _uniform(low: float, high: float) -> Values:
    from scipy.stats import uniform

    return uniform(low, high - low)  # scipy's arguments are start and width


def _loguniform(low: float, high: float) -> Values:
    from scipy.stats import loguniform

    return loguniform(low, high)


def _randint(low: float, high: float) -> Values:
    from scipy.stats import randint

    return randint(low, high)


_DISTRIBUTIONS: dict[str, Callable[[float, float], Values]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "randint": _randint,
}
_BOUNDS_EXAMPLE = {"uniform": "0, 1", "loguniform": "1e-4, 1e-1", "randint": "1, 100"}
