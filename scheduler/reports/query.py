"""One query that can change nothing: how it is run, and what its values are."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import QueryError, first_line

if TYPE_CHECKING:
    from psycopg import Connection

#: Seconds that a query may take, all fetches together; what is done with its rows meanwhile does not count.
TIMEOUT_S: float = 60
#: Rows fetched at once.
FETCH_ROWS = 1_000
#: What SQLite's authorizer lets pass: reading, and nothing else. PRAGMA, ATTACH and all writing are refused.
SQLITE_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@dataclass(frozen=True)
class Result:
    """The columns of a query and its rows, which are fetched as they are read."""

    columns: Sequence[str]
    rows: Iterator[Sequence[Any]]


@contextmanager
def run(
    database: Database, query: str, *, fetch_rows: int = FETCH_ROWS, max_cell_bytes: int | None = None
) -> Iterator[Result]:
    """Run one query that can change nothing.

    SQLite's file is opened read-only, with an authorizer that lets only reading pass; in PostgreSQL the
    query is declared as a cursor, which takes nothing but one SELECT, in a READ ONLY transaction.

    Parameters
    ----------
    database : Database
        Where to run it.
    query : str
        A SELECT, WITH … SELECT or VALUES.
    fetch_rows : int
        Rows that are fetched at once.
    max_cell_bytes : int, default=None
        What one value may take in SQLite, where it takes this process' memory; None: SQLite's own bound.

    Yields
    ------
    Result

    Raises
    ------
    QueryError
        With the database's own words.
    """
    query = query.strip().rstrip(";").strip()
    if not query:
        raise QueryError('the query is empty; write one, as in gridfleet sql "SELECT * FROM best_trials"')
    if database.dialect == "sqlite":
        opened = _on_sqlite(database, query, fetch_rows, max_cell_bytes)
    else:
        opened = _on_postgresql(database, query, fetch_rows)
    with opened as result:
        yield result


@contextmanager
def _on_sqlite(database: Database, query: str, fetch_rows: int, max_cell_bytes: int | None) -> Iterator[Result]:
    sqlite3.register_converter("JSON", json.loads)  # used only by connections that ask for it, as this one
    uri = f"{Path(database.url.database or '').resolve().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=30, detect_types=sqlite3.PARSE_DECLTYPES)
        with closing(connection):
            connection.execute("PRAGMA query_only = ON")
            connection.set_authorizer(_authorize)
            if max_cell_bytes is not None:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_cell_bytes)
            limit = _TimeLimit()
            connection.set_progress_handler(limit.is_over, 100_000)
            with limit.counted():
                cursor = connection.execute(query)
            if cursor.description is None:
                raise QueryError("this is no query that returns rows; only SELECT is allowed")
            rows = _fetched(lambda: cursor.fetchmany(fetch_rows), limit)
            yield Result([column[0] for column in cursor.description], rows)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _sqlite_error(error) from error


def _authorize(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in SQLITE_ALLOWED else sqlite3.SQLITE_DENY


def _sqlite_error(error: Exception) -> QueryError:
    if str(error) == "not authorized":
        return QueryError("only SELECT is allowed: `gridfleet sql` reads and changes nothing")
    if str(error) == "interrupted":
        return _too_long()
    return QueryError(f"SQLite refuses the query: {error}")


@contextmanager
def _on_postgresql(database: Database, query: str, fetch_rows: int) -> Iterator[Result]:
    import psycopg

    pooled = database.engine.raw_connection()
    connection: Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
    try:
        connection.rollback()
        connection.read_only = True
        limit = _TimeLimit()
        with connection.cursor(name="gridfleet_sql") as cursor:
            with limit.counted():
                _limit_next_statement(connection, limit)
                # percent signs are the user's own, and no placeholders: there are no parameters
                cursor.execute(query.encode())

            def fetch() -> Sequence[Any]:
                _limit_next_statement(connection, limit)
                return cursor.fetchmany(fetch_rows)

            yield Result([column.name for column in cursor.description or ()], _fetched(fetch, limit))
    except psycopg.errors.QueryCanceled as error:
        raise _too_long() from error
    except psycopg.errors.SyntaxError as error:
        raise QueryError(f"PostgreSQL refuses the query; only one SELECT is allowed: {first_line(error)}") from error
    except psycopg.Error as error:
        raise QueryError(f"PostgreSQL refuses the query: {first_line(error)}") from error
    finally:
        pooled.invalidate()  # whatever the query set in its session ends with it


def _limit_next_statement(connection: Connection[Any], limit: _TimeLimit) -> None:
    # anew for each fetch: the query may have called set_config. A transaction_timeout below statement_timeout
    # switches that off
    connection.execute(f"SET LOCAL statement_timeout = '{max(1, round(1_000 * limit.left_s))}ms'")
    if connection.info.server_version >= 170_000:
        connection.execute("SET LOCAL transaction_timeout = 0")


class _TimeLimit:
    """How much a query may still take of `TIMEOUT_S`."""

    def __init__(self) -> None:
        self.left_s = TIMEOUT_S
        self._until = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Let the database work, and count its time."""
        if self.left_s <= 0:
            raise _too_long()
        self._until = time.monotonic() + self.left_s
        try:
            yield
        finally:
            self.left_s = self._until - time.monotonic()

    def is_over(self) -> bool:
        """Whether the database works for too long now."""
        return time.monotonic() > self._until


def _too_long() -> QueryError:
    return QueryError(f"the query took longer than {TIMEOUT_S} s")


def _fetched(fetch: Callable[[], Sequence[Any]], limit: _TimeLimit) -> Iterator[list[Any]]:
    while True:
        with limit.counted():
            rows = fetch()
        if not rows:
            return
        yield from map(_values, rows)


def _values(row: Sequence[Any]) -> list[Any]:
    return [_value(value) for value in row]


def _value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds") if value.tzinfo else str(value)
    if isinstance(value, (bytes, memoryview)):
        return f"<{len(value)} bytes>"
    return str(value) if isinstance(value, date) else value
