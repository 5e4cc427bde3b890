"""From what users write, lists and distributions, to the dimensions of a space and the objects that are in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.params import params_to_json
from gridfleet.storage.spaces import Choice, Dimension, GivenSpace, Quantile, Real, Space, Whole

#: Values of one list.
MAX_CHOICES = 10_000
#: Characters of a whole space as JSON: whoever asks for proposals reads it each time.
MAX_SPACE = 1_000_000
#: scipy.stats' names of distributions that are even, or even in the logarithm, between their bounds.
EVEN = ("uniform",)
EVEN_IN_LOGARITHM = ("loguniform", "reciprocal")
#: What may be proposed, said to whoever wrote something else.
EXPECTED = "give a list of values, a distribution of scipy.stats, or one of optuna.distributions"


def given_space(distributions: Any) -> GivenSpace:
    """Return what a user's distributions are.

    Parameters
    ----------
    distributions : mapping or sequence of mapping
        For each hyperparameter a list of values, a frozen distribution of scipy.stats, anything else that has a
        ``ppf``, or one of Optuna's distributions. Of several mappings each proposal is of one.

    Returns
    -------
    GivenSpace

    Raises
    ------
    InvalidSearchError
        One sentence that names the hyperparameter.
    """
    branches = [distributions] if isinstance(distributions, Mapping) else distributions
    if not isinstance(branches, (list, tuple)) or not all(isinstance(branch, Mapping) for branch in branches):
        raise InvalidSearchError(
            f"param_distributions is a {type(distributions).__name__}; give a dict, or a list of dicts"
        )
    if not branches or not all(branches):
        raise InvalidSearchError("param_distributions is an empty space; give at least one hyperparameter")
    found = [{_name(name): _dimension(name, given) for name, given in branch.items()} for branch in branches]
    space = Space([{name: dimension for name, (dimension, _) in branch.items()} for branch in found])
    if (size := len(space.to_json())) > MAX_SPACE:
        raise InvalidSearchError(
            f"param_distributions takes {size} characters as JSON; a search may have {MAX_SPACE}, so give fewer values"
        )
    return GivenSpace(space, [{name: given for name, (_, given) in branch.items()} for branch in found])


def examples(given: GivenSpace) -> list[dict[str, Any]]:
    """Return samples with which each value of a list, and both ends of each distribution, is met once at least."""
    samples = []
    for number, branch in enumerate(given.space.branches):
        ends = {name: _ends(dimension) for name, dimension in branch.items()}
        for row in range(max(map(len, ends.values()))):
            values = {name: values[row % len(values)] for name, values in ends.items()}
            samples.append({"branch": number, "values": values})
    return samples


def combinations(space: Space) -> int | None:
    """Count the points of a space; None: a distribution has no end of them."""
    counts = [[_count(dimension) for dimension in branch.values()] for branch in space.branches]
    if any(count is None for count in itertools.chain(*counts)):
        return None
    return sum(math.prod(count for count in branch if count is not None) for branch in counts)


def _count(dimension: Dimension) -> int | None:
    if isinstance(dimension, Choice):
        return len(dimension.shown)
    if isinstance(dimension, Quantile) or dimension.step is None:
        return None
    return math.floor((dimension.high - dimension.low) / dimension.step + 1e-8) + 1


def _ends(dimension: Dimension) -> list[Any]:
    if isinstance(dimension, Choice):
        return list(range(len(dimension.shown)))
    return [dimension.low, dimension.high]


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidSearchError(f"param_distributions has the name {name!r}; a hyperparameter's name is a text")
    return name


def _dimension(name: str, given: Any) -> tuple[Dimension, Any]:
    """Return a dimension and the objects that are in it, if there are any."""
    if isinstance(given, (list, tuple, np.ndarray)):
        return _choice(name, list(given))
    if type(given).__module__.startswith("optuna.distributions"):
        return _of_optuna(name, given)
    if isinstance(given, (str, bytes)) or not hasattr(given, "ppf"):
        what = f"{given!r}"[:100]
        raise InvalidSearchError(f"param_distributions[{name!r}] is {what}, which has no values to propose; {EXPECTED}")
    return _of_ppf(name, given)


def _choice(name: str, values: list[Any]) -> tuple[Dimension, Any]:
    if not values:
        raise InvalidSearchError(f"param_distributions[{name!r}] has no values to try; give at least one")
    if len(values) > MAX_CHOICES:
        raise InvalidSearchError(
            f"param_distributions[{name!r}] has {len(values)} values; a list may have {MAX_CHOICES}, so give a "
            "distribution"
        )
    shown = [params_to_json({name: value})[name] for value in values]
    return Choice(shown), values


def _of_optuna(name: str, given: Any) -> tuple[Dimension, Any]:
    kind = type(given).__name__
    if kind == "CategoricalDistribution":
        return _choice(name, list(given.choices))
    if kind == "IntDistribution":
        return Whole(int(given.low), int(given.high), int(given.step), bool(given.log)), None
    if kind == "FloatDistribution":
        step = None if given.step is None else float(given.step)
        return Real(float(given.low), float(given.high), step, bool(given.log)), None
    raise InvalidSearchError(f"param_distributions[{name!r}] is a {kind}, which gridfleet does not know; {EXPECTED}")


def _of_ppf(name: str, given: Any) -> tuple[Dimension, Any]:
    from scipy import stats

    own = getattr(given, "dist", None)
    known = getattr(own, "name", None)
    if not isinstance(own, (stats.rv_continuous, stats.rv_discrete)) or type(own) is not type(
        getattr(stats, str(known), None)
    ):
        return Quantile(), _with_ppf(name, given)
    low, high = given.support()
    if not math.isfinite(given.ppf(0.5)):
        raise InvalidSearchError(f"param_distributions[{name!r}] has arguments of which {known} makes no values")
    if known == "randint":
        return Whole(int(low), int(high)), None
    if known in (*EVEN, *EVEN_IN_LOGARITHM):
        return Real(float(low), float(high), log=known in EVEN_IN_LOGARITHM), None
    try:
        arguments = [float(one) for one in given.args]
        keywords = {key: float(one) for key, one in given.kwds.items()}
    except (TypeError, ValueError):
        return Quantile(), _with_ppf(name, given)
    return Quantile(str(known), arguments, keywords), given


def _with_ppf(name: str, given: Any) -> Any:
    try:
        given.ppf(0.5)
    except Exception as error:
        raise InvalidSearchError(
            f"param_distributions[{name!r}]: its ppf(0.5) raised {type(error).__name__}: {error}; {EXPECTED}"
        ) from error
    return given
