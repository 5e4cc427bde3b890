"""The contents of payloads in SQL: cut into chunks, one row each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, select

from gridfleet.storage.schema import PayloadChunk

#: Bytes of one row of ``payload_chunks``: far below the limits of SQLite (1 GB) and of a PostgreSQL message.
CHUNK_BYTES = 8 * 1024 * 1024


def insert_content(connection: Connection, digest: str, content: Sequence[memoryview]) -> None:
    """Write the content of a payload, in the transaction that inserts the payload."""
    for position, chunk in enumerate(chunks(content)):
        connection.execute(insert(PayloadChunk).values(digest=digest, position=position, content=chunk))


def read_content(connection: Connection, digest: str, size: int) -> Iterator[bytes]:
    """Read the content of a payload, chunk by chunk: hundreds of MB need not fit into memory.

    Parameters
    ----------
    connection : Connection
        Where to.
    digest : str
        The payload's.
    size : int
        Bytes that its signature says it has. What is more stays in the database, unread.
    """
    return read_chunks(connection, PayloadChunk, PayloadChunk.digest == digest, size)


def read_chunks(connection: Connection, table: Any, is_of_content: ColumnElement[bool], size: int) -> Iterator[bytes]:
    """Read a content from the table of its chunks, one by one.

    Parameters
    ----------
    connection : Connection
        Where to.
    table : mapped class
        With the columns ``position`` and ``content``.
    is_of_content : ColumnElement of bool
        Which chunks are this content's.
    size : int
        Bytes that its signature says it has. What is more stays in the database, unread.
    """
    chunk = select(table.content).where(is_of_content)
    position = 0
    while True:
        next_one = chunk.where(table.position == position, func.length(table.content) <= size)
        part = connection.execute(next_one).scalar()
        if part is None:
            return
        yield part
        size -= len(part)
        position += 1


def chunks(content: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    """Cut the content into chunks of equal size, the last one shorter; those that lie in one part are not copied."""
    waiting = bytearray()
    for part in content:
        rest = part.cast("B") if part.format != "B" or part.ndim != 1 else part
        while rest.nbytes >= CHUNK_BYTES - len(waiting):
            chunk, rest = rest[: CHUNK_BYTES - len(waiting)], rest[CHUNK_BYTES - len(waiting) :]
            yield bytes(waiting + chunk) if waiting else chunk
            waiting.clear()
        waiting += rest
    if waiting:
        yield bytes(waiting)
