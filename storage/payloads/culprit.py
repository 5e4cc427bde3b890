"""Names the attribute of an object that can't be pickled or copied, however deep it lies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from gridfleet.storage.errors import NotPicklableError

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
    """Name the attribute, or the attribute of an attribute, that can't be pickled or copied.

    Parameters
    ----------
    obj : object
        What was refused.
    error : Exception
        How it was refused.
    by : callable
        What refuses it: ``cloudpickle.dumps`` or ``copy.deepcopy``.

    Returns
    -------
    str
        Where it is, what it is, and what to do.
    """
    path: list[str] = []
    for _ in range(MAX_DEPTH):
        inner = _first_refused(obj, by)
        if inner is None:
            break
        name, obj = inner
        if not name.isdecimal():  # a place in a list helps nobody to find it
            path.append(name)
    where = f"{'.'.join(path)} is {_shown(obj)}" if path else f"it is {_shown(obj)}"
    return f"{where} ({type(error).__name__}: {error}); make it in the function that builds the model, or leave it out"


def _first_refused(obj: Any, by: Callable[[Any], object]) -> tuple[str, Any] | None:
    items: Iterable[tuple[Any, Any]]
    if isinstance(obj, dict):
        items = obj.items()
    elif isinstance(obj, (list, tuple)):
        items = enumerate(obj)
    else:
        items = getattr(obj, "__dict__", {}).items()
    for name, value in items:
        try:
            by(value)
        except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
            return str(name), value
    return None


def _shown(obj: Any) -> str:
    return f"a {type(obj).__name__}"
