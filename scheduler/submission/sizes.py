"""How large a search may be: counted before anything is made of it, for one number in a file can ask for billions."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from gridfleet.scheduler.submission.request import proposes
from gridfleet.storage.errors import InvalidSearchError

#: Combinations of one search: each is a row, a message and, while they are made, some kilobytes of memory per split.
MAX_COMBINATIONS = 100_000
#: Splits of one search.
MAX_SPLITS = 10_000
#: Combinations times splits: each is some kilobytes of memory until the search is stored, and a row per metric.
MAX_FITS = 1_000_000
#: Splits times rows of X: all splits are stored as indices, 8 bytes each.
MAX_INDICES = 1_000_000_000
#: What `ParameterGrid` can count, and with it the draws from lists.
MAX_COUNTED = 2**63 - 1


def check_space(search: Any) -> None:
    """Make sure that a search has combinations to try, and not more than a fleet can take; none is made for it.

    Raises
    ------
    InvalidSearchError
        Naming the argument that is empty or too large.
    """
    if proposes(search):
        search.proposals()  # says it
        return
    for argument in ("param_grid", "param_distributions"):
        space = getattr(search, argument, None)
        if isinstance(space, (list, tuple)) and not space:
            raise InvalidSearchError(f"{argument}={space!r} is an empty space; give at least one combination")
    grid, draws = getattr(search, "param_grid", None), getattr(search, "n_iter", None)
    if grid is not None and (size := _grid_size(grid)) > MAX_COMBINATIONS:
        raise InvalidSearchError(
            f"param_grid has {size} combinations; a search may have {MAX_COMBINATIONS}, so give fewer values, or draw "
            "some of them with RandomizedSearchCV"
        )
    if isinstance(draws, int) and draws > MAX_COMBINATIONS:
        raise InvalidSearchError(f"n_iter={draws} draws; a search may have {MAX_COMBINATIONS} combinations")
    lists = getattr(search, "param_distributions", None)
    if lists is not None and _grid_size(lists) > MAX_COUNTED:
        raise InvalidSearchError(
            f"param_distributions has lists of more than {MAX_COUNTED} combinations, from which scikit-learn can't "
            "draw; give fewer values, or a distribution"
        )


def check_splits(search: Any, X: Any, y: Any, groups: Any = None) -> None:
    """Make sure that a search has not more splits than memory and fleet can take; none is made for it.

    Raises
    ------
    InvalidSearchError
        Naming cv, how many splits it asks for, and the bound.
    """
    n_splits = _count_splits(search.cv, X, y, groups)
    if n_splits > MAX_SPLITS:
        # a number of a million digits can't be shown
        asked = n_splits if n_splits < MAX_COUNTED else f"more than {MAX_COUNTED}"
        raise InvalidSearchError(f"cv asks for {asked} splits; a search may have {MAX_SPLITS}")
    n_rows = _count_rows(X)
    check_size(_count_combinations(search), n_splits)
    if n_splits * n_rows > MAX_INDICES:
        raise InvalidSearchError(
            f"cv asks for {n_splits} splits of {n_rows} rows, and each names all rows; a search may have "
            f"{MAX_INDICES} of these indices, so give fewer splits"
        )


def check_size(n_combinations: int, n_splits: int) -> None:
    """Make sure that a search has not more trials and fits than a fleet can take.

    Raises
    ------
    InvalidSearchError
        With both numbers and the bound.
    """
    if n_combinations > MAX_COMBINATIONS:
        raise InvalidSearchError(
            f"all rounds together have {n_combinations} trials; a search may have {MAX_COMBINATIONS}, so give fewer "
            "candidates"
        )
    if n_splits * n_combinations > MAX_FITS:
        raise InvalidSearchError(
            f"{n_combinations} combinations on {n_splits} splits are {n_splits * n_combinations} fits; a search may "
            f"have {MAX_FITS}, so give fewer of either"
        )


def _count_splits(cv: Any, X: Any, y: Any, groups: Any) -> int:
    """Count without making; 0 for what scikit-learn's own fit refuses, and for a generator."""
    if cv is None or isinstance(cv, int):
        return 5 if cv is None else cv
    if not hasattr(cv, "get_n_splits"):
        return len(cv) if isinstance(cv, Sized) else 0
    if _leaves_too_many(cv, X):
        return MAX_COUNTED
    try:
        return int(cv.get_n_splits(X, y, groups))
    except Exception:  # noqa: BLE001 - whatever it is, scikit-learn's own fit says it
        return 0


def _leaves_too_many(cv: Any, X: Any) -> bool:
    """Whether LeavePOut has so many splits that it takes long to count them."""
    from sklearn.model_selection import LeavePOut

    if not isinstance(cv, LeavePOut) or not isinstance(cv.p, int):
        return False
    fewer = min(cv.p, _count_rows(X) - cv.p)  # left out, or not; there are at least 2**fewer splits
    return fewer >= MAX_SPLITS.bit_length()


def _count_rows(X: Any) -> int:
    shape = getattr(X, "shape", None)  # scipy's sparse matrices have no length
    if shape:
        return int(shape[0])
    return len(X) if isinstance(X, Sized) else 0


def _count_combinations(search: Any) -> int:
    grid, draws = getattr(search, "param_grid", None), getattr(search, "n_iter", getattr(search, "n_trials", None))
    if grid is not None:
        return _grid_size(grid)
    return draws if isinstance(draws, int) else 0


def _grid_size(grid: Any) -> int:
    """Count combinations without making them; 0 for what is no grid, of which scikit-learn's own fit says it."""
    from sklearn.model_selection import ParameterGrid

    try:
        return int(ParameterGrid(grid).__len__())  # len() itself ends at 2**63
    except (TypeError, ValueError):
        return 0
