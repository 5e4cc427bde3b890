"""scikit-learn's searches, evaluated on a fleet: one Celery task per combination, every score in SQL.

>>> from gridfleet import GridSearchCV  # doctest: +SKIP
"""

from __future__ import annotations

# built in: with `python -m gridfleet`, the current folder is where any other module would be looked for first
import sys

if sys.platform == "win32":
    raise ImportError("gridfleet runs on Linux and macOS; on Windows, use it in WSL 2 or in a Linux container")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gridfleet.scheduler.halving_search_cv import HalvingGridSearchCV, HalvingRandomSearchCV
    from gridfleet.scheduler.optuna_search_cv import OptunaSearchCV
    from gridfleet.scheduler.results.handle import SearchHandle
    from gridfleet.scheduler.search_cv import GridSearchCV, RandomizedSearchCV
    from gridfleet.scheduler.submission.run import register_joblib_backend
    from gridfleet.scheduler.submit import open_search, submit
    from gridfleet.storage.errors import GridfleetError
    from gridfleet.storage.references.data_ref import DataRef

    __version__: str

__all__ = [
    "DataRef",
    "GridSearchCV",
    "GridfleetError",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "OptunaSearchCV",
    "RandomizedSearchCV",
    "SearchHandle",
    "__version__",
    "open_search",
    "register_joblib_backend",
    "submit",
]

#: Where each public name lives; imported when it is asked for, so that reading results needs no scikit-learn.
_HOMES = {
    "DataRef": "gridfleet.storage.references.data_ref",
    "GridSearchCV": "gridfleet.scheduler.search_cv",
    "HalvingGridSearchCV": "gridfleet.scheduler.halving_search_cv",
    "HalvingRandomSearchCV": "gridfleet.scheduler.halving_search_cv",
    "OptunaSearchCV": "gridfleet.scheduler.optuna_search_cv",
    "RandomizedSearchCV": "gridfleet.scheduler.search_cv",
    "SearchHandle": "gridfleet.scheduler.results.handle",
    "open_search": "gridfleet.scheduler.submit",
    "register_joblib_backend": "gridfleet.scheduler.submission.run",
    "submit": "gridfleet.scheduler.submit",
    "GridfleetError": "gridfleet.storage.errors",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        return import_module("gridfleet.storage.versions").installed_versions()["gridfleet_version"]
    if name not in _HOMES:
        raise AttributeError(f"module 'gridfleet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
