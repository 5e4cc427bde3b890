"""Arrays in numpy's own format: nothing of one is believed before it is compared with what is really there."""

from __future__ import annotations

import io
import math
import mmap
import tokenize
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from gridfleet.storage.errors import InvalidDataError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

#: Bytes of an array's header that are read: numpy's own bound is 10,000, but it reads more before it says so.
MAX_HEADER = 16_384


@dataclass(frozen=True)
class Header:
    """What an array says of itself, and the bytes that say it."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    size: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the array behind the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(content: IO[bytes]) -> Header:
    """Read the header of an array.

    Raises
    ------
    ValueError, EOFError, MemoryError, SyntaxError, TypeError, LookupError, tokenize.TokenError
        Whatever numpy raises of a damaged one.
    """
    from numpy.lib import format as npy

    head = io.BytesIO(content.read(MAX_HEADER))
    version = npy.read_magic(head)
    # 3.0 is for field names of structured arrays, and those hold no plain numbers
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"the array's format {version[0]}.{version[1]} is not one of numbers or texts")
    shape, is_fortran, dtype = readers[version](head)
    return Header(shape, is_fortran, dtype, head.tell())


def checked_header(content: IO[bytes], size: int, name: str) -> Header:
    """Read the header of an array of numbers or texts that has all its bytes.

    Parameters
    ----------
    content : binary file
        At its beginning.
    size : int
        Bytes that are there, with the header.
    name : str
        What it is called in an error.

    Raises
    ------
    InvalidDataError
        If it is something else.
    """
    try:
        header = read_header(content)
    except (ValueError, EOFError, LookupError, MemoryError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise InvalidDataError(f"{name} is no array of numpy that can be read: {error}") from error
    if header.dtype.hasobject:
        raise InvalidDataError(
            f"{name} holds Python objects, which could run code when loaded; save it with a dtype of numbers or texts"
        )
    if not header.shape:
        raise InvalidDataError(f"{name} is a single value and no array")
    if min(header.shape) < 0 or not header.dtype.itemsize or header.n_bytes != size - header.size:
        raise InvalidDataError(
            f"{name} says that it has {header.n_bytes} bytes, but {size - header.size} are there; write it again with "
            "numpy.save"
        )
    return header


def mapped(file: IO[bytes], header: Header) -> Array:
    """Return the array of a file as a map that can't be written to: all processes of a host share its pages."""
    import numpy as np

    # kept by the array; nothing of a map that is read only counts as a process's own memory
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    flat = np.frombuffer(content, header.dtype, count=math.prod(header.shape), offset=header.size)
    return flat.reshape(header.shape, order="F" if header.is_fortran else "C")
