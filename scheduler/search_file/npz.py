"""Arrays out of an .npz file. Nothing of it is believed before it is compared with what is really there."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gridfleet.storage.errors import InvalidSearchError, first_line
from gridfleet.storage.references.npy import read_header
from gridfleet.storage.suggestion import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

#: Arrays that a file may hold.
MAX_ENTRIES = 1_000
#: What each entry of an archive's directory begins with.
ENTRY = b"PK\x01\x02"
#: Bytes read at once to count them.
BLOCK = 1024 * 1024
#: What numpy compresses, it compresses at most a thousandfold (zeros), real data far less: an archive that unpacks to
#: more than a hundred times its size is refused, unless that is little.
MAX_RATIO = 100
LITTLE_BYTES = 256 * 1024**2
#: What numpy.savez and numpy.savez_compressed write.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: What is raised, depending on where a file is damaged: the archive, its compression, an array's header.
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    MemoryError,  # ast's, of a header that is nested too deeply
    OverflowError,
    RuntimeError,  # with NotImplementedError and RecursionError
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(file: IO[bytes], path: Path, names: Mapping[str, str], *, max_bytes: int) -> list[Array]:
    """Read some arrays of an .npz file.

    Parameters
    ----------
    file : binary file
        The open file.
    path : Path
        What it is called in an error.
    names : mapping of str to str
        The arrays' names, by the key of the search file that names them.
    max_bytes : int
        That all arrays of the file may unpack to.

    Returns
    -------
    list of ndarray
        In the order of the names; none of Python objects.

    Raises
    ------
    InvalidSearchError
        One sentence that begins with the key that is wrong.
    """
    _check_entries(file, path)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, path, packed=file.seek(0, os.SEEK_END), max_bytes=max_bytes)
            return [_read_array(archive, path, key, name) for key, name in names.items()]
    except InvalidSearchError:
        raise
    except DAMAGED as error:
        raise InvalidSearchError(
            f"`data.file`: {path} is no .npz file that can be read: {first_line(error)}"
        ) from error


def _check_entries(file: IO[bytes], path: Path) -> None:
    """Count the entries of the archive's directory before it is read, for which each takes a kilobyte."""
    if not zipfile.is_zipfile(file):
        raise InvalidSearchError(f"`data.file`: {path} is no .npz file; write it with numpy.savez")
    file.seek(0)
    found, end = 0, b""
    while block := file.read(BLOCK):
        # arrays may hold the mark too, by one chance in four billion a byte
        found += (end + block).count(ENTRY)
        end = block[1 - len(ENTRY) :]
    if found > 2 * MAX_ENTRIES:
        raise InvalidSearchError(f"`data.file`: {path} has {found} arrays; an .npz file may have {MAX_ENTRIES}")


def _check_archive(archive: zipfile.ZipFile, path: Path, *, packed: int, max_bytes: int) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(names) > MAX_ENTRIES:
        raise InvalidSearchError(f"`data.file`: {path} has {len(names)} arrays; an .npz file may have {MAX_ENTRIES}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidSearchError(f"`data.file`: {path} has {twice!r} more than once; write it with numpy.savez")
    if any(entry.compress_type not in COMPRESSIONS for entry in entries):
        raise InvalidSearchError(f"`data.file`: {path} is compressed as numpy does not; write it with numpy.savez")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max_bytes:
        raise InvalidSearchError(
            f"`data.file`: {path} would unpack to {unpacked} bytes; a search file's data may have {max_bytes} bytes, "
            "load larger ones in Python and call `submit`"
        )
    if unpacked > max(LITTLE_BYTES, MAX_RATIO * packed):
        raise InvalidSearchError(
            f"`data.file`: {path} would unpack {packed} bytes to {unpacked}, more than {MAX_RATIO} times as many; "
            "write it with numpy.savez"
        )


def _read_array(archive: zipfile.ZipFile, path: Path, key: str, name: str) -> Array:
    import numpy as np

    names = [entry.removesuffix(".npy") for entry in archive.namelist()]
    if name not in names:
        raise InvalidSearchError(f"`data.{key}`: {path} has no array {name!r}; {did_you_mean(name, names)}")
    entry = archive.infolist()[names.index(name)]
    with archive.open(entry) as content:
        header = read_header(content)
        if header.dtype.hasobject:
            raise InvalidSearchError(
                f"`data.{key}`: the array {name!r} of {path} holds Python objects, which could run code when loaded; "
                "save it with a dtype of numbers or texts"
            )
        there = entry.file_size - header.size
        if min(header.shape, default=0) < 0 or not header.dtype.itemsize or header.n_bytes != there:
            raise InvalidSearchError(
                f"`data.{key}`: the array {name!r} of {path} says that it has {header.n_bytes} bytes, but "
                f"{there} are there"
            )
    if not header.shape:
        raise InvalidSearchError(f"`data.{key}`: the array {name!r} of {path} is a single value")
    with archive.open(entry) as content:
        array: Array = np.lib.format.read_array(content, allow_pickle=False)
    return array
