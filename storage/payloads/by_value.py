"""Which modules travel by value: those that no worker has installed, which lie beside the script."""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import cloudpickle

#: The import package that every worker has, wherever it was installed from.
OURS = "gridfleet"


@contextmanager
def local_modules_by_value() -> Iterator[None]:
    """Let cloudpickle take functions and classes of the script's own modules along, whole."""
    registered = [module for module in _local_modules() if module.__name__ not in _registered()]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _registered() -> set[str]:
    return set(cloudpickle.list_registry_pickle_by_value())


def _local_modules() -> list[ModuleType]:
    """Return the imported modules that are no installed package's: those beside the script."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or module.__name__ != name:
            continue
        if name.partition(".")[0] == OURS:
            continue
        if not _is_installed(file):
            found.append(module)
    return found


@cache
def _is_installed(file: str) -> bool:
    # cached, for a script with TensorFlow has five thousand modules, and each payload asks for all of them
    return any(Path(file).is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> list[Path]:
    # not the prefixes: a project may lie in its virtual environment's folder, or below /usr
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {*libraries, *site.getsitepackages(), site.getusersitepackages()}
    return [Path(folder) for folder in folders] + [Path(folder).resolve() for folder in folders]
