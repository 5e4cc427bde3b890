"""The commands for the database's schema."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from gridfleet.scheduler.cli.connected import stored_settings
from gridfleet.scheduler.cli.output import say, show


def upgrade() -> None:
    """Bring the tables to this release's schema."""
    from gridfleet.storage import migrations
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.schema import SCHEMA_REVISION

    database = Database(stored_settings())
    database.check()
    changed = migrations.upgrade(database, say=say)
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


def size(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, in bytes.")] = False,
) -> None:
    """Show what takes the room, by search.

    In MB: payloads, learning curves, scores, attempts and the rest. Payloads that several searches
    share count for each of them, and are freed with the last.
    """
    from dataclasses import asdict

    from gridfleet.scheduler.cli.connected import open_results
    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.reports import tables
    from gridfleet.storage import room

    database = open_results().database
    of_all, rooms = room.room_of_database(database), room.room_of_searches(database)
    if as_json:
        searches = [{**asdict(one), "freed": one.freed} for one in rooms]
        show(json_line({**asdict(of_all), "searches": searches}))
        return
    if rooms:
        tables.print_rooms(rooms)
    free = "" if of_all.free is None else f", of which {tables.megabytes(of_all.free)} MB are free"
    show(f"the database has {tables.megabytes(of_all.total)} MB{free}; payloads {tables.megabytes(of_all.payloads)} MB")
    if of_all.unnamed_payloads:
        show(
            f"no search names payloads of {tables.megabytes(of_all.unnamed_payloads)} MB: `gridfleet delete` "
            "removes them"
        )


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; not there yet.", show_default=False)],
) -> None:
    """Write the database into a file, beside a fleet that runs.

    SQLite is copied as it is at one moment; PostgreSQL by pg_dump.
    """
    from gridfleet.storage import backup as backups
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.settings import load_settings

    database = Database(stored_settings())
    database.check()
    backups.back_up(database, file)
    show(f"{file} has the database, {file.stat().st_size} bytes")
    settings = load_settings()
    if settings.is_embedded and settings.secret_key is None:
        say(f"keep {settings.home / 'secret.key'} with it: results are opened with that key")


def restore(
    file: Annotated[Path, typer.Argument(help="What `gridfleet db backup` wrote.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also where searches are lost by it.")] = False,
) -> None:
    """Put the database back to what a backup has, while no fleet runs.

    Trials that ran when it was written are queued.
    """
    from gridfleet.storage import backup as backups
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.errors import BackupError
    from gridfleet.storage.settings import load_settings

    settings = stored_settings()
    with ExitStack() as stack:
        if load_settings().is_embedded:
            from gridfleet.scheduler.fleet.local.folder import Folder

            folder = Folder(settings.home)
            if not stack.enter_context(folder.owned()):  # no fleet starts meanwhile
                raise BackupError(f"a fleet runs in {folder.home}; `gridfleet down` stops it")
            folder.make_database()
        database = Database(settings)
        database.check()
        backups.restore(database, file, force=force)
    show(f"the database is what {file} has")
