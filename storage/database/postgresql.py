"""PostgreSQL: its driver, time limits of connections and statements, and leaving a server that became a standby."""

from __future__ import annotations

import os
import sys
from typing import Any

from sqlalchemy import URL, Connection, Dialect, ExceptionContext

from gridfleet.storage.database import certificates
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX

#: SQLSTATE of a write on a server that only reads.
READ_ONLY = "25006"
#: SQLSTATE of what a role may not do.
INSUFFICIENT_PRIVILEGE = "42501"
#: What PostgreSQL and PgBouncer say where there is no connection left.
NO_ROOM = (
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for",
    "no more connections allowed",
)
#: Bounds of what a session may keep others waiting for. Payloads of hundreds of MB are written in one statement per
#: chunk, so 60 s a statement is ample.
LIMITS = {"statement_timeout": "60s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s"}
_LIMIT_OPTIONS = " ".join(f"-c {name}={value}" for name, value in LIMITS.items())


def import_psycopg() -> None:
    """Import psycopg so that its OpenSSL finds its own symbols.

    TensorFlow exports those of its BoringSSL to all that is loaded later: a script that imports Keras first
    crashed at the first TLS connection.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        import psycopg  # noqa: F401 - here, for an embedded fleet needs neither the driver nor the 0.1 s of its import
    finally:
        sys.setdlopenflags(flags)


def options(url: URL) -> dict[str, Any]:
    """Return the engine's options: a server that is away or hangs is noticed within seconds.

    Parameters
    ----------
    url : URL
        Of the database. What it says itself counts, as in every program that uses libpq.

    Raises
    ------
    SettingsError
        If it asks for the system's certificate authorities, and there are none.
    """
    connect: dict[str, Any] = {
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "application_name": "gridfleet",
        "options": _LIMIT_OPTIONS,
    }
    if "options" in url.query:  # of two settings of one name, the server heeds the last
        asked = url.query["options"]
        connect["options"] += f" {asked if isinstance(asked, str) else ' '.join(asked)}"
    ours = {name: value for name, value in connect.items() if name == "options" or name not in url.query}
    return {
        "connect_args": {**ours, **certificates.of_the_system(url.query)},
        # whatever the server's default is: at a stricter one, transactions that merely meet would fail
        "isolation_level": "READ COMMITTED",
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        # kept open: one; what a thread needs besides, it closes again
        "pool_size": 1,
        "max_overflow": 3,
    }


def connect(_dialect: Dialect, _record: Any, arguments: Any, options: Any) -> Any:
    """Open a connection that notices when its server falls silent, and what is in between.

    Raises
    ------
    SettingsError
        If the database has no encoding: texts come out of it as bytes, which SQLAlchemy stumbles over. If a pooler
        refuses what the URL asks for.
    """
    # here, for it needs psycopg, which an embedded fleet does not import
    from gridfleet.storage.database import pooler

    connection = pooler.connect(arguments, options, limits=_LIMIT_OPTIONS)
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        name = connection.info.dbname
        connection.close()
        raise SettingsError(
            f"{PREFIX}DATABASE_URL: the database {name!r} has the encoding SQL_ASCII, in which texts are bytes of any "
            "kind; make one with `createdb --template=template0 --encoding=UTF8`"
        )
    return connection


def forbid_writing(connection: Any, _record: Any) -> None:
    """Let each transaction of a new connection begin as READ ONLY."""
    connection.read_only = True


def has_no_room(error: BaseException) -> bool:
    """Whether a server refused a connection because others have all that there are, or all of this role's."""
    # psycopg knows no SQLSTATE of what a server says before a connection is there
    return any(sentence in str(error) for sentence in NO_ROOM)


def begin(connection: Connection) -> None:
    """Begin a transaction."""
    from gridfleet.storage.database import pooler

    pooler.set_limits(connection, LIMITS)


def leave_standby(context: ExceptionContext) -> None:
    """Give a connection up whose server only reads."""
    # the old primary after a failover: its connections would refuse to write for ever
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
