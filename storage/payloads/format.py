"""Objects to bytes and back, with arrays out of band so that they can be memory-mapped.

The content of a payload is a magic word, the length of a JSON header, the header (sizes of the parts, the
Python whose bytecode is in them, if any is, and the releases of the packages that are named in them), then the
pickle and its out-of-band buffers (PEP 574), each aligned so that arrays can be used in place.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, singledispatch
from typing import Any

import cloudpickle
import numpy as np

from gridfleet.storage.errors import MissingCodeError, NotPicklableError, PayloadError
from gridfleet.storage.payloads.culprit import culprit
from gridfleet.storage.payloads.packages import explain_missing, modules_named, packages_of

#: What a payload begins with; its number changes with the layout, and with what is signed of it.
MAGIC = b"gridfleet4"
#: Bytes; a cache line, and enough for every numpy dtype.
ALIGNMENT = 64
#: What a pickle contains if functions or classes travel in it by value.
BY_VALUE = b"cloudpickle.cloudpickle"
_LRU_CACHE = type(lru_cache(abs))
_DISPATCH = singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def dump(
    kind: str,
    obj: Any,
    *,
    what: str,
    modules: Iterable[str] = (),
    so: str = "it can't travel to the workers",
) -> list[memoryview]:
    """Serialise an object and what it is.

    Functions and classes of the script itself, a notebook or a console travel by value. All others travel by name:
    workers have installed packages, and the script's own modules as source (storage/sources).

    Parameters
    ----------
    kind : str
        What `load` has to find it to be.
    obj : object
        What to serialise.
    what : str
        What it is called in an error.
    modules : iterable of str
        Top-level modules that are needed beside those that the pickle names.
    so : str, default="it can't travel to the workers"
        What follows for an object that can't be pickled, in the error.

    Returns
    -------
    list of memoryview
        The content, in parts. Large arrays are not copied.

    Raises
    ------
    NotPicklableError
        Naming the attribute that can't be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, buffer_callback=buffers.append).dump((kind, obj))
    except Exception as error:
        raise NotPicklableError(f"{what} can't be pickled, so {so}: {culprit(obj, error, by=_dumps)}") from error
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    code_of = _PYTHON if BY_VALUE in stream.getvalue() else None
    packages = packages_of(modules_named(stream.getbuffer()) | set(modules))
    header = json.dumps({"parts": [part.nbytes for part in parts], "python": code_of, "packages": packages}).encode()
    start = MAGIC + len(header).to_bytes(8, "little") + header
    content = [memoryview(start)]
    position = len(start)
    for part in parts:
        padding = -position % ALIGNMENT
        content += [memoryview(bytes(padding)), part]
        position += padding + part.nbytes
    return [part for part in content if part.nbytes]


def load(content: memoryview) -> tuple[str, Any]:
    """Restore kind and object from a payload's content; its arrays stay views of `content`.

    Call it only with content whose signature holds: unpickling runs code.

    Raises
    ------
    PayloadError
        If the content is not one.
    MissingCodeError
        If its code can't be loaded here.
    """
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise PayloadError("this is not a payload of gridfleet, or one of another version")
    try:
        header, parts = _parts(content)
        python, packages = header["python"], dict(header.get("packages", {}))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise PayloadError("the header of the payload is damaged; submit the search again") from error
    if python not in (None, _PYTHON):
        raise MissingCodeError(
            f"the payload has functions of a script that ran on Python {python}, whose bytecode this "
            f"Python {_PYTHON} can't run; use the same minor version where searches are submitted and where they run"
        )
    try:
        kind, obj = pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - signed, see storage/payloads/store.py
    except ImportError as error:
        raise MissingCodeError(explain_missing(error, packages)) from error
    except Exception as error:
        raise MissingCodeError(
            f"the payload can't be loaded on this worker ({type(error).__name__}: {error}); "
            "install the same releases of its packages where searches are submitted and where they run"
        ) from error
    return kind, obj


def python_of(content: Sequence[memoryview]) -> str | None:
    """Return the minor version of Python that can load a dumped object; None: any."""
    python: str | None = json.loads(bytes(content[0][len(MAGIC) + 8 :]))["python"]
    return python


def pickle_of(content: memoryview) -> memoryview:
    """Return the pickle in a payload's content, without the arrays beside it."""
    return _parts(content)[1][0]


def _parts(content: memoryview) -> tuple[Mapping[str, Any], list[memoryview]]:
    """Return the header of a payload, and the parts that it tells of."""
    header_start = len(MAGIC) + 8
    header_end = header_start + int.from_bytes(content[len(MAGIC) : header_start], "little")
    header = json.loads(bytes(content[header_start:header_end]))
    position = header_end
    parts = []
    for size in header["parts"]:
        position += -position % ALIGNMENT
        if not 0 <= size <= len(content) - position:
            raise ValueError(f"a part of {size} bytes is not there")
        parts.append(content[position : position + size])
        position += size
    return header, parts


def size_of(content: Sequence[memoryview]) -> int:
    """Return the bytes of a dumped object."""
    return sum(part.nbytes for part in content)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, with arrays always out of band."""

    def __init__(self, stream: io.BytesIO, buffer_callback: Any) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        """Hand numpy the arrays that it pickles out of band: contiguous ones, and of no class but its own."""
        if type(obj) is _LRU_CACHE and obj.__module__ == "__main__":  # pickled by name, which no worker has
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if getattr(obj, "__code__", None) is _DISPATCH and obj.__module__ == "__main__":  # its cache can't be pickled
            return _dispatching, (obj.__wrapped__, dict(obj.registry))
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject and _is_pickled_as_an_array(type(obj)):
            plain = np.asarray(obj)
            if isinstance(obj, np.memmap):  # of a file that the workers may not have
                return _as_contiguous(plain).__reduce_ex__(5)
            if type(obj) is not np.ndarray:
                return np.ndarray.view, (_as_contiguous(plain), type(obj))
            if not _is_contiguous(obj):
                return _as_contiguous(obj).__reduce_ex__(5)
        return super().reducer_override(obj)


def _dumps(obj: Any) -> None:
    _Pickler(io.BytesIO(), buffer_callback=lambda _: None).dump(obj)


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return lru_cache(**parameters)(function)


def _dispatching(function: Any, registry: dict[type, Any]) -> Any:
    dispatching = singledispatch(function)
    for kind, registered in registry.items():
        dispatching.register(kind, registered)
    return dispatching


def _is_pickled_as_an_array(kind: type) -> bool:
    """Whether a class of arrays leaves it to numpy how its objects are pickled."""
    return all(
        getattr(kind, name) is getattr(np.ndarray, name) for name in ("__reduce__", "__reduce_ex__", "__setstate__")
    )


def _as_contiguous(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if _is_contiguous(array) else np.ascontiguousarray(array)


def _is_contiguous(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.flags.c_contiguous or array.flags.f_contiguous)
