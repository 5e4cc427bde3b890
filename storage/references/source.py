"""Opens the file that a reference names: on this host, or by fsspec at a URL, with this process's own rights."""

from __future__ import annotations

import os
import stat
from typing import IO, Any

from gridfleet.storage.errors import DataNotThereError, MissingCodeError, first_line
from gridfleet.storage.references.data_ref import DataRef


def opened(ref: DataRef) -> IO[bytes]:
    """Open the file of a reference for reading; it can be told to go to any of its bytes.

    Raises
    ------
    DataNotThereError
        If there is none, or this process may not read it.
    MissingCodeError
        If what reads such URLs is not installed.
    """
    return _opened_url(ref.location) if ref.is_remote else _opened_path(ref.location)


def _opened_path(path: str) -> IO[bytes]:
    try:
        # a FIFO without a writer would block
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataNotThereError(f"{path} can't be read here: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataNotThereError(f"{path} is no regular file here")
    return os.fdopen(descriptor, "rb")


def _opened_url(url: str) -> IO[bytes]:
    try:
        import fsspec

        file: IO[bytes] = fsspec.open(url, mode="rb").open()
    except ImportError as error:
        raise MissingCodeError(
            f"{url} can't be read without {error.name or 'a package of fsspec'}; run `pip install 'gridfleet[remote]'`"
            " here and for the workers"
        ) from error
    except Exception as error:
        raise not_read(url, error) from error
    return file


def not_read(location: str, error: Exception) -> DataNotThereError:
    """Return the error of a file that could be opened, or not even that, and not read."""
    reason: Any = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
    return DataNotThereError(f"{location} can't be read here: {reason}")
