"""One door to SQLite and PostgreSQL: the engine and its transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from gridfleet.storage.database import postgresql, sqlite
from gridfleet.storage.errors import DatabaseUnreachableError, NoConnectionLeftError, first_line
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.urls import without_secrets


class Database:
    """The connections of one process.

    Parameters
    ----------
    settings : Settings
        Where the database is.
    read_only : bool, default=False
        Whether every transaction is one in which nothing can be written, whatever the role may.

    Raises
    ------
    SettingsError
        If the URL can't be used, for instance an SQLite file on a network file system.
    """

    def __init__(self, settings: Settings, *, read_only: bool = False) -> None:
        self.url = settings.database()
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self.engine = create_engine(self.url, **sqlite.options(self.url.database))
            event.listen(self.engine, "connect", sqlite.prepare)
            event.listen(self.engine, "begin", sqlite.begin)
        else:
            postgresql.import_psycopg()
            self.engine = create_engine(self.url, **postgresql.options(self.url))
            event.listen(self.engine, "do_connect", postgresql.connect)
            event.listen(self.engine, "begin", postgresql.begin)
            event.listen(self.engine, "handle_error", postgresql.leave_standby)
        if read_only:
            forbid = sqlite.forbid_writing if self.dialect == "sqlite" else postgresql.forbid_writing
            event.listen(self.engine, "connect", forbid)

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
        NoConnectionLeftError
            If it answers that others have all of its connections.
        SettingsError
            If it is one that can't hold texts.
        """
        try:
            with self.read() as connection:
                connection.execute(text("SELECT 1"))
        except (OperationalError, DBAPIError) as error:
            if postgresql.has_no_room(error):
                raise NoConnectionLeftError(
                    f"the database {without_secrets(self.url)} has no connection left ({first_line(error)}); run fewer "
                    "processes, or raise its max_connections and the role's CONNECTION LIMIT"
                ) from error
            raise DatabaseUnreachableError(self._unreachable(first_line(error))) from error

    def _unreachable(self, reason: str) -> str:
        shown = without_secrets(self.url)
        if self.dialect == "sqlite":  # a file, which nobody can start
            return (
                f"the database {shown} can't be used ({reason}); check the file, move it away to begin anew, "
                f"or set {PREFIX}DATABASE_URL to another"
            )
        remedy = f"start it, or set {PREFIX}DATABASE_URL and {PREFIX}DATABASE_PASSWORD"
        if "certificate verify failed" in reason:
            remedy = f"name the file of its authority in {PREFIX}DATABASE_URL: sslrootcert=/path/ca.crt"
        return f"the database {shown} does not answer ({reason}); {remedy}"

    def close_idle(self) -> None:
        """Close connections to a server that nobody uses right now; the next call opens one anew, which takes 40 ms."""
        if self.dialect != "sqlite" and self.engine.pool.checkedin():  # type: ignore[attr-defined]
            self.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
