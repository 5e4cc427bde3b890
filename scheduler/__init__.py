"""The public API: scikit-learn's searches, evaluated on a fleet.

>>> from scheduler import GridSearchCV  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler.joblib_backend import register_joblib_backend
    from scheduler.search_cv import GridSearchCV, RandomizedSearchCV
    from scheduler.submission import SearchHandle, open_search, submit
    from storage.errors import GridfleetError

__all__ = [
    "GridSearchCV",
    "GridfleetError",
    "RandomizedSearchCV",
    "SearchHandle",
    "open_search",
    "register_joblib_backend",
    "submit",
]

#: Where each public name lives; imported when it is asked for, so that reading results needs no scikit-learn.
_HOMES = {
    "GridSearchCV": "scheduler.search_cv",
    "RandomizedSearchCV": "scheduler.search_cv",
    "SearchHandle": "scheduler.submission",
    "open_search": "scheduler.submission",
    "register_joblib_backend": "scheduler.joblib_backend",
    "submit": "scheduler.submission",
    "GridfleetError": "storage.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scheduler' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
