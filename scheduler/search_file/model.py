"""From ``models.py:function`` or ``package.module:name`` in a search file to the object it names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.suggestion import did_you_mean


def import_model(reference: str, folder: Path) -> Any:
    """Import what a search file names as its model.

    Parameters
    ----------
    reference : str
        ``models.py:function``, ``package.module:name`` or ``package.module.Class``.
    folder : Path
        What a file is relative to. A file finds modules there, unless installed ones have the same names.

    Returns
    -------
    callable
        The function or class. It travels to the workers with its module unless it is an installed package's.

    Raises
    ------
    InvalidSearchError
        If it can't be imported or is not there.
    """
    module_name, separator, name = reference.rpartition(":")
    if not separator:
        module_name, separator, name = reference.rpartition(".")
    if not module_name or not name.isidentifier():
        raise InvalidSearchError(
            f"`model` is {reference!r}; write models.py:function, package.module:function or sklearn.svm:SVC"
        )
    module = _from_file(folder / module_name) if module_name.endswith(".py") else _by_name(module_name)
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidSearchError(
            f"`model`: {module_name} has no function or class {name!r}; {did_you_mean(name, names)}"
        )
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidSearchError(f"`model`: there is no file {path}")
    path = path.resolve()
    name = path.stem if path.stem.isidentifier() else "model_file"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None or _is_another_module(name, path):
        name = f"{name}_of_search_file"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidSearchError(f"`model`: {path} is no Python file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file there must not stand in for a package that others import
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InvalidSearchError(f"`model`: {path} raises {type(error).__name__}: {error}") from error
    return module


def _is_another_module(name: str, path: Path) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin != str(path)


def _by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InvalidSearchError(f"`model`: importing {name} raises {type(error).__name__}: {error}") from error
