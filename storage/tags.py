"""Tags of searches: what people note of them, as ``dataset=pima``, to find them by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.errors import InvalidSearchError, SearchNotFoundError
from gridfleet.storage.schema import Search, Tag
from gridfleet.storage.statements import insert_all

#: Characters of a tag's key, and of its value.
MAX_KEY = 63
MAX_VALUE = 255
#: Tags of one search.
MAX_TAGS = 100


def check_tags(tags: Any) -> dict[str, str]:
    """Return the tags of a search as they are stored.

    Parameters
    ----------
    tags : mapping of str to str, int or float, or None
        Keys and values.

    Raises
    ------
    InvalidSearchError
        One sentence with the first that is none.
    """
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise InvalidSearchError(f"tags={tags!r} is no dict; write tags={{'dataset': 'pima'}}")
    if len(tags) > MAX_TAGS:
        raise InvalidSearchError(f"tags has {len(tags)} entries; a search may have {MAX_TAGS}")
    return {_key(key): _value(key, value) for key, value in tags.items()}


def _key(key: Any) -> str:
    if not isinstance(key, str) or not is_key(key):
        raise InvalidSearchError(
            f"tags has the key {key!r}, which can't be one; use 1 to {MAX_KEY} printable characters without '=' and "
            "spaces"
        )
    return key


def is_key(key: str) -> bool:
    """Whether a text can be the key of a tag."""
    return 0 < len(key) <= MAX_KEY and key.isprintable() and "=" not in key and " " not in key


def _value(key: str, value: Any) -> str:
    is_plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if not is_plain or not 0 < len(str(value)) <= MAX_VALUE or not str(value).isprintable():
        raise InvalidSearchError(
            f"tags[{key!r}]={str(value)[:MAX_VALUE]!r} can't be a tag's value; use a text of 1 to {MAX_VALUE} "
            "printable characters, or a number"
        )
    return str(value)


def add_tags(connection: Connection, search_id: int, tags: Mapping[str, str]) -> None:
    """Insert the tags of a new search, in the transaction that inserts it."""
    insert_all(connection, Tag, [{"search_id": search_id, "key": key, "value": tags[key]} for key in tags])


@retried
def change_tags(database: Database, search_id: int, changes: Mapping[str, str | None]) -> None:
    """Set tags of a search; None removes one.

    Raises
    ------
    SearchNotFoundError
        If the search was deleted meanwhile.
    """
    of_search = Tag.search_id == search_id
    is_there = select(Search.id).where(Search.id == search_id, Search.deleted_at.is_(None))
    with database.write() as connection:
        if connection.execute(is_there.with_for_update(key_share=True)).first() is None:
            raise SearchNotFoundError(f"search {search_id} is not there any more: it was deleted")
        connection.execute(delete(Tag).where(of_search, Tag.key.in_(changes)))
        for key, value in changes.items():
            if value is not None:
                connection.execute(insert(Tag).values(search_id=search_id, key=key, value=value))


def tags_of(database: Database, search_ids: Collection[int]) -> dict[int, dict[str, str]]:
    """Return the tags of some searches, by their ids."""
    query = select(Tag.search_id, Tag.key, Tag.value).where(Tag.search_id.in_(search_ids)).order_by(Tag.key)
    found: dict[int, dict[str, str]] = defaultdict(dict)
    with database.read() as connection:
        for row in connection.execute(query):
            found[row.search_id][row.key] = row.value
    return dict(found)


def has_tag(key: str, value: str | None) -> ColumnElement[bool]:
    """Return the condition that a search has a tag; None: with any value."""
    of_search = select(Tag.search_id).where(Tag.search_id == Search.id, Tag.key == key)
    return (of_search if value is None else of_search.where(Tag.value == value)).exists()
