"""What a search asks of the fleet beyond what scikit-learn knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.searches import check_priority
from gridfleet.storage.settings import load_settings


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
    """

    fit_mode: FitMode = FitMode.EXACT
    trial_timeout: float | None = None
    search_timeout: float | None = None
    priority: int = 0


def check_options(
    fit_mode: str | None = None,
    trial_timeout: float | None = None,
    search_timeout: float | None = None,
    priority: int | None = None,
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
    return check_options(*(getattr(search, name, None) for name in SearchOptions.__slots__))


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
