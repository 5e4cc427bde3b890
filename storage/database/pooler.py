"""A pooler between this process and PostgreSQL, as PgBouncer: noticed, and asked for nothing that it can't do.

It may give each transaction another session of the server. So nothing that belongs to a session holds: no prepared
statement, no setting but one of a transaction, no process id.
"""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Connection

from gridfleet.storage.database import silence
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX

#: What poolers say to the start-up parameter `options`: PgBouncer by its defaults, and Amazon's RDS Proxy.
REFUSALS = ("unsupported startup parameter", "doesn't support command-line options")


def connect(arguments: Any, options: dict[str, Any], *, limits: str) -> silence.Connection:
    """Open a connection, and notice whether a pooler is in between.

    Parameters
    ----------
    arguments, options
        Those of psycopg.
    limits : str
        With which `options["options"]` begins: time limits, which each transaction behind a pooler sets itself.

    Raises
    ------
    SettingsError
        If the URL asks for more, and the pooler refuses it.
    """
    try:
        connection = silence.Connection.connect(*arguments, **options)
    except psycopg.OperationalError as error:
        if not any(refusal in str(error) for refusal in REFUSALS):
            raise
        without = {**options}
        if without.pop("options").removeprefix(limits).strip():
            raise SettingsError(
                f"{PREFIX}DATABASE_URL has the option 'options', which the pooler there refuses; leave it out, and set "
                "what it asks for with `ALTER ROLE … SET`"
            ) from error
        connection = silence.Connection.connect(*arguments, **without)
    _notice(connection)
    return connection


def set_limits(connection: Connection, limits: dict[str, str]) -> None:
    """Bound a transaction that begins behind a pooler: what was asked at the connection's start did not get through."""
    driver_connection: Any = connection.connection.driver_connection
    if driver_connection.is_pooled:
        settings = ", ".join(f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in limits.items())
        connection.exec_driver_sql(f"SELECT {settings}")


def _notice(connection: silence.Connection) -> None:
    connection.autocommit = True
    (pid,) = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (None,)
    connection.autocommit = False
    connection.is_pooled = pid != connection.info.backend_pid  # a pooler's own is made up
    if connection.is_pooled:
        connection.prepare_threshold = None
