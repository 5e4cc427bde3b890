"""The seed of a trial whose estimator has none: drawn, set before each split is fitted, and recorded.

Where an estimator has seeds of its own nothing is set: scikit-learn's result with these, to the last bit, is that of a
process in which nobody set another one. What Keras draws by a seed of scikeras, it would draw by a global one instead.
"""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Seeds are drawn below this; those of further splits are one more each, and TensorFlow's end at 2**31 - 1.
BOUND = 2**31 - 2**20
_SEED = "random_state"


def draw_seed() -> int:
    """Draw the seed of a trial, as no other trial has it."""
    return secrets.randbelow(BOUND)


def wants_seed(estimator: Any, params: Mapping[str, Any]) -> bool:
    """Whether something that an estimator draws may have no seed of its own.

    Parameters
    ----------
    estimator : estimator
        Unfitted.
    params : mapping
        The hyperparameters that are set on it.

    Returns
    -------
    bool
        False if all that take a ``random_state`` have one, and one does.
    """
    states = [value for name, value in _all_params(estimator, params).items() if name.rpartition("__")[2] == _SEED]
    return not states or any(state is None for state in states)


def has_seeded_keras_model(estimator: Any, params: Mapping[str, Any]) -> bool:
    """Whether one of scikeras' wrappers in an estimator has a seed of its own."""
    found = {"": estimator, **_all_params(estimator, params)}
    for place, part in found.items():
        if any(kind.__module__.startswith("scikeras.") for kind in type(part).__mro__):
            name = f"{place}__{_SEED}" if place else _SEED
            if found.get(name) is not None:
                return True
    return False


def set_seeds(seed: int, *, tensorflow: bool) -> None:
    """Set the seeds that a fit without seeds draws from: Python's, NumPy's and, if it is imported, TensorFlow's."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is what models draw from
    if tensorflow and "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(seed)


def _all_params(estimator: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an estimator and of all in it, as they are once some are set."""
    known = _deep(estimator)
    for name, value in params.items():
        for inner in [one for one in known if one.startswith(f"{name}__")]:
            if hasattr(value, "get_params"):  # another estimator takes that place
                del known[inner]
        known[name] = value
        if hasattr(value, "get_params") and not isinstance(value, type):
            known.update({f"{name}__{inner}": one for inner, one in _deep(value).items()})
    return {**known, **params}


def _deep(estimator: Any) -> dict[str, Any]:
    try:
        return dict(estimator.get_params(deep=True))
    except Exception:  # noqa: BLE001 - a user's own, whose fit is going to say so
        return {}
