"""Hyperparameters as JSON that SQL can filter by. The exact Python objects travel in a payload."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

#: SQL's name of a hyperparameter's type.
Kind = Literal["bigint", "double precision", "boolean", "text"]

#: Longer texts are cut: the column is for reading and filtering.
MAX_TEXT = 1_000
#: Last parts of the names of hyperparameters that change no model's structure, only values in it.
VALUES_IN_A_STRUCTURE = frozenset(("learning_rate", "lr", "epochs", "random_state", "seed"))
#: Bits of an integer that is shown in digits; longer ones are shown as hexadecimal.
MAX_BITS = 4_096
#: Deeper values are shown by their repr.
MAX_DEPTH = 4


def params_to_json(params: Mapping[str, Any]) -> dict[str, Any]:
    """Show hyperparameters as JSON.

    Parameters
    ----------
    params : mapping of str to object
        One combination, with scikit-learn's names.

    Returns
    -------
    dict
        The same names; numbers, texts, booleans, None and lists of them as they are, functions and classes
        by their name, all else by its repr. NaN and infinities become text, as JSON has none.
    """
    return {name: _to_json(value, MAX_DEPTH) for name, value in params.items()}


def params_digest(shown: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON params, so that equal combinations can be found across searches."""
    return digest_of(canonical(shown))


def canonical(shown: Mapping[str, Any]) -> str:
    """Write JSON params as the one text of all that are equal."""
    return json.dumps(shown, sort_keys=True, separators=(",", ":"))


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def structural_params(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params that may change a model's structure; combinations that share them share programs."""
    return {name: value for name, value in shown.items() if name.rpartition("__")[2] not in VALUES_IN_A_STRUCTURE}


def column_kinds(all_shown: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """Find one SQL type for each hyperparameter of a search.

    Parameters
    ----------
    all_shown : iterable of dict
        The JSON params of all trials.

    Returns
    -------
    dict of str to str
        Names in order of first appearance, each with the narrowest type that holds all its values.
    """
    kinds: dict[str, set[Kind]] = {}
    for shown in all_shown:
        for name, value in shown.items():
            seen = kinds.setdefault(name, set())
            if value is not None:
                seen.add(_kind(value))
    return {name: _widest(seen) for name, seen in kinds.items()}


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "bigint"
    return "double precision" if isinstance(value, float) else "text"


def _widest(seen: set[Kind]) -> Kind:
    if len(seen) == 1:
        return next(iter(seen))
    return "double precision" if seen == {"bigint", "double precision"} else "text"


def _to_json(value: Any, depth: int) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else _long_integer(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if depth and isinstance(value, (list, tuple)):
        return [_to_json(item, depth - 1) for item in value]
    if depth and isinstance(value, Mapping):
        return {_text(str(key)): _to_json(item, depth - 1) for key, item in value.items()}
    if isinstance(value, type) or callable(value):
        return _text(getattr(value, "__qualname__", None) or repr(value))
    return _text(repr(value))


def _long_integer(value: int) -> str:
    # Python refuses to write more than 4,300 digits
    return str(value) if value.bit_length() <= MAX_BITS else _text(hex(value))


def _text(value: str) -> str:
    # jsonb takes neither NUL nor lone surrogates
    clean = value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"
