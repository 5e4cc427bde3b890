"""Objects to bytes and back, with arrays out of band so that they can be memory-mapped.

The content of a payload is a magic word, the length of a JSON header, the header (sizes of the parts, and
the Python whose bytecode is in them, if any is), then the pickle and its out-of-band buffers (PEP 574), each
aligned so that arrays can be used in place.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np

from gridfleet.storage.errors import NotPicklableError, PayloadError
from gridfleet.storage.payloads.by_value import local_modules_by_value
from gridfleet.storage.payloads.culprit import culprit

#: What a payload begins with; its number changes with the layout, and with what is signed of it.
MAGIC = b"gridfleet4"
#: Bytes; a cache line, and enough for every numpy dtype.
ALIGNMENT = 64
#: What a pickle contains if functions or classes travel in it by value.
BY_VALUE = b"cloudpickle.cloudpickle"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def dump(kind: str, obj: Any, *, what: str) -> list[memoryview]:
    """Serialise an object and what it is.

    Functions and classes of the script, and of modules that lie beside it, travel by value: nobody has to
    install them on the workers. Installed packages travel by name.

    Parameters
    ----------
    kind : str
        What `load` has to find it to be.
    obj : object
        What to serialise.
    what : str
        What it is called in an error.

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
    with local_modules_by_value():
        try:
            _Pickler(stream, buffer_callback=buffers.append).dump((kind, obj))
        except Exception as error:
            raise NotPicklableError(
                f"{what} can't be pickled, so it can't travel to the workers: "
                f"{culprit(obj, error, by=cloudpickle.dumps)}"
            ) from error
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    code_of = _PYTHON if BY_VALUE in stream.getvalue() else None
    header = json.dumps({"parts": [part.nbytes for part in parts], "python": code_of}).encode()
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
        If the content is not one, or its code can't be loaded here.
    """
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise PayloadError("this is not a payload of gridfleet, or one of another version")
    try:
        python, parts = _parts(content)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise PayloadError("the header of the payload is damaged; submit the search again") from error
    if python not in (None, _PYTHON):
        raise PayloadError(
            f"the payload has functions of a script that ran on Python {python}, whose bytecode this "
            f"Python {_PYTHON} can't run; use the same minor version where searches are submitted and where they run"
        )
    try:
        kind, obj = pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - signed, see storage/payloads/store.py
    except ImportError as error:
        raise PayloadError(f"a module that the payload needs is not installed on this worker: {error}") from error
    except Exception as error:
        raise PayloadError(
            f"the payload can't be loaded on this worker ({type(error).__name__}: {error}); "
            "install the same releases of its packages where searches are submitted and where they run"
        ) from error
    return kind, obj


def _parts(content: memoryview) -> tuple[Any, list[memoryview]]:
    """Return the Python that a payload needs, and its parts, as its header says."""
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
    return header["python"], parts


def size_of(content: Sequence[memoryview]) -> int:
    """Return the bytes of a dumped object."""
    return sum(part.nbytes for part in content)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, with arrays always out of band."""

    def __init__(self, stream: io.BytesIO, buffer_callback: Any) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        """Copy strided arrays first: numpy pickles only contiguous ones out of band."""
        if type(obj) is np.ndarray and not obj.dtype.hasobject and not _is_contiguous(obj):
            return np.ascontiguousarray(obj).__reduce_ex__(5)
        return super().reducer_override(obj)


def _is_contiguous(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.flags.c_contiguous or array.flags.f_contiguous)
