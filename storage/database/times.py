"""Times in SQL: the database's own clock, and a column type for aware times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, String, extract, func, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

#: What is stored in SQLite: text that sorts as time and that SQLite's own date functions read.
SQLITE_TIME = "%Y-%m-%d %H:%M:%f+00:00"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC: ``timestamptz`` in PostgreSQL, sortable text in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Choose the column's type."""
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Turn an aware time into what the database stores."""
        if value is None or dialect.name != "sqlite":
            return value
        utc = value.astimezone(UTC)
        return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d}+00:00"

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Turn what the database stores into an aware time."""
        if value is None or isinstance(value, datetime):
            return value
        return datetime.fromisoformat(value)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, plus some seconds: leases must not depend on the workers' clocks.

    Parameters
    ----------
    plus_s : float or SQL expression, default=0
        Seconds to add.
    """

    inherit_cache = True
    type = UtcDateTime()

    def __init__(self, plus_s: float | ColumnElement[Any] = 0) -> None:
        super().__init__(plus_s if isinstance(plus_s, ColumnElement) else literal(float(plus_s)))


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **keywords: Any) -> str:
    return f"strftime('{SQLITE_TIME}', 'now', ({compiler.process(element.clauses, **keywords)}) || ' seconds')"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **keywords: Any) -> str:
    # clock_timestamp() and not now(): the latter stands still within a transaction
    return f"(clock_timestamp() + ({compiler.process(element.clauses, **keywords)}) * interval '1 second')"


def seconds_between(dialect: str, start: Any, end: Any) -> Any:
    """Return the SQL expression for the seconds from one time to another."""
    if dialect == "sqlite":
        return (func.julianday(end) - func.julianday(start)) * 86_400.0
    return extract("epoch", end - start)
