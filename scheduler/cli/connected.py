"""What commands connect to: a configured fleet, this folder's own, or where results are."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridfleet.scheduler.cli.output import say

#: Seconds that a service has to end after SIGTERM; container engines kill after ten.
STOP_S = 8.0


class ShownProgress(StrEnum):
    """How a command that waits shows progress."""

    AUTO = "auto"
    PLAIN = "plain"
    QUIET = "quiet"


ProgressOption = Annotated[
    ShownProgress | None,
    typer.Option(help="Updated in place, as lines, or not at all; default: GRIDFLEET_PROGRESS.", show_default=False),
]

if TYPE_CHECKING:
    from gridfleet.scheduler.fleet.connection import Fleet
    from gridfleet.scheduler.reports.reader import SearchSummary
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.settings import Settings


def choose_progress(chosen: ShownProgress | None) -> None:
    """Let an option count for this process as the setting does; without one that counts."""
    if chosen is not None:
        os.environ["GRIDFLEET_PROGRESS"] = chosen


def configured_settings() -> Settings:
    """Return the settings of a configured fleet.

    Raises
    ------
    SettingsError
        If none is configured.
    """
    from gridfleet.storage.errors import SettingsError
    from gridfleet.storage.settings import load_settings

    settings = load_settings()
    if settings.is_embedded:
        raise SettingsError(
            "no fleet is configured: set GRIDFLEET_DATABASE_URL and GRIDFLEET_BROKER_URL, and for a worker "
            "GRIDFLEET_PUBLIC_KEY; `gridfleet up` starts an embedded fleet of this folder, which needs none"
        )
    return settings


def embedded_settings(instead: str) -> Settings:
    """Return the settings of a folder that has its own fleet.

    Parameters
    ----------
    instead : str
        What to do with the parts of a configured fleet instead, for the error.

    Raises
    ------
    SettingsError
        If a fleet is configured.
    """
    from gridfleet.storage.errors import SettingsError
    from gridfleet.storage.settings import load_settings

    settings = load_settings()
    if not settings.is_embedded:
        raise SettingsError(f"a fleet is configured by GRIDFLEET_DATABASE_URL and GRIDFLEET_BROKER_URL; {instead}")
    return settings


def stored_settings() -> Settings:
    """Return the settings of the configured fleet, or of this folder's, which is not started."""
    from gridfleet.storage.settings import load_settings

    settings = load_settings()
    if not settings.is_embedded:
        return settings
    from gridfleet.scheduler.fleet.local import client

    return client.stored(settings)


def open_results() -> Fleet:
    """Connect to where results are; nothing is started."""
    from gridfleet.scheduler.fleet.connection import read_only

    return read_only()


def find_search(name: str) -> tuple[SearchSummary, Database]:
    """Return a search that is to be changed, by its whole name, and the database that has it."""
    database = open_results().database
    return choose_search(database, name, whole=True), database


def choose_search(database: Database, name: str | None, *, whole: bool = False) -> SearchSummary:
    """Return the search that somebody means; see `reader.choose_search`."""
    from gridfleet.scheduler.reports import reader

    return reader.choose_search(database, name, whole=whole)


def note_missing_fleet(fleet: Fleet) -> None:
    """Say that nothing goes on in this folder, if no fleet runs there."""
    from gridfleet.scheduler.fleet.local import client
    from gridfleet.storage.settings import load_settings

    if fleet.is_embedded and not client.is_running(load_settings()):
        say("no fleet runs in this folder; searches go on when `gridfleet up` starts one")


def exit_at_sigterm() -> None:
    """Let SIGTERM end this process with status 0, as a container engine expects.

    What does not end in `STOP_S`, since something hangs or took the exit for an error, says where it is and ends too.
    """

    def leave(*_: Any) -> None:
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(STOP_S, exit=True, file=sys.__stderr__)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


def is_database_error(error: Exception) -> bool:
    """Whether the database refused something; SQLAlchemy is not imported for it."""
    if "sqlalchemy" not in sys.modules:
        return False
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError)
