"""Texts that rows of other tables name by their digest, each stored once: sources, lists of packages, machines."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Source, StoredText
from gridfleet.storage.statements import insert_all
from gridfleet.storage.trial_results import shorten

#: Characters of a stored text; of a longer one the end is kept.
MAX_TEXT = 1_000_000


def digest_of_text(content: str) -> str:
    """Return the digest by which a text is named."""
    return hashlib.sha256(content.encode()).hexdigest()


def add_texts(connection: Connection, contents: Collection[str]) -> list[str]:
    """Store texts unless they are there, in the transaction that names them; returns their digests."""
    cleaned = [_clean(content) for content in contents]
    digests = [digest_of_text(content) for content in cleaned]
    rows = dict(sorted(zip(digests, cleaned, strict=True)))  # in one order, for each row is locked
    there = select(StoredText.digest).where(StoredText.digest.in_(rows)).order_by(StoredText.digest)
    stored = set(connection.execute(there.with_for_update(key_share=True, read=True)).scalars())
    for digest in sorted(rows.keys() - stored):
        new: Any = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(StoredText)
        # an update that changes nothing locks the row, if another process was faster: a deletion waits
        unless_there = new.on_conflict_do_update(index_elements=["digest"], set_={"digest": digest})
        connection.execute(unless_there.values(digest=digest, content=rows[digest]))
    return digests


def store_text(database: Database, content: str) -> str:
    """Store a text that nobody removes, unless it is there; returns its digest."""
    content = _clean(content)
    digest = digest_of_text(content)
    with database.read() as connection:
        if connection.execute(select(StoredText.digest).where(StoredText.digest == digest)).first() is not None:
            return digest
    new: Any = (sqlite if database.dialect == "sqlite" else postgresql).insert(StoredText)
    with database.write() as connection:
        connection.execute(new.values(digest=digest, content=content).on_conflict_do_nothing())
    return digest


def add_sources(connection: Connection, search_id: int, sources: Mapping[str, str | None]) -> None:
    """Store what travelled with a new search as text; None: it has no source that could be had."""
    known = {name: text for name, text in sources.items() if text is not None}
    digests = dict(zip(known, add_texts(connection, list(known.values())), strict=True))
    rows = [{"search_id": search_id, "name": name, "digest": digests.get(name)} for name in sources]
    insert_all(connection, Source, rows)


def name_packages(connection: Connection, packages: str) -> str:
    """Store a list of packages, in the transaction that names it; returns its digest."""
    return add_texts(connection, [packages])[0]


def text_of(database: Database, digest: str | None) -> str | None:
    """Return a text; None if it is not there, or is not what its digest says."""
    with database.read() as connection:
        content = connection.execute(select(StoredText.content).where(StoredText.digest == digest)).scalar()
    return content if content is not None and digest_of_text(content) == digest else None


def sources_of(database: Database, search_id: int) -> dict[str, str | None]:
    """Return the sources that travelled with a search, by name."""
    query = (
        select(Source.name, StoredText.content)
        .outerjoin(StoredText, StoredText.digest == Source.digest)
        .where(Source.search_id == search_id)
        .order_by(Source.name)
    )
    with database.read() as connection:
        return {row.name: row.content for row in connection.execute(query)}


def _clean(content: str) -> str:
    return shorten(content, MAX_TEXT) or ""
