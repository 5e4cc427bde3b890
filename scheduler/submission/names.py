"""Whether a search can have the name that it is given: asked before a fleet starts, which takes seconds."""

from __future__ import annotations

import shlex

from sqlalchemy import func, select

from gridfleet.scheduler.fleet.connection import read_only
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.figures import ago, score
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NameTakenError, SearchNotFoundError
from gridfleet.storage.schema import Search
from gridfleet.storage.searches import free_name
from gridfleet.storage.settings import load_settings


def check_name_is_free_before_start(name: str | None, *, for_command: bool = False) -> None:
    """Make sure, where no fleet runs yet, that no search of this folder has a name.

    Where one runs, nothing has to start, and `check_name_is_free` asks in time.
    """
    settings = load_settings()
    if name is None or not settings.is_embedded or not client.has_database(settings) or client.is_running(settings):
        return
    database = read_only().database
    try:
        check_name_is_free(database, name, for_command=for_command)
    finally:
        database.close()


def check_name_is_free(database: Database, name: str | None, *, for_command: bool = False) -> None:
    """Make sure that no search has a name.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or None
        The name, which counts without regard to case.
    for_command : bool, default=False
        Whether the error says what to do on the command line, and not in a script.

    Raises
    ------
    NameTakenError
        With what is known of the search that has it, how to read it, and the next name that is free.
    """
    if name is None or not name.isprintable():  # databases refuse to look for NUL, and `check_name` such names
        return
    with database.read() as connection:
        found = connection.execute(select(Search.id, Search.name).where(func.lower(Search.name) == name.lower()))
        other = found.one_or_none()
        if other is None:
            return
        free = free_name(connection, other.name)
    if for_command:
        report = f"gridfleet report {shlex.quote(other.name)}"
        ways = f"read that one with `{report}`, go on with it with --resume, or give --name {shlex.quote(free)}"
    else:
        ways = (
            f"read that one with open_search({other.name!r}), go on with it with load_if_exists=True, or give "
            f"name={free!r}"
        )
    raise NameTakenError(f"name {name!r} is taken ({_known_of(database, other.id)}); {ways}")


def _known_of(database: Database, search_id: int) -> str:
    try:
        search, progress = reader.find_search(database, search_id), reader.progress(database, search_id)
    except SearchNotFoundError:
        return "its search is being deleted"
    if search.finished_at is None:
        facts = [search.shown_state, progress.counts]
    else:
        facts = [f"{search.shown_state} {ago(search.finished_at)}"]
    if progress.best_score is not None:
        facts.append(f"best {score(progress.best_score)}")
    return ", ".join(facts)
