"""What a search asks of the fleet beyond what scikit-learn knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.fit_mode import FitMode


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a search's trials are trained, and how long they may take.

    Parameters
    ----------
    fit_mode : FitMode or str, default=None
        How Keras models are trained; None: as the settings say.
    trial_timeout : float, default=None
        Seconds that one attempt at a trial may take; None: as the settings say.
    search_timeout : float, default=None
        Seconds after its first trial started at which the search is stopped; None: never.
    """

    fit_mode: FitMode | str | None = None
    trial_timeout: float | None = None
    search_timeout: float | None = None

    @classmethod
    def of(cls, search: Any) -> SearchOptions:
        """Return the options of a search; those of scikit-learn's own classes have none."""
        return cls(*(getattr(search, name, None) for name in cls.__slots__))

    def checked(self, *, default_fit_mode: FitMode) -> SearchOptions:
        """Return them with the fit mode filled in.

        Raises
        ------
        InvalidSearchError
            One sentence that names the option and its value.
        """
        fit_mode = self.fit_mode_or(default_fit_mode)
        for name in ("trial_timeout", "search_timeout"):
            _check_seconds(name, getattr(self, name))
        return SearchOptions(fit_mode, _seconds(self.trial_timeout), _seconds(self.search_timeout))

    def fit_mode_or(self, default: FitMode) -> FitMode:
        """Return the fit mode, or a default where there is none.

        Raises
        ------
        InvalidSearchError
            If there is no such mode.
        """
        if self.fit_mode is None:
            return default
        try:
            return FitMode(self.fit_mode)
        except ValueError:
            modes = ", ".join(repr(str(mode)) for mode in FitMode)
            raise InvalidSearchError(f"fit_mode={self.fit_mode!r} is none of {modes}") from None


def _check_seconds(name: str, value: Any) -> None:
    if value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise InvalidSearchError(f"{name}={value!r} must be a number of seconds above 0, or None for no limit")


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)
