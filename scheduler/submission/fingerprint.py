"""What an object is, as a digest that every process computes alike, whatever its hash seed.

The bytes of a pickle are no such digest. Sets among the constants of a function lie in another order in each process,
and cloudpickle numbers the classes of a script anew in each. This walks through the object itself: a function is its
bytecode, constants, names, defaults, closure and the globals that it uses; a class its members; an instance what pickle
would keep of it; what is installed is its name and the release of its package. What can't be seen into is refused with
a sentence.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Literal, Self

import numpy as np

from gridfleet.storage.payloads.packages import package_of
from gridfleet.storage.sources.local import OURS, is_installed

#: What Python makes of a class by itself, or what changes nothing that the class does.
NO_MEMBERS = frozenset(
    (
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    )
)
_GLOBALS = frozenset(("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"))
_CACHED = type(functools.lru_cache(len))
_DESCRIPTORS = (
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)
#: Objects that one digest goes through; who has more is no model.
MAX_OBJECTS = 2_000_000
#: Objects of Keras' classes are pickled as files, which hold the time of day.
_SAVED_AS_FILES = ("keras.src.saving.keras_saveable", "KerasSaveable")
_FROZEN_DISTRIBUTION = ("scipy.stats._distn_infrastructure", "rv_frozen")


class NotSeenError(Exception):
    """An object that can't be seen into; the text says which, and where it was found."""


def fingerprint(value: Any, place: str) -> str:
    """Return the digest of an object.

    Parameters
    ----------
    value : object
        The object.
    place : str
        What it is called in an error.

    Raises
    ------
    NotSeenError
        If it, or something that it consists of, can't be seen into.
    """
    return Fingerprint().add(value, place).digest()


class Fingerprint:
    """The digest of several objects, one after the other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        # functions and classes that came before, which may refer to each other, by their numbers; kept, for a number
        # stands for an address
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []
        self._inside: dict[int, int] = {}
        self._place: list[str] = []
        self._n_objects = 0

    def copy(self) -> Fingerprint:
        """Return another one that goes on from here."""
        other = Fingerprint()
        other._hash = self._hash.copy()
        other._numbers, other._kept = dict(self._numbers), list(self._kept)
        return other

    def add(self, value: Any, place: str) -> Self:
        """Go on with an object; ``place`` is what it is called in an error.

        Raises
        ------
        NotSeenError
            If it, or something that it consists of, can't be seen into.
        """
        try:
            with self._at(place):
                self._add(value)
        except RecursionError as error:
            raise NotSeenError(f"{place} is nested too deeply") from error
        return self

    def digest(self) -> str:
        """Return the digest of all that was added so far."""
        return self._hash.hexdigest()

    @contextmanager
    def _at(self, place: str) -> Iterator[None]:
        self._place.append(place)
        yield
        self._place.pop()  # not after an error, which says where it was

    def _refuse(self, why: str) -> NotSeenError:
        return NotSeenError(f"{' → '.join(self._place)}: {why}")

    def _emit(self, *texts: str | bytes) -> None:
        for text in texts:
            content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            self._hash.update(len(content).to_bytes(8, "little"))
            self._hash.update(content)

    def _add(self, value: Any) -> None:
        kind = type(value)
        self._n_objects += 1
        if self._n_objects > MAX_OBJECTS:
            raise self._refuse(f"there are more than {MAX_OBJECTS:,} objects in it")
        if (plain := _PLAIN.get(kind)) is not None:
            self._emit(kind.__name__, plain(value))
            return
        if id(value) in self._inside:  # it holds itself
            self._emit("again", str(len(self._inside) - self._inside[id(value)]))
            return
        self._inside[id(value)] = len(self._inside)
        try:
            self._add_compound(kind, value)
        finally:
            del self._inside[id(value)]

    def _add_compound(self, kind: type, value: Any) -> None:
        if (walk := _WALKS.get(kind)) is not None:
            walk(self, value)
        elif issubclass(kind, type):
            self._add_class(value)
        elif issubclass(kind, np.ndarray):
            self._add_array(value)
        elif issubclass(kind, _DESCRIPTORS):
            self._emit("descriptor", value.__name__)
        elif _is_of(value, _SAVED_AS_FILES):
            self._add_keras_object(kind, value)
        elif _is_of(value, _FROZEN_DISTRIBUTION):  # which holds the random state of the process
            self._emit("distribution")
            self._add_all(type(value.dist), value.args, value.kwds)
        else:
            self._add_reduced(value)

    def _add_all(self, *values: Any) -> None:
        self._emit(str(len(values)))
        for value in values:
            self._add(value)

    def _add_sequence(self, value: list[Any] | tuple[Any, ...]) -> None:
        self._emit(type(value).__name__)
        self._add_all(*value)

    def _add_mapping(self, value: Mapping[Any, Any]) -> None:
        self._emit("dict", str(len(value)))
        for key, item in value.items():  # in its order, which the code may see
            self._add(key)
            with self._at(str(key) if isinstance(key, str) else "…"):
                self._add(item)

    def _add_set(self, value: set[Any] | frozenset[Any]) -> None:
        self._emit(type(value).__name__, *sorted(fingerprint(item, self._place[-1]) for item in value))

    def _add_array(self, value: np.ndarray[Any, Any]) -> None:
        order: Literal["F", "C"] = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        self._emit("array", order, str(value.shape))
        self._add_all(type(value), value.dtype)
        if value.dtype.hasobject:
            self._add_all(*value.ravel().tolist())
        else:
            self._emit(np.asarray(value).tobytes(order))

    def _add_module(self, value: types.ModuleType) -> None:
        self._emit("module", value.__name__, self._origin(value.__name__))

    def _add_function(self, value: types.FunctionType) -> None:
        if self._is_named(value, value.__qualname__) or self._came_before(value):
            return
        self._emit("function", value.__name__, value.__qualname__)
        with self._at(value.__name__):
            self._add(value.__code__)
            self._add_all(value.__defaults__, value.__kwdefaults__, vars(value))
            for cell in value.__closure__ or ():
                self._add_cell(cell)
            used = value.__globals__
            if not _is_of_package(used.get("__name__")):  # else the release of the package says it
                self._add_globals(value.__code__, used)

    def _add_globals(self, code: types.CodeType, used: dict[str, Any]) -> None:
        names, modules = _names(code)
        for name in sorted(names & used.keys()):
            self._emit(name)
            with self._at(name):
                self._add(used[name])
        for module in sorted(modules):
            self._emit("imports", module, self._origin(module))

    def _add_cell(self, value: types.CellType) -> None:
        try:
            content = value.cell_contents
        except ValueError:
            self._emit("empty")
            return
        self._emit("cell")
        self._add(content)

    def _add_code(self, value: types.CodeType) -> None:
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        self._emit("code", value.co_name, str(counts), value.co_code, getattr(value, "co_exceptiontable", b""))
        self._add_all(value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        self._add_all(*value.co_consts)

    def _add_class(self, value: type) -> None:
        if self._is_named(value, value.__qualname__) or self._came_before(value):
            return
        self._emit("class", value.__name__, value.__qualname__)
        with self._at(value.__name__):
            self._add_all(type(value), value.__bases__)
            members = dict(vars(value))
            if issubclass(value, enum.Enum):
                self._add({name: member.value for name, member in value.__members__.items()})
                members = {name: own for name, own in members.items() if isinstance(own, types.FunctionType)}
            for name in sorted(members.keys() - NO_MEMBERS):
                inherited = next((vars(base)[name] for base in value.__mro__[1:] if name in vars(base)), self)
                if inherited is members[name]:  # which cloudpickle leaves out
                    continue
                self._emit(name)
                with self._at(name):
                    self._add(members[name])

    def _add_property(self, value: property) -> None:
        self._emit("property")
        self._add_all(value.fget, value.fset, value.fdel)

    def _add_method_of_class(self, value: classmethod[Any, Any, Any] | staticmethod[Any, Any]) -> None:
        self._emit(type(value).__name__)
        self._add(value.__func__)

    def _add_keras_object(self, kind: type, value: Any) -> None:
        """Go on with an object of Keras that is a loss, or an optimizer of Keras' own before it is used."""
        self._emit("of Keras")
        if value._obj_type() == "Loss":  # not its configuration, in which Huber's has no delta
            self._add_all(kind, vars(value))
            return
        config = value.get_config() if value._obj_type() == "Optimizer" and not value.built else {}
        given = {name for name, one in inspect.signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD}
        if is_own_code(kind) or not config or given - config.keys():
            raise self._refuse(f"a {kind.__name__} object can't be seen into; give its name or its class")
        # its name has the number of how many were made before
        self._add_all(kind, {name: one for name, one in config.items() if name != "name"})

    def _add_cached(self, value: Any) -> None:
        if not self._is_named(value, value.__qualname__):
            self._emit("cached")
            self._add_all(value.cache_parameters(), value.__wrapped__)

    def _add_reduced(self, value: Any) -> None:
        """Go on with what pickle keeps of an object."""
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception as error:
            raise self._refuse(f"a {type(value).__name__} can't be seen into ({error})") from error
        if isinstance(reduced, str):
            if not self._is_named(value, reduced):
                raise self._refuse(f"{reduced} is found in no module")
            return
        self._emit("object", type(value).__name__)
        made_by, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        self._add_all(made_by, arguments, state)
        self._add_all(*(items or ()))
        self._add_all(*(pairs or ()))

    def _came_before(self, value: Any) -> bool:
        number = self._numbers.setdefault(id(value), len(self._kept))
        if number < len(self._kept):
            self._emit("known", str(number))
            return True
        self._kept.append(value)
        return False

    def _is_named(self, value: Any, name: str) -> bool:
        """Go on with what a module has under a name, if that is this object: its name says what it is."""
        module = getattr(value, "__module__", None) or pickle.whichmodule(value, name)  # type: ignore[attr-defined]
        if module == "__main__" or _found(module, name) is not value:
            return False
        self._emit("named", module, name, self._origin(module))
        return True

    def _origin(self, module: str) -> str:
        try:
            return _origin(module)
        except LookupError as error:
            raise self._refuse(f"the module {module} {error.args[0]}") from None


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@functools.cache
def _origin(module: str) -> str:
    """Return the release of the package that a module is of; ``own`` for what travels as source.

    Raises
    ------
    LookupError
        If it is of none.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return "python"
    if top == OURS:
        return f"{OURS} {metadata.version(OURS)}"
    file = _file(top) or _file(module)
    if file is None:
        raise LookupError("has no file")
    if not is_installed(file):
        return "own"
    package = package_of(top)
    if package is None:
        raise LookupError("is of no package that says its release")
    return package


def _file(module: str) -> str | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        file: str | None = getattr(loaded, "__file__", None)
        return file
    try:
        spec = importlib.util.find_spec(module) if "." not in module else None
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def is_own_code(kind: type) -> bool:
    """Whether a class, or one that it is made of, is the user's own and none of an installed package."""
    return not all(_is_of_package(base.__module__) for base in kind.__mro__)


def _is_of_package(module: str | None) -> bool:
    try:
        return module not in (None, "__main__") and _origin(str(module)) != "own"
    except LookupError:
        return False


def _is_of(value: Any, kind: tuple[str, str]) -> bool:
    """Whether an object is of a class that need not be imported here."""
    known = getattr(sys.modules.get(kind[0]), kind[1], None)
    return known is not None and isinstance(value, known)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the globals that some code and the functions in it use, and the modules that they import."""
    names, modules = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in _GLOBALS:
            names.add(step.argval)
        elif step.opname == "IMPORT_NAME" and step.argval:
            modules.add(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more_names, more_modules = _names(constant)
            names |= more_names
            modules |= more_modules
    return frozenset(names), frozenset(modules)


#: Values that are nothing but their bytes.
_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"",
    type(...): lambda _: b"",
    type(NotImplemented): lambda _: b"",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: hex(value).encode(),
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
    str: lambda value: value.encode("utf-8", "surrogatepass"),
    bytes: bytes,
    bytearray: bytes,
}
_WALKS: dict[type, Callable[[Fingerprint, Any], None]] = {
    list: Fingerprint._add_sequence,
    tuple: Fingerprint._add_sequence,
    dict: Fingerprint._add_mapping,
    types.MappingProxyType: Fingerprint._add_mapping,
    set: Fingerprint._add_set,
    frozenset: Fingerprint._add_set,
    types.ModuleType: Fingerprint._add_module,
    types.FunctionType: Fingerprint._add_function,
    types.CodeType: Fingerprint._add_code,
    types.CellType: Fingerprint._add_cell,
    property: Fingerprint._add_property,
    classmethod: Fingerprint._add_method_of_class,
    staticmethod: Fingerprint._add_method_of_class,
    _CACHED: Fingerprint._add_cached,
}
