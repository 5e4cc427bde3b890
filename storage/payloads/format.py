"""Objects to bytes and back: code by value, arrays out of band so that they can be memory-mapped.

The content of a payload is a magic word, the length of a JSON header, the header (sizes of the parts, and
the Python whose bytecode is in them, if any is), then the pickle and its out-of-band buffers (PEP 574), each
aligned so that arrays can be used in place.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np

from gridfleet.storage.errors import NotPicklableError, PayloadError

MAGIC = b"gridfleet2"
#: Bytes; a cache line, and enough for every numpy dtype.
ALIGNMENT = 64
#: What a pickle contains if functions or classes travel in it by value.
BY_VALUE = b"cloudpickle.cloudpickle"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
#: How far down an attribute is looked for that can't be pickled: a callback in a list of a step of a pipeline is five.
MAX_DEPTH = 10
#: The import package that every worker has, wherever it was installed from.
OURS = "gridfleet"


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
    with _local_modules_by_value():
        try:
            _Pickler(stream, buffer_callback=buffers.append).dump((kind, obj))
        except Exception as error:
            raise NotPicklableError(
                f"{what} can't be pickled, so it can't travel to the workers: "
                f"{_culprit(obj, error, by=cloudpickle.dumps)}"
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
    header_start = len(MAGIC) + 8
    header_end = header_start + int.from_bytes(content[len(MAGIC) : header_start], "little")
    header = json.loads(bytes(content[header_start:header_end]))
    if header["python"] not in (None, _PYTHON):
        raise PayloadError(
            f"the payload has functions of a script that ran on Python {header['python']}, whose bytecode this "
            f"Python {_PYTHON} can't run; use the same minor version where searches are submitted and where they run"
        )
    position = header_end
    parts = []
    for size in header["parts"]:
        position += -position % ALIGNMENT
        parts.append(content[position : position + size])
        position += size
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
            f"{_culprit(obj, error, by=copy.deepcopy)}"
        ) from error


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


@contextmanager
def _local_modules_by_value() -> Iterator[None]:
    registered = [module for module in _local_modules() if module.__name__ not in _by_value()]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _by_value() -> set[str]:
    return set(cloudpickle.list_registry_pickle_by_value())


def _local_modules() -> list[ModuleType]:
    """Return the imported modules that are no installed package's: those beside the script."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not file or module.__name__ != name:
            continue
        if name.partition(".")[0] == OURS:
            continue
        if not _is_installed(file):
            found.append(module)
    return found


@cache
def _is_installed(file: str) -> bool:
    # cached, for a script with TensorFlow has five thousand modules, and each payload asks for all of them
    return any(Path(file).is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> list[Path]:
    # not the prefixes: a project may lie in its virtual environment's folder, or below /usr
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {*libraries, *site.getsitepackages(), site.getusersitepackages()}
    return [Path(folder) for folder in folders] + [Path(folder).resolve() for folder in folders]


def _culprit(obj: Any, error: Exception, *, by: Callable[[Any], object]) -> str:
    """Name the attribute, or the attribute of an attribute, that can't be pickled or copied."""
    path: list[str] = []
    for _ in range(MAX_DEPTH):
        inner = _first_refused(obj, by)
        if inner is None:
            break
        name, obj = inner
        if not name.isdecimal():  # a place in a list tells nobody anything
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


def size_of(content: Sequence[memoryview]) -> int:
    """Return the bytes of a dumped object."""
    return sum(part.nbytes for part in content)
