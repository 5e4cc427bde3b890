"""What the pages of a Parquet file hold, by their own headers: its footer may say anything.

pyarrow goes by these headers too, and refuses a page that unpacks to another size than its header says. The footer is
read here as well, for pyarrow's own objects end the process at some that are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

#: Bytes of a footer; a column of a row group has about 100.
MAX_FOOTER = 64 * 1024 * 1024
#: Bytes of a page's header that are read; those of real files have 50, and hundreds where they hold statistics.
MAX_HEADER = 64 * 1024
#: Structs in structs.
MAX_DEPTH = 16
#: The encoding in which a text repeats the beginning of the one before: a few bytes may be a text of megabytes.
DELTA_BYTE_ARRAY = 7

#: What a file ends with.
_MAGIC = b"PAR1"
#: Fields of the footer, of a row group in it, of a column in that, and of what is said of the column.
_FOOTER_ROWS, _GROUPS = 3, 4
_COLUMNS, _GROUP_BYTES, _GROUP_ROWS = 1, 2, 3
_ABOUT = 3
_COLUMN_VALUES, _COLUMN_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET = 5, 7, 9, 11
#: Fields of a page's header, and of what it says of a page of data (two versions) or of a dictionary.
_UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_2 = 2, 3, 5, 7, 8
_N_VALUES = 1
_ENCODING = {_DATA: 2, _DATA_2: 4, _DICTIONARY: 2}


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file has: the most that its footer or its pages say."""

    n_rows: int
    n_bytes: int
    repeats_beginnings: bool


def read_contents(file: IO[bytes]) -> Contents:
    """Add up the headers of all pages.

    Parameters
    ----------
    file : binary file
        The open file.

    Returns
    -------
    Contents

    Raises
    ------
    ValueError
        If footer or a header is damaged, or pages lie outside of the file.
    """
    footer = _footer(file)
    groups = _structs(footer.get(_GROUPS))
    # memory is taken for what the footer says, too
    said_rows = max(_number(footer, _FOOTER_ROWS), sum(_number(group, _GROUP_ROWS) for group in groups))
    said_bytes = sum(_number(group, _GROUP_BYTES) for group in groups)
    rows: dict[int, int] = {}
    n_bytes, repeats_beginnings = 0, False
    for group in groups:
        for index, column in enumerate(_structs(group.get(_COLUMNS))):
            about = _struct(column.get(_ABOUT))
            found = 0
            for header in _headers(file, about):
                n_bytes += _number(header, _UNPACKED)
                for kind in _ENCODING.keys() & header.keys():
                    said = _struct(header[kind])
                    found += _number(said, _N_VALUES) if kind != _DICTIONARY else 0
                    repeats_beginnings |= said.get(_ENCODING[kind]) == DELTA_BYTE_ARRAY
            rows[index] = rows.get(index, 0) + max(found, _number(about, _COLUMN_VALUES))
    return Contents(max([said_rows, *rows.values()]), max(said_bytes, n_bytes), repeats_beginnings)


def _footer(file: IO[bytes]) -> dict[int, Any]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > size - 8:
        raise ValueError("it has no footer")
    if length > MAX_FOOTER:
        raise ValueError(f"its footer has {length} bytes, more than {MAX_FOOTER}")
    file.seek(size - 8 - length)
    return _Parser(file.read(length)).struct()


def _headers(file: IO[bytes], about: dict[int, Any]) -> Iterator[dict[int, Any]]:
    start = _number(about, _DATA_OFFSET)
    dictionary = about.get(_DICTIONARY_OFFSET)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    end = start + _number(about, _COLUMN_BYTES)
    if end > file.seek(0, os.SEEK_END):
        raise ValueError("its pages are not in the file")
    while start < end:
        file.seek(start)
        parser = _Parser(file.read(min(MAX_HEADER, end - start)))
        header = parser.struct()
        yield header
        start += parser.position + _number(header, _PACKED)


def _number(struct: dict[int, Any], field: int) -> int:
    value = struct.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a number in its footer or in a page's header is damaged")
    return value


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("its footer or a page's header is damaged")
    return value


def _structs(value: Any) -> list[dict[int, Any]]:
    if not isinstance(value, list):
        raise ValueError("its footer is damaged")
    return [_struct(one) for one in value]


class _Parser:
    """Reads Thrift's compact protocol: a struct is a dict by field; what is no integer, struct or list is None."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            # the type of a field that is true or false says which
            found[field] = None if kind in (1, 2) else self._value(kind, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("its footer or a page's header is nested too deeply")
        match kind:
            case 1 | 2 | 3:  # true, false, a byte
                self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:  # double
                self._skip(8)
            case 8:  # bytes
                self._skip(self._unsigned())
            case 9:
                head = self._byte()
                length = head >> 4 if head >> 4 < 15 else self._unsigned()
                return [self._value(head & 15, depth + 1) for _ in range(length)]
            case 12:
                return self.struct(depth)
            case _:  # sets and maps, which the format has none of
                raise ValueError("its footer or a page's header is damaged")
        return None

    def _skip(self, n_bytes: int) -> None:
        self.position += n_bytes

    def _byte(self) -> int:
        if self.position >= len(self._content):
            raise ValueError("its footer or a page's header is cut off")
        self.position += 1
        return self._content[self.position - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number in its footer or in a page's header is damaged")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
