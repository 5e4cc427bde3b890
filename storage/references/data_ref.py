"""What stands for data that do not travel: where they lie, which part of the file is meant, and its digest."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.payloads.digest import is_digest
from gridfleet.storage.plain import plain

#: Kinds of files, and what says which part of one is meant.
FORMATS = {".npy": None, ".npz": "key", ".parquet": "columns", ".csv": "columns"}
#: How URLs of remote data begin.
SCHEMES = ("https", "http", "s3", "gs")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class DataRef:
    """Data by reference: for `X`, `y`, ``groups`` and ``sample_weight`` of `fit`, `submit` and search files.

    The data go through no database: workers read the file themselves, from a path that they see too, or from a URL.
    Each host makes sure of the digest once for as long as the file stays as it is, and maps what can be mapped.

    Parameters
    ----------
    location : str or path
        A ``.npy``, ``.npz``, ``.parquet`` or ``.csv`` file: its path, which must be the same for the workers, or its
        URL (``s3://``, ``gs://``, ``https://``; ``pip install 'gridfleet[remote]'``). Who may read it is the
        workers' own affair: a URL with a user, a password or a signed query is refused.
    sha256 : str, default=None
        The file's digest, 64 hexadecimal digits. None: it is computed here, for which all of the file is read, once as
        long as it does not change.
    key : str, default=None
        Name of the array in an ``.npz`` file.
    columns : str or sequence of str, default=None
        Columns of a Parquet or CSV file: one name gives a pandas Series, several a DataFrame; None: all of them.

    Notes
    -----
    Only ``.npy`` files are mapped, so that all worker processes of a host share one copy; of the others each process
    reads its own. Arrays of Python objects are refused. CSV files have to be read here to count their rows.

    A file must not change while searches use it. Write another one and rename it: what is mapped stays as it was, and
    the next trial says that the digest is another.

    Examples
    --------
    >>> from gridfleet import DataRef
    >>> X = DataRef("/data/X.npy", sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")
    >>> y = DataRef("/data/train.parquet", columns="label")
    """

    location: str
    sha256: str | None = field(default=None, kw_only=True)
    key: str | None = field(default=None, kw_only=True)
    columns: str | tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_to = object.__setattr__  # the class is frozen
        set_to(self, "location", _checked_location(self.location))
        if self.sha256 is not None:
            set_to(self, "sha256", _checked_digest(self.sha256, self.location))
        if self.columns is not None and not isinstance(self.columns, str):
            set_to(self, "columns", _checked_columns(self.columns, self.location))
        self._check_part()

    def _check_part(self) -> None:
        part = FORMATS[self.format]
        for name in ("key", "columns"):
            if getattr(self, name) is not None and name != part:
                raise InvalidSearchError(f"{name}={getattr(self, name)!r} has no meaning for {self.location}")
        if part == "key" and not (isinstance(self.key, str) and self.key):
            raise InvalidSearchError(f"key={self.key!r}: name the array of {self.location} that is meant, as key='X'")

    @property
    def format(self) -> str:
        """The file's suffix in lower case, one of `FORMATS`."""
        return _suffix(self.location)

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return _URL.match(self.location) is not None

    def __reduce__(self) -> tuple[Any, ...]:
        # one text: equal references are equal payloads, whichever of their texts are one object
        return _from_json, (json.dumps(asdict(self), sort_keys=True),)


def _from_json(text: str) -> DataRef:
    return DataRef(**json.loads(text))


def _checked_location(location: Any) -> str:
    try:
        text = os.fspath(location)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\x00" in text:
        raise InvalidSearchError(f"location={location!r} is no path and no URL of a data file")
    text = _checked_url(text) if _URL.match(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are
    if _suffix(text) not in FORMATS:
        raise InvalidSearchError(f"{plain(text)} is none of {', '.join(FORMATS)}, which data by reference may be")
    return text


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        user, host = parts.username, parts.hostname
    except ValueError:
        raise InvalidSearchError("the location of a DataRef is no URL; write https://host/path/X.npy") from None
    shown = plain(f"{parts.scheme}://{host or ''}{parts.path}")
    if parts.scheme not in SCHEMES:
        raise InvalidSearchError(
            f"{shown} begins with {parts.scheme}://; data by reference may be at {', '.join(SCHEMES)}, or "
            "at a path that the workers see"
        )
    # not shown: it is stored in SQL, and is nobody's secret any more then
    if user is not None or parts.password is not None or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidSearchError(
            f"{shown} has a user, a password or a query in its URL, which would be stored; give the URL without them, "
            "and the workers credentials of their own"
        )
    if not host:
        raise InvalidSearchError(f"{shown} names no host or bucket")
    return url


def _checked_digest(digest: Any, location: str) -> str:
    if not isinstance(digest, str) or not is_digest(digest.lower()):
        raise InvalidSearchError(
            f"sha256={digest!r} of {location} is no digest; give the 64 hexadecimal digits that `sha256sum` prints, or "
            "leave it out"
        )
    return digest.lower()


def _checked_columns(columns: Any, location: str) -> tuple[str, ...]:
    names = tuple(columns) if isinstance(columns, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InvalidSearchError(
            f"columns={columns!r} of {location}: give the name of one column, or a list of different names"
        )
    return names


def _suffix(location: str) -> str:
    return PurePosixPath(location).suffix.lower()
