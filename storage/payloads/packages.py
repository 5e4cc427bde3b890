"""Which installed packages a pickle needs, and their releases, for whoever misses one where it is loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata

from gridfleet.storage.sources.local import is_installed

#: What every worker has, as gridfleet asks for it.
ALWAYS_THERE = {"cloudpickle", "gridfleet", "joblib", "keras", "numpy", "scikeras", "scipy", "sklearn", "tensorflow"}
#: Bytes of a pickle that are looked through: names of modules come early, and a column of texts may have any size.
LOOKED_THROUGH = 1_000_000
_SHORT_TEXT = re.compile(rb"\x8c(.)([A-Za-z_][A-Za-z0-9_.]*)", re.DOTALL)


def modules_named(pickled: bytes | memoryview) -> set[str]:
    """Return the texts in a pickle that may be the names of top-level modules."""
    found = _SHORT_TEXT.findall(pickled[:LOOKED_THROUGH])
    return {text[: length[0]].decode().partition(".")[0] for length, text in found}


def packages_of(names: Iterable[str]) -> dict[str, str]:
    """Return distribution and release, ``imbalanced-learn 0.14.0``, of modules that are imported and installed."""
    packages = {}
    for name in set(names) - ALWAYS_THERE - sys.stdlib_module_names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and is_installed(file) and (package := package_of(name)) is not None:
            packages[name] = package
    return dict(sorted(packages.items()))


@cache
def package_of(module: str) -> str | None:
    """Return distribution and release of an installed top-level module; None if none says that it is its."""
    try:
        found = metadata.distribution(module)
    except metadata.PackageNotFoundError:
        names = _distributions().get(module)
        if not names:
            return None
        found = metadata.distribution(names[0])
    return f"{found.name} {found.version}"


@cache  # reads the list of files of every distribution
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def explain_missing(error: ImportError, packages: Mapping[str, str]) -> str:
    """Say which module is missing here, which release of it the submitter has, and how to get it.

    Parameters
    ----------
    error : ImportError
        As it was raised.
    packages : mapping of str to str
        What `packages_of` found where the payload was made.
    """
    module = error.name or ""
    package = packages.get(module.partition(".")[0])
    if package is None:
        return f"a module that the payload needs is not installed on this worker: {error}"
    name, _, version = package.partition(" ")
    return (
        f"{error}: the payload needs the module {module!r}, which this worker does not have, at least not as it is in "
        f"{package}, the release where the search was submitted; install it for the workers too "
        f"(`pip install {name}=={version}`), or in their image, and start them again"
    )
