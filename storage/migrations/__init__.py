"""Alembic migrations, and the one way to apply them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import ProgrammingError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.postgresql import INSUFFICIENT_PRIVILEGE
from gridfleet.storage.database.retries import retried
from gridfleet.storage.errors import SchemaVersionError, SettingsError, first_line
from gridfleet.storage.migrations import learning_curves
from gridfleet.storage.schema import SCHEMA_REVISION
from gridfleet.storage.settings import PREFIX
from gridfleet.storage.urls import without_secrets

if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

#: Key of PostgreSQL's advisory lock under which migrations run; any constant of our own will do.
MIGRATION_LOCK = 0x67726964


def upgrade(database: Database, *, say: Callable[[str], None] = logger.info) -> bool:
    """Bring the tables to this release's schema; safe to call from many processes at once.

    Parameters
    ----------
    database : Database
        The database to migrate.
    say : callable, default=logger.info
        Is told how far it is, where that takes its time.

    Returns
    -------
    bool
        Whether anything had to be done.

    Raises
    ------
    SchemaVersionError
        If the tables are of a newer release than this one.
    SettingsError
        If the role may not make tables.
    """
    if current_revision(database) == SCHEMA_REVISION:
        return False
    try:
        _refuse_unknown(current_revision(database), _config())
        learning_curves.convert_completed(database, _lock, say=say)
        _migrate(database)
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        raise SettingsError(_may_not(database, error)) from error
    return True


@retried  # of several that start at once, all but one wait
def _migrate(database: Database) -> None:
    # here and below, for every process asks for the revision, and importing Alembic takes 0.25 s
    from alembic import command

    config = _config()
    with database.write() as connection:
        _lock(connection)
        _refuse_unknown(_revision_of(connection), config)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.dialect == "postgresql":
            _set_rights(connection)


def _lock(connection: Connection) -> None:
    """Let one process migrate, until the end of its transaction."""
    if connection.dialect.name == "postgresql":  # in SQLite BEGIN IMMEDIATE does
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def _set_rights(connection: Connection) -> None:
    """Set the roles' rights on new tables as deploy/database/roles.sh has them, if it made the roles here.

    Its event trigger does it as well, where PostgreSQL let it make one.
    """
    if connection.execute(text("SELECT to_regproc('gridfleet_rights.set_all_rights')")).scalar() is not None:
        connection.execute(text("SELECT gridfleet_rights.set_all_rights()"))


def _may_not(database: Database, error: Exception) -> str:
    role = f'"{database.url.username}"' if database.url.username else "this role"
    return (
        f"{PREFIX}DATABASE_URL: {role} may not make tables in {without_secrets(database.url)} ({first_line(error)}); "
        f"as the database's owner, run `GRANT USAGE, CREATE ON SCHEMA public TO {role}`, or upgrade as the owner"
    )


def current_revision(database: Database) -> str | None:
    """Return the revision of the tables, None where there are none."""
    with database.read() as connection:
        return _revision_of(connection)


def require_current(database: Database) -> None:
    """Make sure that the tables are those of this release, without changing them.

    Raises
    ------
    SchemaVersionError
        If they are not; the sentence says what to do.
    """
    revision = current_revision(database)
    if revision == SCHEMA_REVISION:
        return
    _refuse_unknown(revision, _config())
    raise SchemaVersionError(
        f"the database's schema is {revision or 'empty'}, this release of gridfleet needs {SCHEMA_REVISION}; "
        "run `gridfleet db upgrade` with this release, or install the release that made the tables"
    )


def require_known(revision: str) -> None:
    """Make sure that tables of a revision can be brought to this release's schema.

    Raises
    ------
    SchemaVersionError
        If they are of a newer release.
    """
    _refuse_unknown(revision, _config())


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _refuse_unknown(revision: str | None, config: Config) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaVersionError(
            f"the database's schema is {revision}, which is newer than this release of gridfleet "
            f"({SCHEMA_REVISION}); install a newer gridfleet"
        )
