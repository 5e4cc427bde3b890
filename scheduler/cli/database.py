"""The commands for the database's schema."""

from __future__ import annotations

from gridfleet.scheduler.cli.connected import stored_settings
from gridfleet.scheduler.cli.output import show


def upgrade() -> None:
    """Bring the tables to this release's schema."""
    from gridfleet.storage import migrations
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.schema import SCHEMA_REVISION

    database = Database(stored_settings())
    database.check()
    changed = migrations.upgrade(database)
    show(f"the schema is {SCHEMA_REVISION}" + ("" if changed else " already"))


def current() -> None:
    """Print the tables' schema and this release's."""
    from gridfleet.storage import migrations
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.schema import SCHEMA_REVISION

    database = Database(stored_settings())
    database.check()
    revision = migrations.current_revision(database)
    show(f"the schema is {revision or 'empty'}; this release needs {SCHEMA_REVISION}")
