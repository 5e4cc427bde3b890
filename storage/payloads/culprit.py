"""Names the attribute of an object that can't be pickled or copied, however deep it lies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from gridfleet.storage.errors import NotPicklableError
from gridfleet.storage.sources.imports import with_inner

#: How far down an attribute is looked for that can't be pickled: a callback in a list of a step of a pipeline is five.
MAX_DEPTH = 10


def check_can_be_copied(obj: Any, *, what: str) -> None:
    """Make sure that an object can be copied in memory, as scikit-learn does before every fit.

    Parameters
    ----------
    obj : object
        What is to be copied.
    what : str
        What it is called in an error.

    Raises
    ------
    NotPicklableError
        Naming the attribute that can't be copied.
    """
    try:
        copy.deepcopy(obj)
    except Exception as error:
        raise NotPicklableError(
            f"{what} can't be copied or pickled, so it can't travel to the workers: "
            f"{culprit(obj, error, by=copy.deepcopy)}"
        ) from error


def culprit(obj: Any, error: Exception, *, by: Callable[[Any], object]) -> str:
    """Name the attribute, the attribute of an attribute, or the variable of a function that can't be pickled or copied.

    Parameters
    ----------
    obj : object
        What was refused.
    error : Exception
        How it was refused.
    by : callable
        What refuses it: cloudpickle's pickler or ``copy.deepcopy``.

    Returns
    -------
    str
        Where it is, what it is, and what to do.
    """
    path: list[str] = []
    uses: list[str] = []
    for _ in range(MAX_DEPTH):
        inner = next((part for part in _parts(obj) if _is_refused(part[1], by)), None)
        if inner is None:
            break
        name, part = inner
        if isinstance(obj, FunctionType):
            uses.append(f"{_place(path)}`{obj.__qualname__}` uses {name}")
            path = []
        elif name:
            path.append(name)
        obj = part
    what = f"{'.'.join(path) or 'it'} is {_shown(obj)}"
    if uses:
        what = f"{': '.join(uses)}, " + (f"whose {what}" if path else _shown(obj))
    return f"{what} ({type(error).__name__}: {error}); make it in the function that builds the model, or leave it out"


def _place(path: list[str]) -> str:
    return f"{'.'.join(path)} is a function: " if path else ""


def _is_refused(obj: Any, by: Callable[[Any], object]) -> bool:
    try:
        by(obj)
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
        return True
    return False


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object consists of, and where it has it; nothing for a place in a list, which helps nobody."""
    if isinstance(obj, dict):
        yield from (("" if str(name).isdecimal() else str(name), value) for name, value in obj.items())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from (("", value) for value in obj)
    elif isinstance(obj, FunctionType):
        yield from _variables(obj)
    elif isinstance(obj, MethodType):
        yield from (("__self__", obj.__self__), ("__func__", obj.__func__))
    elif isinstance(obj, partial):
        yield from (("func", obj.func), ("args", obj.args), ("keywords", obj.keywords))
    elif isinstance(obj, type):
        yield from ((name, getattr(value, "__func__", value)) for name, value in list(vars(obj).items()))
    else:
        yield from ((str(name), value) for name, value in getattr(obj, "__dict__", {}).items())
        yield type(obj).__name__, type(obj)


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the values that travel with a function of a script, and what they are to it."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the variable `{name}` of the function around it", cell.cell_contents
        except ValueError:  # not there yet
            continue
    names = dict.fromkeys(name for code in with_inner(function.__code__) for name in code.co_names)
    yield from ((f"the global `{name}`", function.__globals__[name]) for name in names if name in function.__globals__)
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "a default", value
    yield from ((f"its attribute `{name}`", value) for name, value in vars(function).items())


def _shown(obj: Any) -> str:
    return f"a {type(obj).__name__}"
