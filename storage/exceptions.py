"""Exceptions and warnings as text, and back: names and plain values, for whoever may write the text runs no code by it.

A worker's exception has to arrive as itself where the search was started, and a pickle of it would let any worker run
code there. So its class is told by name, and what it holds as values that JSON can tell. `rebuild` looks the class up
among the modules that are imported already, and makes an instance without calling anything that the class defines.
"""

from __future__ import annotations

import base64
import builtins
import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, TypeVar

#: Characters of an exception's text form.
MAX_TEXT = 65_536
#: Characters of the name of its class, where that is all.
MAX_NAME = 1_000
#: How deep lists and dicts of an exception may lie in each other.
MAX_DEPTH = 10

E = TypeVar("E", bound=Exception)


class _NotPlainError(Exception):
    """A value is none that can be told in JSON."""


def qualified_name(kind: type) -> str:
    """Return a class's name, with its module unless that is ``builtins``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def exception_to_json(error: Exception) -> str:
    """Describe an exception: its class, what it says, its arguments and attributes.

    Parameters
    ----------
    error : Exception
        Of any class.

    Returns
    -------
    str
        For `exception_from_json`. Attributes that are no plain values are left out, and in the place of such arguments
        stands what the exception says. One that is too large has its name only, and can't be made again.
    """
    try:
        described = {
            "module": type(error).__module__,
            "name": type(error).__qualname__,
            "says": str(error),
            "args": _encoded_arguments(error),
            "attributes": _encoded_attributes(error),
        }
        text = json.dumps(described)
    except Exception:  # noqa: BLE001 - its own __str__ may raise
        text = ""
    # what can only be told by its traceback is known to be let out all the same
    return text if 0 < len(text) <= MAX_TEXT else json.dumps({"name": qualified_name(type(error))[:MAX_NAME]})


def exception_from_json(text: str) -> Exception | None:
    """Return the exception that `exception_to_json` described; of its class only ``__str__`` is called.

    Parameters
    ----------
    text : str
        Of somebody who is not trusted.

    Returns
    -------
    Exception or None
        None if it can't be made here: its class is not imported, is no Exception, or would say something else.
    """
    try:
        described = json.loads(text) if len(text) <= MAX_TEXT else {}
        kind = imported_class(described["module"], described["name"], Exception)
        if kind is None:
            return None
        # by what it says where its arguments show themselves in another way, as those of NumPy do
        for arguments in ([_decode(value) for value in described["args"]], [described["says"]]):
            error = rebuild(kind, arguments)
            for name, value in described["attributes"].items():
                # none that hides a method; not by setattr, which may be the class's own
                if _is_plain_name(name) and not callable(_in_classes(kind, name)):
                    vars(error)[name] = _decode(value)
            if str(error) == described["says"]:
                return error
    except Exception:  # noqa: BLE001 - whatever the text is
        return None
    return None


def imported_class(module: str, name: str, base: type[E]) -> type[E] | None:
    """Find a class of a module that is imported already, and import nothing for it.

    Parameters
    ----------
    module, name : str
        Its ``__module__`` and ``__qualname__``.
    base : type
        What it has to be a subclass of.
    """
    found: Any = sys.modules.get(module)
    holder: type = ModuleType
    for part in name.split("."):
        if not issubclass(type(found), holder):
            return None
        # by object's own look-up and no getattr: modules that are loaded late load at any look at them, and packages,
        # scipy for one, import what they are asked for
        found = object.__getattribute__(found, "__dict__").get(part)
        holder = type
    # not isinstance: it asks the object for its class
    return found if issubclass(type(found), type) and issubclass(found, base) else None


def imported_class_of(qualified: str, base: type[E]) -> type[E] | None:
    """Find the class of a `qualified_name` as `imported_class` does."""
    parts = qualified.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        found = imported_class(".".join(parts[:cut]) or "builtins", ".".join(parts[cut:]), base)
        if found is not None:
            return found
    return None


def rebuild(kind: type[E], arguments: Sequence[Any]) -> E:
    """Make an exception of a class with these arguments; only what Python itself defines is called.

    Parameters
    ----------
    kind : type
        The class; its own ``__new__`` and ``__init__`` are passed over.
    arguments : sequence
        What becomes ``args``.
    """
    of_python: Any = next(base for base in kind.__mro__ if vars(builtins).get(base.__name__) is base)
    error: E = of_python.__new__(kind, *arguments)
    of_python.__init__(error, *arguments)
    return error


def _encoded_arguments(error: Exception) -> list[Any]:
    # an OSError's args lack the name of the file
    arguments: Any = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
    try:
        return [_encode(value) for value in arguments]
    except _NotPlainError:
        return [str(error)]


def _encoded_attributes(error: Exception) -> dict[str, Any]:
    encoded = {}
    for name, value in vars(error).items():
        if _is_plain_name(name):
            with suppress(_NotPlainError):
                encoded[name] = _encode(value)
    return encoded


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and (not name.startswith("__") or name == "__notes__")


def _in_classes(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _encode(value: Any, depth: int = 0) -> Any:
    """Return a value for JSON: collections as ``{kind: items}``, so that a tuple stays one."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):  # NumPy's too
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if depth == MAX_DEPTH:
        raise _NotPlainError
    if type(value) in (list, tuple, set, frozenset):
        return {type(value).__name__: [_encode(item, depth + 1) for item in value]}
    if type(value) is dict:
        return {"dict": [[_encode(key, depth + 1), _encode(item, depth + 1)] for key, item in value.items()]}
    if hasattr(value, "item") and type(value).__module__ == "numpy":  # an integer or bool of NumPy's
        return _encode(value.item(), MAX_DEPTH)
    raise _NotPlainError


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "dict":
        return {_decode(key): _decode(item) for key, item in content}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(_decode, content))
