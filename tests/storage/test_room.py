"""Which way the imports of the room point: trials, searches, statements, schema, database, settings; and no circles."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import gridfleet.storage

ROOM = Path(gridfleet.storage.__path__[0])
#: Files and folders, those first that import none of the later ones.
LAYERS = (
    {"errors", "fit_mode", "outcome", "params", "trial_results", "versions"},
    {"settings"},
    {"database"},
    {"schema"},
    {"migrations", "payloads", "search_views", "statements", "workers"},
    {"searches"},
    {"trials"},
)


def modules() -> dict[str, set[str]]:
    """Return each module of the room, and the modules of gridfleet that it imports anywhere, also in functions."""
    files = {".".join(file.relative_to(ROOM).with_suffix("").parts): file for file in ROOM.rglob("*.py")}
    return {name: imported(file) for name, file in files.items() if not name.endswith("__init__") or "." in name}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            in_folder = (ROOM.parent / Path(*module.split(".")[1:])).is_dir()
            found |= {f"{module}.{alias.name}" for alias in node.names} if in_folder else {module}
    return {name for name in found if name.partition(".")[0] == "gridfleet"}


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name.partition(".")[0] in names)


def test_the_room_knows_no_other_room() -> None:
    outside = {
        (name, other)
        for name, others in modules().items()
        for other in others
        if not other.startswith("gridfleet.storage.")
    }

    assert outside == set()


def test_imports_point_one_way() -> None:
    upwards = {
        (name, other)
        for name, others in modules().items()
        for other in others
        if layer(other.removeprefix("gridfleet.storage.")) > layer(name)
    }

    assert upwards == set()


def test_imports_make_no_circle() -> None:
    graph = {f"gridfleet.storage.{name}": others for name, others in modules().items()}

    assert list(TopologicalSorter(graph).static_order())
