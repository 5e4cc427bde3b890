"""The files of the script's own modules: what is imported, its packages whole, and what their functions import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.sources.archive import MAX_BYTES, MAX_FILES, can_be_named
from gridfleet.storage.sources.ignored import Ignored
from gridfleet.storage.sources.imports import imported_by, imported_names, mentioned_names, texts_beside_file
from gridfleet.storage.sources.local import OURS, is_installed

PYTHON = ".py"
#: What files end with that Python imports; bytecode is left out, for each Python makes its own.
CODE = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
#: How many of the largest files a refusal names.
NAMED = 3


@dataclass(frozen=True)
class Sources:
    """The script's own modules.

    Parameters
    ----------
    files : dict of str to bytes
        Their files, by their names in an archive.
    mentions : set of str
        Names of all top-level modules that they and the script may import.
    folders : dict of str to str
        Where the files of each top-level module lie, for modules that read what lies elsewhere in their project.
    """

    files: dict[str, bytes]
    mentions: set[str]
    folders: dict[str, str]


def collect_sources() -> Sources:
    """Return the files of the modules that are local to this process.

    These are the modules that are imported and not installed; each package whole, with its data files; and the
    modules that their functions and those of the script import, though nobody called them yet. What ``.gitignore``
    names is left out unless it is imported. So are hidden files and folders and virtual environments, and data files
    beside modules that are in no package, but for those that a module names that uses its ``__file__``.

    Raises
    ------
    InvalidSearchError
        If they are more than an archive may have, with the largest files.
    """
    return _Collection().collect()


class _Collection:
    """What was found so far."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._read: dict[str, bytes] = {}
        self._mentions: set[str] = set()
        self._size = 0
        self._roots: dict[str, _Root | None] = {}
        self._ignored = Ignored()

    def collect(self) -> Sources:
        imported = _imported_modules()
        for module in imported:
            self._add_imported(module)
        waiting = {module.__name__.partition(".")[0] for module in imported} | self._imported_by_script()
        seen: set[str] = set()
        while waiting - seen or self._files.keys() - self._read.keys():
            for name in sorted(waiting - seen):
                self._add_root(self._root(name))
            seen |= waiting
            waiting = self._imported_by_new_files()
        folders = {}
        for inside, file in self._files.items():
            if file.as_posix().endswith(f"/{inside}"):
                folders[inside.partition("/")[0].partition(".")[0]] = file.as_posix().removesuffix(inside)
        return Sources(self._read, self._mentions, folders)

    def _root(self, name: str) -> _Root | None:
        if name not in self._roots:
            self._roots[name] = _find(name)
        return self._roots[name]

    def _is_local(self, name: str) -> bool:
        return self._root(name) is not None

    def _imported_by_script(self) -> set[str]:
        script = sys.modules["__main__"]
        names = {name for name in imported_by(list(vars(script).values()), "__main__") if self._is_local(name)}
        file = getattr(script, "__file__", None)
        if file is not None and not is_installed(str(Path(file).absolute())):
            with suppress(OSError):  # a console's, or it is gone
                names |= self._imported_by(Path(file).read_bytes())
        return names

    def _imported_by_new_files(self) -> set[str]:
        """Read the files that were added, and return the local modules that they import."""
        names: set[str] = set()
        for inside in sorted(self._files.keys() - self._read.keys()):
            try:
                self._read[inside] = self._files[inside].read_bytes()
            except OSError:  # what this user can't read, no function of the script can need
                del self._files[inside]
                continue
            if inside.endswith(PYTHON):
                names |= self._imported_by(self._read[inside])
                self._add_data_beside(inside)
        return names

    def _add_data_beside(self, inside: str) -> None:
        """Add the data files that a module finds by its ``__file__``: those of packages are there already."""
        folder, texts = self._files[inside].parent, texts_beside_file(self._read[inside])
        folders = [text for text in texts if text and can_be_named(text) and (folder / text).is_dir()]
        for text in sorted(texts | {f"{one}/{text}" for one in folders for text in texts}):
            path = PurePosixPath(text)
            is_plain = (
                can_be_named(text) and path.as_posix() == text and not path.is_absolute() and ".." not in path.parts
            )
            file = folder / text
            if is_plain and file.is_file() and self._may_travel(folder, path):
                self._add((PurePosixPath(inside).parent / path).as_posix(), file)

    def _may_travel(self, folder: Path, path: PurePosixPath) -> bool:
        steps = [(folder / above, True) for above in list(path.parents)[:-1]] + [(folder / path, False)]
        return all(
            _is_for_others(entry, is_folder) and not self._ignored.matches(entry, is_folder=is_folder)
            for entry, is_folder in steps
        )

    def _imported_by(self, source: bytes) -> set[str]:
        mentioned = mentioned_names(source)
        self._mentions |= mentioned
        local = {name for name in mentioned if self._is_local(name)}
        return local & imported_names(source) if local else local

    def _add_imported(self, module: ModuleType) -> None:
        file = Path(_file_of(module))
        suffix = _suffix(file) or PYTHON
        place = module.__name__.replace(".", "/")
        inside = f"{place}/__init__{suffix}" if _has(module, "__path__") is not None else f"{place}{suffix}"
        if file.is_file():
            self._add(inside, file)
            return
        with suppress(Exception):  # in a zip file, say
            source = module.__spec__.loader.get_source(module.__name__)  # type: ignore[union-attr]
            self._read[f"{inside.removesuffix(suffix)}{PYTHON}"] = source.encode()

    def _add_root(self, root: _Root | None) -> None:
        if root is None:
            return
        if root.file is not None:
            self._add(f"{root.name}{_suffix(root.file) or PYTHON}", root.file)
        for folder in root.folders:
            for inside, file in self._walk(folder, root.name, in_package=False, above=(folder.resolve(),)):
                self._add(inside, file)

    def _walk(
        self, folder: Path, inside: str, *, in_package: bool, above: tuple[Path, ...]
    ) -> Iterator[tuple[str, Path]]:
        """Find the files of a package, those of its folders included, through links as well."""
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            return
        in_package = in_package or any(entry.name == "__init__.py" for entry in entries)
        for entry in entries:
            is_folder = entry.is_dir()
            if not _is_for_others(entry, is_folder) or self._ignored.matches(entry, is_folder=is_folder):
                continue
            if is_folder:
                real = entry.resolve()
                if real not in above:  # a link back to a folder above would never end
                    yield from self._walk(entry, f"{inside}/{entry.name}", in_package=in_package, above=(*above, real))
            elif entry.is_file() and (in_package or _suffix(entry)):
                yield f"{inside}/{entry.name}", entry

    def _add(self, inside: str, file: Path) -> None:
        if inside in self._files or inside in self._read:
            return
        self._files[inside] = file
        with suppress(OSError):  # removed just now
            self._size += file.stat().st_size
        if self._size > MAX_BYTES or len(self._files) > MAX_FILES:
            raise InvalidSearchError(_too_much(list(self._files.values())))


@dataclass(frozen=True)
class _Root:
    """A top-level module of the user's: one file, or the folders of a package."""

    name: str
    file: Path | None
    folders: Sequence[Path]


def _imported_modules() -> list[ModuleType]:
    """Return the modules that the script or one of its modules imported, and that are not installed."""
    found = []
    for name, module in list(sys.modules.items()):
        if name in ("__main__", OURS) or name.startswith(f"{OURS}.") or _has(module, "__name__") != name:
            continue
        file = _file_of(module)
        if file and not is_installed(file):
            found.append(module)
    return found


def _file_of(module: Any) -> str:
    file = _has(module, "__file__")
    if not isinstance(file, str):
        return ""
    return file if file.startswith("/") else str(Path(file).absolute())  # no Path for each of thousands of modules


def _has(module: Any, name: str) -> Any:
    # not by getattr, at which modules of some libraries import others, or fail to
    return getattr(module, "__dict__", {}).get(name)


def _find(name: str) -> _Root | None:
    """Find a top-level module, without importing it; None for what is installed or not there."""
    if name in ("__main__", OURS):
        return None
    module = sys.modules.get(name)
    if module is not None:
        file, folders = _file_of(module), list(_has(module, "__path__") or [])
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):  # of finders that other libraries put there
            return None
        if spec is None:
            return None
        file, folders = (spec.origin or "") if spec.has_location else "", list(spec.submodule_search_locations or [])
    local = [Path(folder).absolute() for folder in folders if not is_installed(str(Path(folder).absolute()))]
    if folders:
        found = [folder for folder in local if folder.is_dir()]
        return _Root(name, None, found) if found else None
    if not file or is_installed(file) or not Path(file).is_file():
        return None
    return _Root(name, Path(file), ())


def _suffix(file: Path) -> str | None:
    """Return what the name of a file of code ends with; None for other files."""
    return next((suffix for suffix in sorted(CODE, key=len, reverse=True) if file.name.endswith(suffix)), None)


def _is_for_others(entry: Path, is_folder: bool) -> bool:
    """Whether a file or folder of a package may travel: nothing hidden, no bytecode, no virtual environment."""
    if entry.name.startswith(".") or entry.name == "__pycache__" or not can_be_named(entry.name):
        return False
    if is_folder:
        return not (entry / "pyvenv.cfg").exists()
    return not entry.name.endswith((".pyc", ".pyo"))


def _too_much(files: Sequence[Path]) -> str:
    sizes = sorted(((file.stat().st_size, file) for file in files if file.exists()), reverse=True)
    largest = ", ".join(f"{file} ({size / 1e6:,.1f} MB)" for size, file in sizes[:NAMED])
    total = sum(size for size, _ in sizes)
    return (
        f"the script's own modules and packages are more than {MAX_BYTES // 1_000_000} MB or {MAX_FILES:,} files "
        f"({total / 1e6:,.1f} MB in {len(files):,} files until here), which is too much to travel to the workers with "
        f"the search; the largest are {largest}; name what the models do not need in a .gitignore, or move it out of "
        "the package"
    )
