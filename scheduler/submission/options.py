"""What a search asks of the fleet beyond what scikit-learn knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.searches import check_priority
from gridfleet.storage.settings import load_settings
from gridfleet.storage.tags import check_tags


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a search's trials are trained, how long they may take, and before which: checked, defaults filled in.

    Parameters
    ----------
    fit_mode : FitMode, default=FitMode.EXACT
        How Keras models are trained.
    trial_timeout : float, default=None
        Seconds that one attempt at a trial may take; None: as the settings say.
    search_timeout : float, default=None
        Seconds after its first trial started at which the search is stopped; None: never.
    priority : int, default=0
        Its trials start before those of searches with a lower one.
    keep_curves : bool, default=True
        Whether learning curves are stored.
    tags : mapping of str to str, default={}
        What people find it by.
    """

    fit_mode: FitMode = FitMode.EXACT
    trial_timeout: float | None = None
    search_timeout: float | None = None
    priority: int = 0
    keep_curves: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)


def check_options(
    fit_mode: str | None = None,
    trial_timeout: float | None = None,
    search_timeout: float | None = None,
    priority: int | None = None,
    keep_curves: bool | None = None,
    tags: Any = None,
) -> SearchOptions:
    """Return the options of a search.

    Parameters
    ----------
    fit_mode : str, default=None
        None: what ``GRIDFLEET_FIT_MODE`` says.
    trial_timeout, search_timeout : float, default=None
        Seconds.
    priority : int, default=None
        None: 0.
    keep_curves : bool, default=None
        None: they are kept.
    tags : mapping of str to str or number, default=None
        None: there are none.

    Returns
    -------
    SearchOptions

    Raises
    ------
    InvalidSearchError
        One sentence that names the option and its value.
    """
    return SearchOptions(
        load_settings().fit_mode if fit_mode is None else _fit_mode(fit_mode),
        _seconds("trial_timeout", trial_timeout),
        _seconds("search_timeout", search_timeout),
        0 if priority is None else check_priority(priority),
        _keep_curves(keep_curves),
        check_tags(tags),
    )


def check_switch(name: str, value: Any) -> bool:
    """Return an option that is on or off.

    Raises
    ------
    InvalidSearchError
        If it is neither.
    """
    if not isinstance(value, bool):
        raise InvalidSearchError(f"{name}={value!r} must be True or False")
    return value


def options_of(search: Any) -> SearchOptions:
    """Return the options of a search, as `check_options`; scikit-learn's own classes have the defaults."""
    given = {name: getattr(search, name, None) for name in SearchOptions.__slots__}
    timeout = getattr(search, "timeout", None)
    if timeout is not None and given["search_timeout"] is not None:
        raise InvalidSearchError(
            f"timeout={timeout!r} and search_timeout={given['search_timeout']!r} are one thing; give one of them"
        )
    if timeout is not None:
        _seconds("timeout", timeout)
        given["search_timeout"] = timeout
    return check_options(**given)


def _keep_curves(value: Any) -> bool:
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise InvalidSearchError(f"keep_curves={value!r} must be True or False")
    return value is None or bool(value)


def _fit_mode(value: Any) -> FitMode:
    try:
        return FitMode(value)
    except ValueError:
        modes = ", ".join(repr(str(mode)) for mode in FitMode)
        raise InvalidSearchError(f"fit_mode={value!r} is none of {modes}") from None


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise InvalidSearchError(f"{name}={value!r} must be a number of seconds above 0, or None for no limit")
    return float(value)
