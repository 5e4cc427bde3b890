"""What is in a data file: how many rows, and the rows as numpy or pandas have them."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from gridfleet.storage.errors import InvalidDataError, first_line
from gridfleet.storage.references.data_ref import DataRef
from gridfleet.storage.references.npy import checked_header, mapped
from gridfleet.storage.references.source import not_read
from gridfleet.storage.suggestion import did_you_mean

#: What is raised, depending on where a file is damaged.
_DAMAGED: tuple[type[Exception], ...] = (
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def count_rows(ref: DataRef, file: IO[bytes]) -> int:
    """Return the rows of what a reference means; of CSV files alone more has to be read for it than what says so.

    Parameters
    ----------
    ref : DataRef
        Which part of the file.
    file : binary file
        The open file.

    Raises
    ------
    InvalidDataError
        If the file has no such part, or it is none of numbers and texts.
    """
    with _explained(ref):
        return _COUNT[ref.format](ref, file)


def read(ref: DataRef, file: IO[bytes]) -> Any:
    """Return what a reference means: an array, a DataFrame or a Series.

    Parameters
    ----------
    ref : DataRef
        Which part of the file.
    file : binary file
        The open file. An ``.npy`` file of this host is mapped, and may be closed afterwards.

    Raises
    ------
    InvalidDataError
        If the file has no such part, or it is none of numbers and texts.
    """
    with _explained(ref):
        return _READ[ref.format](ref, file)


@contextmanager
def _explained(ref: DataRef) -> Iterator[None]:
    try:
        yield
    except InvalidDataError:
        raise
    except OSError as error:
        if error.errno is not None:  # of the disk or of the network
            raise not_read(ref.location, error) from error
        raise _damaged(ref, error) from error
    except _damage(ref) as error:
        raise _damaged(ref, error) from error


def _damage(ref: DataRef) -> tuple[type[Exception], ...]:
    if ref.format != ".parquet":
        return _DAMAGED
    import pyarrow as pa  # half a second, for whoever needs it

    return (*_DAMAGED, pa.ArrowException)


def _damaged(ref: DataRef, error: Exception) -> InvalidDataError:
    return InvalidDataError(f"{ref.location} is no {ref.format} file that can be read: {first_line(error)}")


def _size(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _count_npy(ref: DataRef, file: IO[bytes]) -> int:
    return checked_header(file, _size(file), ref.location).shape[0]


def _read_npy(ref: DataRef, file: IO[bytes]) -> Any:
    import numpy as np

    header = checked_header(file, _size(file), ref.location)
    if _is_of_this_host(file):
        return mapped(file, header)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _is_of_this_host(file: IO[bytes]) -> bool:
    try:
        return file.fileno() >= 0
    except (OSError, AttributeError):  # fsspec's
        return False


@contextmanager
def _entry(ref: DataRef, file: IO[bytes]) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo, str]]:
    with zipfile.ZipFile(file) as archive:
        names = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if ref.key not in names:
            raise InvalidDataError(f"{ref.location} has no array {ref.key!r}; {did_you_mean(str(ref.key), names)}")
        yield archive, names[ref.key], f"the array {ref.key!r} of {ref.location}"


def _count_npz(ref: DataRef, file: IO[bytes]) -> int:
    with _entry(ref, file) as (archive, entry, name), archive.open(entry) as content:
        return checked_header(content, entry.file_size, name).shape[0]


def _read_npz(ref: DataRef, file: IO[bytes]) -> Any:
    import numpy as np

    with _entry(ref, file) as (archive, entry, name):
        with archive.open(entry) as content:
            checked_header(content, entry.file_size, name)
        with archive.open(entry) as content:
            return np.lib.format.read_array(content, allow_pickle=False)


def _count_parquet(ref: DataRef, file: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    found = pq.ParquetFile(file)
    _check_columns(ref, found.schema_arrow.names)
    return int(found.metadata.num_rows)


def _read_parquet(ref: DataRef, file: IO[bytes]) -> Any:
    import pandas as pd

    _count_parquet(ref, file)
    file.seek(0)
    return _part(ref, pd.read_parquet(file, engine="pyarrow", columns=_wanted(ref)))


def _count_csv(ref: DataRef, file: IO[bytes]) -> int:
    names = _csv_columns(ref, file)
    first = (_wanted(ref) or names)[:1]
    return len(_read_csv(file, usecols=first, dtype=str))


def _read_csv_part(ref: DataRef, file: IO[bytes]) -> Any:
    _csv_columns(ref, file)
    return _part(ref, _read_csv(file, usecols=_wanted(ref)))


def _csv_columns(ref: DataRef, file: IO[bytes]) -> list[str]:
    names = [str(name) for name in _read_csv(file, nrows=0).columns]
    file.seek(0)
    _check_columns(ref, names)
    return names


def _read_csv(file: IO[bytes], **options: Any) -> Any:
    import pandas as pd

    # the type of a column by all of its values, and not by each block of them
    return pd.read_csv(file, compression=None, low_memory=False, **options)


def _wanted(ref: DataRef) -> list[str] | None:
    if ref.columns is None:
        return None
    return [ref.columns] if isinstance(ref.columns, str) else list(ref.columns)


def _check_columns(ref: DataRef, names: list[str]) -> None:
    for column in _wanted(ref) or ():
        if column not in names:
            raise InvalidDataError(f"{ref.location} has no column {column!r}; {did_you_mean(column, names)}")


def _part(ref: DataRef, frame: Any) -> Any:
    """Return the columns in the order in which they were asked for; one by its name is a Series."""
    if ref.columns is None:
        return frame
    return frame[ref.columns if isinstance(ref.columns, str) else list(ref.columns)]


_COUNT: dict[str, Callable[[DataRef, IO[bytes]], int]] = {
    ".npy": _count_npy,
    ".npz": _count_npz,
    ".parquet": _count_parquet,
    ".csv": _count_csv,
}
_READ: dict[str, Callable[[DataRef, IO[bytes]], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".csv": _read_csv_part,
}
