"""One door to SQLite and PostgreSQL: engine, transactions, the database's own clock."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    ExceptionContext,
    String,
    create_engine,
    event,
    extract,
    func,
    literal,
    text,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from gridfleet.storage.database.retries import first_line
from gridfleet.storage.errors import DatabaseUnreachableError, SettingsError
from gridfleet.storage.settings import PREFIX, Settings

#: File systems on which SQLite's WAL can't work, because its shared memory is per host (sqlite.org/wal.html).
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "glusterfs", "fuse.sshfs"}

#: What is stored in SQLite: text that sorts as time and that SQLite's own date functions read.
SQLITE_TIME = "%Y-%m-%d %H:%M:%f+00:00"

#: SQLSTATE of a write on a server that only reads.
READ_ONLY = "25006"
#: Bytes that SQLite's WAL is cut to when no reader needs more of it; it grows while a long one does.
SQLITE_WAL_BYTES = 16_000_000


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


class Database:
    """The connections of one process.

    Parameters
    ----------
    settings : Settings
        Where the database is.

    Raises
    ------
    SettingsError
        If the URL can't be used, for instance an SQLite file on a network file system.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.database()
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self.engine = create_engine(self.url, **_sqlite_options(self.url.database))
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            _import_psycopg()
            self.engine = create_engine(self.url, **_postgresql_options())
            event.listen(self.engine, "do_connect", _connect_postgresql)
            event.listen(self.engine, "handle_error", _leave_standby)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may write; committed at the end, rolled back at an error."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(gridfleet_begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a short transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def check(self) -> None:
        """Make sure that the database answers.

        Raises
        ------
        DatabaseUnreachableError
            With the address (never the password), the reason and what to do.
        """
        try:
            with self.read() as connection:
                connection.execute(text("SELECT 1"))
        except (OperationalError, DBAPIError) as error:
            raise DatabaseUnreachableError(self._unreachable(first_line(error))) from error

    def _unreachable(self, reason: str) -> str:
        shown = self.url.render_as_string(hide_password=True)
        if self.dialect == "sqlite":  # a file, which nobody can start
            return (
                f"the database {shown} can't be used ({reason}); check the file, move it away to begin anew, "
                f"or set {PREFIX}DATABASE_URL to another"
            )
        return (
            f"the database {shown} does not answer ({reason}); "
            f"start it, or set {PREFIX}DATABASE_URL and {PREFIX}DATABASE_PASSWORD"
        )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _import_psycopg() -> None:
    """Import psycopg so that its OpenSSL finds its own symbols.

    TensorFlow exports those of its BoringSSL to all that is loaded later: a script that imports Keras first
    crashed at the first TLS connection.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        import psycopg  # noqa: F401
    finally:
        sys.setdlopenflags(flags)


def _postgresql_options() -> dict[str, Any]:
    connect = {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "application_name": "gridfleet",
        # payloads of hundreds of MB are written in one statement per chunk, so 60 s a statement is ample
        "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
    }
    return {
        "connect_args": connect,
        # whatever the server's default is: at a stricter one, transactions that merely meet would fail
        "isolation_level": "READ COMMITTED",
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "pool_size": 2,
        "max_overflow": 2,
    }


def _connect_postgresql(_dialect: Dialect, _record: Any, arguments: Any, options: Any) -> Any:
    from gridfleet.storage.database.postgresql import Connection

    return Connection.connect(*arguments, **options)


def _leave_standby(context: ExceptionContext) -> None:
    # the old primary after a failover: its connections would refuse to write for ever
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _sqlite_options(path: str | None) -> dict[str, Any]:
    if path and path != ":memory:":
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise SettingsError(f"{PREFIX}DATABASE_URL: the folder {folder} does not exist; make it first")
        kind = _file_system(folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL: {folder} lies on a network file system ({kind}), where SQLite loses data; "
                "use a local folder or PostgreSQL"
            )
    return {"connect_args": {"timeout": 30}, "pool_pre_ping": False}


def _file_system(folder: Path) -> str:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    fields = [line.split() for line in mounts]
    held = [(Path(parts[1]), parts[2]) for parts in fields if folder.is_relative_to(parts[1])]
    return max(held, key=lambda mount: len(mount[0].parts))[1] if held else ""


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: see _begin_sqlite
    cursor = connection.cursor()
    for pragma in (
        "busy_timeout=30000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"journal_size_limit={SQLITE_WAL_BYTES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # a transaction that reads and then writes gets SQLITE_BUSY at once, whatever busy_timeout says,
    # so writers take the lock at their beginning
    connection.exec_driver_sql(connection.get_execution_options().get("gridfleet_begin", "BEGIN"))
