"""The source text of functions and classes that travel by value, for people: workers run what is pickled."""

from __future__ import annotations

import inspect
import io
from types import FunctionType
from typing import Any

from gridfleet.storage.payloads.format import _Pickler
from gridfleet.storage.sources.parsing import parsing

#: Classes and functions of one search whose source is kept.
MAX_SOURCES = 1_000


def source_texts(obj: Any) -> dict[str, str | None]:
    """Return the sources of what of the script itself travels with an object.

    Parameters
    ----------
    obj : object
        One that can be pickled.

    Returns
    -------
    dict of str to str or None
        By the qualified names of functions and classes; None where Python does not know the text, as of a console.
    """
    noted: dict[str, Any] = {}
    _NotingPickler(io.BytesIO(), noted).dump(obj)
    # what is defined in another one is in its text
    outer = {name: one for name, one in noted.items() if name.partition(".")[0] not in noted or "." not in name}
    return {name: _source(one) for name, one in sorted(outer.items())[:MAX_SOURCES]}


class _NotingPickler(_Pickler):
    """Notes what is pickled by value; arrays stay out of its stream."""

    def __init__(self, stream: io.BytesIO, noted: dict[str, Any]) -> None:
        super().__init__(stream, lambda _: None)
        self._noted = noted

    def reducer_override(self, obj: Any) -> Any:
        """Note a function or class of the script."""
        if isinstance(obj, (FunctionType, type)) and obj.__module__ == "__main__":
            self._noted.setdefault(obj.__qualname__, obj)
        return super().reducer_override(obj)


def _source(obj: Any) -> str | None:
    try:
        return parsing(inspect.getsource, obj)  # of a class, it parses its file
    except (OSError, TypeError, IndentationError, SyntaxError):  # a console's, or its file changed since
        return None
