"""What the pages of a Parquet file hold, by their own headers: its footer may say anything.

pyarrow goes by these headers too, and refuses a page that unpacks to another size than its header says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

#: Bytes of a page's header that are read; those of real files have 50, and hundreds where they hold statistics.
MAX_HEADER = 64 * 1024
#: Structs in structs of a header.
MAX_DEPTH = 8
#: The encoding in which a text repeats the beginning of the one before: a few bytes may be a text of megabytes.
DELTA_BYTE_ARRAY = 7

#: Fields of a page's header, and of what it says of a page of data (two versions) or of a dictionary.
_UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_2 = 2, 3, 5, 7, 8
_N_VALUES = 1
_ENCODING = {_DATA: 2, _DATA_2: 4, _DICTIONARY: 2}


@dataclass(frozen=True, slots=True)
class Pages:
    """What the pages of one column have together."""

    n_values: int
    n_bytes: int
    repeats_beginnings: bool


def read_pages(file: IO[bytes], metadata: Any, column: int) -> Pages:
    """Add up the headers of a column's pages, in all row groups.

    Parameters
    ----------
    file : binary file
        The open file.
    metadata : pyarrow.parquet.FileMetaData
        Where the pages are.
    column : int
        Its index among the file's columns.

    Returns
    -------
    Pages

    Raises
    ------
    ValueError
        If a header is damaged, or pages lie outside of the file.
    """
    headers = [
        header
        for group in range(metadata.num_row_groups)
        for header in _headers(file, metadata.row_group(group).column(column))
    ]
    kinds = [(kind, header[kind]) for header in headers for kind in _ENCODING if isinstance(header.get(kind), dict)]
    return Pages(
        n_values=sum(_number(said, _N_VALUES) for kind, said in kinds if kind != _DICTIONARY),
        n_bytes=sum(_number(header, _UNPACKED) for header in headers),
        repeats_beginnings=any(said.get(_ENCODING[kind]) == DELTA_BYTE_ARRAY for kind, said in kinds),
    )


def _headers(file: IO[bytes], chunk: Any) -> Iterator[dict[int, Any]]:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    if not 0 <= start <= end <= file.seek(0, os.SEEK_END):
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
        raise ValueError("the header of a page is damaged")
    return value


class _Parser:
    """Reads Thrift's compact protocol: a struct as a dict of integers and structs by field, all else as None."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            found[field] = self._value(head & 15, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("the header of a page is nested too deeply")
        match kind:
            case 1 | 2:  # true, false
                return None
            case 3:
                self._skip(1)
            case 4 | 5 | 6:
                return self._integer()
            case 7:  # double
                self._skip(8)
            case 8:
                self._skip(self._unsigned())
            case 12:
                return self.struct(depth)
            case _:  # lists, sets and maps, which no page's header has
                raise ValueError("the header of a page is damaged")
        return None

    def _skip(self, n_bytes: int) -> None:
        self.position += n_bytes

    def _byte(self) -> int:
        if self.position >= len(self._content):
            raise ValueError("the header of a page is cut off")
        self.position += 1
        return self._content[self.position - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("the header of a page is damaged")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
