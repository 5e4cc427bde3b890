"""The view of one search: named after it, one typed column per hyperparameter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from gridfleet.storage.params import Kind

#: Columns that every search's view has; a hyperparameter of such a name is shown as ``param_<name>``.
BEFORE_PARAMS = ("trial_id", "number", "state", "rank_test_score", "mean_test_score", "std_test_score", "mean_fit_time")
AFTER_PARAMS = ("worker_id", "attempt", "started_at", "finished_at", "error_type", "peak_memory_mb")

#: PostgreSQL cuts longer names silently.
MAX_IDENTIFIER_BYTES = 63

#: Milliseconds for which a view that is to show a newer search is waited for while others read it.
VIEW_LOCK_MS = 3_000

_RANK = "CASE WHEN mean_test_score IS NOT NULL THEN RANK() OVER (ORDER BY mean_test_score DESC NULLS LAST) END"

#: How a view says whose trials it shows, in its own words and in PostgreSQL's.
_OF_SEARCH = re.compile(r"\bsearch_id = (\d+)\b")

_SQLITE_TYPES: dict[Kind, str] = {
    "bigint": "INTEGER",
    "double precision": "REAL",
    "boolean": "INTEGER",
    "text": "TEXT",
}


def create_search_view(connection: Connection, search_id: int, name: str, kinds: Mapping[str, Kind]) -> None:
    """Create the view of a search.

    Parameters
    ----------
    connection : Connection
        An open writing transaction: the view appears with the search or not at all.
    search_id : int
        Whose trials it shows.
    name : str
        Its name, any text.
    kinds : mapping of str to str
        The SQL type of each hyperparameter (`column_kinds`).
    """
    _create_view(connection, "CREATE VIEW", search_id, name, kinds)


def point_view(connection: Connection, search_id: int, name: str, kinds: Mapping[str, Kind]) -> bool:
    """Let the view of an earlier search show this one.

    Parameters
    ----------
    connection, search_id, kinds
        As for `create_search_view`.
    name : str
        The earlier search's.

    Returns
    -------
    bool
        False if PostgreSQL refuses it, and the view stays as it is: another role made it, somebody reads it all the
        time, or made a view of it while this search has other hyperparameters.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {quote(name)}")
        _create_view(connection, "CREATE VIEW", search_id, name, kinds)
        return True
    # replaced, a view keeps its rights and the views that others made of it, but it has to have the same columns
    for drop, create in ((None, "CREATE OR REPLACE VIEW"), (f"DROP VIEW IF EXISTS {quote(name)}", "CREATE VIEW")):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {VIEW_LOCK_MS}")
                if drop is not None:
                    connection.exec_driver_sql(drop)
                _create_view(connection, create, search_id, name, kinds)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
        else:
            return True
    return False


def shown_search(connection: Connection, name: str) -> int | None:
    """Return the id of the search whose trials a view shows; None if there is no such view."""
    if connection.dialect.name == "sqlite":
        query = "SELECT sql FROM sqlite_master WHERE type = 'view' AND lower(name) = lower(:view)"
        view = name
    else:
        query, view = "SELECT pg_get_viewdef(to_regclass(:view))", quote(name)
    definition = connection.execute(text(query), {"view": view}).scalar()
    found = _OF_SEARCH.search(definition or "")
    return None if found is None else int(found[1])


def drop_view(connection: Connection, name: str) -> None:
    """Remove the view of a search, if it is there."""
    connection.exec_driver_sql(f"DROP VIEW IF EXISTS {_quoted(connection, name)}")


def rename_view(
    connection: Connection, search_id: int, name: str, new_name: str, kinds: Callable[[], Mapping[str, Kind]]
) -> None:
    """Give the view of a search another name; on PostgreSQL it keeps its rights, and what others made of it.

    Parameters
    ----------
    connection, search_id
        As for `create_search_view`.
    name, new_name : str
        The search's name of before, and from now on.
    kinds : callable
        Returns the SQL type of each hyperparameter, where the view has to be made anew.
    """
    if connection.dialect.name == "postgresql" and shown_search(connection, name) == search_id:
        connection.exec_driver_sql(f"ALTER VIEW {_quoted(connection, name)} RENAME TO {_quoted(connection, new_name)}")
        return
    drop_view(connection, name)
    create_search_view(connection, search_id, new_name, kinds())


def _quoted(connection: Connection, name: str) -> str:
    """Quote a name for a statement that the driver gets as it is: psycopg reads % as a placeholder."""
    return quote(name).replace("%", "%%") if connection.dialect.name == "postgresql" else quote(name)


def _create_view(connection: Connection, how: str, search_id: int, name: str, kinds: Mapping[str, Kind]) -> None:
    value = _sqlite_value if connection.dialect.name == "sqlite" else _postgresql_value
    columns = [
        "id AS trial_id",
        "number",
        "state",
        f"{_RANK} AS rank_test_score",
        "mean_test_score",
        "std_test_score",
        "mean_fit_time",
        *(f"{value(param, kind)} AS {quote(column)}" for param, column, kind in _param_columns(kinds)),
        *AFTER_PARAMS,
    ]
    query = f"SELECT {', '.join(columns)} FROM trials WHERE search_id = {int(search_id)}"  # noqa: S608 - all quoted
    statement = f"{how} {quote(name)} AS {query}"
    if connection.dialect.name == "postgresql":  # psycopg reads % as a placeholder, SQLite's driver does not
        statement = statement.replace("%", "%%")
    connection.exec_driver_sql(statement, {})


def quote(identifier: str) -> str:
    """Quote a name for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def _param_columns(kinds: Mapping[str, Kind]) -> list[tuple[str, str, Kind]]:
    taken = {*BEFORE_PARAMS, *AFTER_PARAMS}
    columns = []
    for param, kind in kinds.items():
        column = _fitting(param)
        if column.lower() in taken:
            column = _fitting(f"param_{param}")
        if column.lower() in taken:  # differs only in case from another, which SQLite takes for the same
            column = _fitting(f"{param}_{_short_digest(param)}")
        taken.add(column.lower())
        columns.append((param, column, kind))
    return columns


def _fitting(identifier: str) -> str:
    clean = identifier.replace("\x00", "")
    encoded = clean.encode("utf-8", "replace")
    if len(encoded) <= MAX_IDENTIFIER_BYTES:
        return encoded.decode()
    return encoded[:54].decode("utf-8", "ignore") + "_" + _short_digest(identifier)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


def _literal(text: str) -> str:
    return "'" + text.replace("\x00", "").replace("'", "''") + "'"


def _sqlite_value(param: str, kind: Kind) -> str:
    # json_each and not json_extract: a path can't hold every name
    # as in PostgreSQL, where the text of a JSON boolean is not a digit
    shown = "CASE WHEN type IN ('true', 'false') THEN type ELSE value END" if kind == "text" else "value"
    value = f"(SELECT {shown} FROM json_each(trials.params) WHERE key = {_literal(param)})"  # noqa: S608 - quoted
    return f"CAST({value} AS {_SQLITE_TYPES[kind]})"


def _postgresql_value(param: str, kind: Kind) -> str:
    return f"CAST(params ->> {_literal(param)} AS {kind})"
