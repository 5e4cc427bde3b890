"""The archive of sources: a zip file that is the same bytes for the same files, and of which no name is believed."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath

from gridfleet.storage.errors import PayloadError

#: Bytes that the files of one archive may have together: a bound against data that was not meant to travel.
MAX_BYTES = 50_000_000
#: Files of one archive.
MAX_FILES = 10_000
#: The earliest time that the format knows: an archive must not depend on when a file was written.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of some files, by their names in it."""
    return _pack(tuple(sorted(files.items())))


@lru_cache(maxsize=1)  # a script's searches have the same files, and compressing takes longer than reading them
def _pack(files: tuple[tuple[str, bytes], ...]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = _UNIX
            info.external_attr = (stat.S_IFREG | 0o600) << 16
            archive.writestr(info, content)
    return stream.getvalue()


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive, by their names.

    Raises
    ------
    PayloadError
        If it is damaged, too large, or has a name that leads out of the folder it is unpacked into, or a link.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            infos = opened.infolist()
            _check_sizes(infos)
            for info in infos:
                _check_entry(info)
            _check_names([info.filename for info in infos])
            # no more is unpacked of an entry than the size that was looked at
            return {info.filename: opened.read(info) for info in infos}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise PayloadError(f"the archive of the script's modules is damaged: {error}") from error


def _check_sizes(infos: list[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES or total > MAX_BYTES:
        raise PayloadError(
            f"the archive of the script's modules has {len(infos)} files of {total / 1e6:,.1f} MB, more than gridfleet "
            "packs; somebody else made it"
        )


def _check_entry(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    path = PurePosixPath(info.filename)
    is_plain = path.as_posix() == info.filename and not path.is_absolute() and ".." not in path.parts
    if kind not in (0, stat.S_IFREG) or info.is_dir() or not is_plain or not can_be_named(info.filename):
        raise PayloadError(
            f"the archive of the script's modules has an entry {info.filename[:80]!a} that is no plain file below its "
            "folder; somebody else than gridfleet made it"
        )


def can_be_named(name: str) -> bool:
    """Whether a file's name can be that of an entry: printable, with slashes only between its parts."""
    return name not in ("", ".") and name.isprintable() and "\\" not in name


def _check_names(names: list[str]) -> None:
    files = set(names)
    folders = {str(above) for name in names for above in PurePosixPath(name).parents}
    if len(files) < len(names) or files & folders:
        raise PayloadError("the archive of the script's modules has a name twice; somebody else than gridfleet made it")
