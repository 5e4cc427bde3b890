"""The modules of a search's script, where its trials are evaluated: there for that search, gone afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from gridfleet.storage.payloads.host_cache import cache_folder
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import Settings
from gridfleet.worker.trial.unpacked import UnpackedSources

#: What the payload of an archive is.
KIND = "sources"
#: What the names of files end with that Python imports.
CODE = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)


class ScriptModules:
    """Lets one search at a time import the modules that lay beside its script.

    They are first in ``sys.path`` while something of the search is loaded, fitted or scored, as they are in the script.
    Outside of that the process has neither their folder nor them: a file ``redis.py`` of the script stands in for
    nothing that the worker itself imports.

    Parameters
    ----------
    payloads : PayloadStore
        The fleet's.
    settings : Settings
        Where files of this host are kept.
    """

    def __init__(self, payloads: PayloadStore, settings: Settings) -> None:
        self._payloads = payloads
        self._host_folder = cache_folder(settings) / "sources"
        self._digest: str | None = None
        self._unpacked: UnpackedSources | None = None
        self._folder = ""
        self._finder = _Finder(Path(), {})
        self._names = _Names([])
        self._modules: dict[str, ModuleType] = {}

    @contextmanager
    def of_search(self, digest: str | None, load: Callable[[str, str], Any]) -> Iterator[None]:
        """Have the modules of a search in a block.

        Parameters
        ----------
        digest : str or None
            Of its archive; None if its script has no modules of its own.
        load : callable
            Returns a payload, by kind and digest.

        Raises
        ------
        PayloadError
            If the archive is missing, damaged, or not signed.
        """
        if digest is None:
            yield
            return
        if digest != self._digest:
            self._change(digest, load(KIND, digest))
        shadowed = self._enter()
        try:
            yield
        finally:
            self._leave(shadowed)

    def _change(self, digest: str, sources: tuple[bytes, dict[str, str]]) -> None:
        """Forget the modules of another search, and what was loaded with them."""
        if self._unpacked is not None:
            self._unpacked.close()
            self._unpacked = None
        self._modules = {}
        self._digest = None
        # also those of the new ones: what was loaded without them has others of these names
        self._payloads.forget(self._names.top)
        archive, folders = sources
        self._unpacked = UnpackedSources(self._host_folder, digest, archive)
        self._folder = str(self._unpacked.path)
        self._finder = _Finder(self._unpacked.path, folders)
        self._names = _Names(self._unpacked.names, self._folder)
        self._payloads.forget(self._names.top)
        self._digest = digest
        importlib.invalidate_caches()

    def _enter(self) -> dict[str, ModuleType]:
        """Put the modules where imports find them; returns what has the same names and steps aside."""
        shadowed = self._taken_out()
        # a package without __init__.py that the worker has too has our folder as well, while that is in sys.path
        self._modules = {name: module for name, module in self._modules.items() if name not in sys.modules}
        sys.modules.update(self._modules)
        for parent, child, module in self._in_other_packages():
            setattr(parent, child, module)
        sys.path.insert(0, self._folder)
        sys.meta_path.insert(0, self._finder)
        return shadowed

    def _leave(self, shadowed: dict[str, ModuleType]) -> None:
        self._modules = self._taken_out()
        for parent, child, module in self._in_other_packages():
            if getattr(parent, child, None) is module:
                delattr(parent, child)
        with suppress(ValueError):  # the model's code may have removed it
            sys.meta_path.remove(self._finder)
        with suppress(ValueError):
            sys.path.remove(self._folder)
        sys.modules.update(shadowed)

    def _taken_out(self) -> dict[str, ModuleType]:
        """Remove from `sys.modules` what has the name of one of the script's modules; returns what that was."""
        found = [name for name in list(sys.modules) if self._names.has(name)]
        return {name: sys.modules.pop(name) for name in found}

    def _in_other_packages(self) -> Iterator[tuple[ModuleType, str, ModuleType]]:
        """Yield the modules whose package is not the script's alone: it, their names in it, and they."""
        for name, module in self._modules.items():
            parent, _, child = name.rpartition(".")
            if parent not in self._modules and parent in sys.modules:
                yield sys.modules[parent], child, module


class _Finder:
    """Finds the modules of an archive, and lets them see their own place as ``__file__`` where that is this host's.

    A module may read what lies elsewhere in its project, ``Path(__file__).parents[1] / "data"``, as it is imported. On
    the script's own host it finds it so; on another there is only what travelled.

    Parameters
    ----------
    unpacked : Path
        Where the archive is unpacked.
    folders : mapping of str to str
        Where each of its top-level modules lay.
    """

    def __init__(self, unpacked: Path, folders: Mapping[str, str]) -> None:
        self._unpacked = unpacked
        self._folders = folders

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module as `sys.path` has it; None for all that is not the archive's."""
        folder = self._folders.get(name.partition(".")[0])
        if folder is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        file = Path(spec.loader.path)
        if not file.is_relative_to(self._unpacked):
            return None
        place = Path(folder) / file.relative_to(self._unpacked)
        try:
            if place.read_bytes() != file.read_bytes():
                return None
        except OSError:  # another host, or another user
            return None
        spec.loader = _LoaderAtItsPlace(spec.loader.name, spec.loader.path)
        spec.loader.place = str(place)
        return spec


class _LoaderAtItsPlace(SourceFileLoader):
    place: str

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.place
        super().exec_module(module)


class _Names:
    """The names of the modules in an archive.

    Parameters
    ----------
    files : collection of str
        The archive's.
    folder : str
        Where they are.
    """

    def __init__(self, files: Collection[str], folder: str = "") -> None:
        self._folder = folder
        paths = [PurePosixPath(file) for file in files]
        code = [path for path in paths if path.name.endswith(CODE)]
        #: a package's name stands for all that is in it
        self._modules = {
            ".".join(path.parent.parts if path.name.startswith("__init__.") else _without_suffix(path).parts)
            for path in code
        }
        self.top = {path.parts[0].partition(".")[0] for path in paths}

    def has(self, name: str) -> bool:
        """Whether an imported module is one of the script's, or stands in for one."""
        if name.partition(".")[0] not in self.top:
            return False
        parts = name.split(".")
        if any(".".join(parts[:n]) in self._modules for n in range(1, len(parts) + 1)):
            return True
        # a package without __init__.py: it may have parts that are installed
        folders = list(getattr(sys.modules[name], "__path__", []))
        return bool(folders) and all(Path(folder).is_relative_to(self._folder) for folder in folders)


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    return path.with_name(path.name.partition(".")[0])
