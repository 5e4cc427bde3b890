"""An estimator as people read it: ``KerasClassifier(create_model, epochs=1)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gridfleet.scheduler.submission.drawn import MAX_REPR, shown

#: Deeper values are shown by their type: a pipeline of pipelines has few.
MAX_DEPTH = 6


def estimator_text(estimator: Any) -> str:
    """Return an estimator with those parameters that are not its defaults; functions and classes by their names."""
    text = _text(estimator, MAX_DEPTH)
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 1] + "…"


def _text(value: Any, depth: int) -> str:
    if depth == 0:
        return f"{type(value).__name__}(…)"
    if isinstance(value, type) or inspect.isroutine(value):
        return str(value.__name__)
    if type(value) in (list, tuple):
        inner = ", ".join(_text(one, depth - 1) for one in value)
        return f"[{inner}]" if type(value) is list else f"({inner}{',' * (len(value) == 1)})"
    if type(value) is dict:
        return "{" + ", ".join(f"{shown(key)}: {_text(one, depth - 1)}" for key, one in value.items()) + "}"
    if not hasattr(value, "get_params"):
        return shown(value)
    try:
        params, defaults = value.get_params(deep=False), inspect.signature(type(value)).parameters
    except Exception:  # noqa: BLE001 - code of the user's: what it can't say of itself is nobody's concern here
        return shown(value)
    return f"{type(value).__name__}({', '.join(_changed(params, defaults, depth))})"


def _changed(params: Mapping[str, Any], defaults: Mapping[str, inspect.Parameter], depth: int) -> list[str]:
    first = next(iter(defaults), None)
    changed = []
    for name in sorted(params, key=lambda name: list(defaults).index(name) if name in defaults else len(defaults)):
        value = params[name]
        if name in defaults and _is_default(value, defaults[name].default):
            continue
        # the function that makes a model needs no name
        is_plain = name == first and inspect.isroutine(value)
        changed.append(_text(value, depth - 1) if is_plain else f"{name}={_text(value, depth - 1)}")
    return changed


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and shown(value) == shown(default))
