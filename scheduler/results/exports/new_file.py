"""A file that is whole, or not there; what is there already stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gridfleet.storage.errors import ExportError


def write_new(file: Path, write: Callable[[Path], int]) -> int:
    """Write a file beside its place, and put it there when it is whole.

    Parameters
    ----------
    file : Path
        Not there yet.
    write : callable
        Gets the path to write to.

    Returns
    -------
    int
        What `write` returned.

    Raises
    ------
    ExportError
        If it is there already, or can't be written.
    """
    require_new(file)
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise ExportError(
            f"{part} can't be made ({error.strerror}); name a file in a folder that can be written"
        ) from error
    try:
        written = write(part)
        require_new(file)
        part.replace(file)
    except OSError as error:
        raise ExportError(f"{file} can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return written


def require_new(file: Path) -> None:
    """Refuse to write over anything, be it a link that leads nowhere."""
    if "://" in str(file) or file.name in ("", "."):
        raise ExportError(f"{str(file)!r} is no file; name one that is not there yet")
    if file.exists() or file.is_symlink():
        raise ExportError(f"{file} is there already; name another file, or remove it")
