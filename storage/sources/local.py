"""Which modules are installed, and which are the user's own: beside the script, in a project, an editable install."""

from __future__ import annotations

import csv
import json
import sys
import sysconfig
from functools import cache
from pathlib import Path

#: The import package that every worker has, wherever it was installed from.
OURS = "gridfleet"
#: Folders that installers write packages into, and people do not write modules into.
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@cache
def is_installed(path: str) -> bool:
    """Whether a module's file, or the folder of a package, is installed, so that it has to be on the workers too.

    Parameters
    ----------
    path : str
        Absolute, and not resolved: some installers fill ``site-packages`` with links.

    Returns
    -------
    bool
        True below a folder named ``site-packages`` or ``dist-packages``, for the standard library, and for what a
        distribution in any folder of ``sys.path`` (``pip --target``) names as its own, if it is no editable one.
    """
    # cached, for a script with TensorFlow has five thousand modules
    file = Path(path)
    if not PACKAGE_FOLDERS.isdisjoint(file.parts):
        return True
    if any(file.is_relative_to(folder) for folder in _standard_library()):
        return True
    return any(file.relative_to(folder) in _recorded(folder) for folder in file.parents if str(folder) in sys.path)


@cache
def _standard_library() -> list[Path]:
    folders = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")]
    return [*folders, *(folder.resolve() for folder in folders)]


@cache
def _recorded(folder: Path) -> frozenset[Path]:
    """Return the files, and the folders that they lie in, that the distributions of a folder say are theirs."""
    files: set[Path] = set()
    for metadata in folder.glob("*.dist-info"):
        if _is_editable(metadata):
            continue
        try:
            with (metadata / "RECORD").open(encoding="utf-8", newline="") as record:
                files.update(Path(row[0]) for row in csv.reader(record) if row)
        except FileNotFoundError:  # of an installer that keeps none
            continue
    return frozenset(files.union(*(file.parents for file in files)) - {Path()})


def _is_editable(metadata: Path) -> bool:
    try:
        origin = json.loads((metadata / "direct_url.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(origin.get("dir_info", {}).get("editable"))
