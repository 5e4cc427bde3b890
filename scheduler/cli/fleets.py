"""The commands that show the embedded fleets of this user, and the log of this folder's."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridfleet.scheduler.cli.connected import embedded_settings, is_database_error
from gridfleet.scheduler.cli.output import fail, say, show, show_json

if TYPE_CHECKING:
    from pathlib import Path

    from gridfleet.scheduler.fleet.local.running import RunningFleet
    from gridfleet.scheduler.reports.reader import SearchSummary
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.settings import Settings

#: Name of the folder of an embedded fleet, which nobody needs to see.
HOME = ".gridfleet"
#: Searches that are named one by one.
NAMED = 3
#: Seconds between looks at a log that is followed.
LOOK_S = 0.2
#: Bytes of a log that are read at once.
CHUNK_BYTES = 1 << 16


def ps(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, a list of objects.")] = False,
) -> None:
    """Show this user's embedded fleets, and what runs on them.

    Those of all folders of this machine; where it does not run Linux, that of this folder.
    """
    from gridfleet.scheduler.fleet.local.running import running_fleets
    from gridfleet.storage.settings import load_settings

    fleets = running_fleets(load_settings().home)
    rows = [(fleet, _open_searches(fleet.folder.settings(load_settings(), None))) for fleet in fleets]
    if as_json:
        show_json([_fleet_as_json(fleet, searches) for fleet, searches in rows])
    elif not rows:
        show("no embedded fleet of this user runs; `gridfleet up` starts one in this folder")
    else:
        _print_fleets(rows)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of its last lines.")] = 100,
) -> None:
    """Print the log of this folder's fleet."""
    from gridfleet.scheduler.fleet.local.folder import Folder

    folder = Folder(embedded_settings("their logs are those of their processes").home)
    running = folder.running()
    if running is not None and running.get("owner", running["pid"]) is None:
        say(
            "the fleet that runs was started by `gridfleet up`, and logs to its terminal; this is the log of one before"
        )
    if not folder.log.exists():
        fail(f"there is no log in {folder.home}: no script started a fleet there yet")
    _print_log(folder.log, n_lines=lines, follow=follow)


def waiting(settings: Settings) -> str:
    """Say which searches of this folder wait for a fleet: ``2 searches wait: a (3/8 scored), b (0/4 scored)``."""
    from gridfleet.scheduler.fleet.local import client

    if not client.has_database(settings):
        return ""
    searches = _open_searches(client.stored(settings))
    if not searches:
        return ""
    verb = "1 search waits" if len(searches) == 1 else f"{len(searches):,} searches wait"
    return f"{verb}: {_named(searches)}"


def _print_fleets(fleets: list[tuple[RunningFleet, list[tuple[str, str, str]]]]) -> None:
    from gridfleet.scheduler.reports.figures import ago
    from gridfleet.scheduler.reports.tables import console, fit, table_of_lines

    header = ["folder", "pid", "since", "workers", "searches"]
    rows = [
        [
            str(fleet.folder.home.parent if fleet.folder.home.name == HOME else fleet.folder.home),
            str(fleet.pid),
            "" if fleet.started_at is None else ago(fleet.started_at),
            str(fleet.n_workers),
            _named(searches) or "none open",
        ]
        for fleet, searches in fleets
    ]
    fit(header, rows, column=0)
    console().print(table_of_lines(header, rows))


def _named(searches: list[tuple[str, str, str]]) -> str:
    """Name searches one by one, as many as a line has room for."""
    shown = [f"{name} ({'paused' if state == 'paused' else counts})" for name, state, counts in searches]
    return ", ".join(shown[:NAMED]) + (f" and {len(shown) - NAMED} more" if len(shown) > NAMED else "")


def _open_searches(settings: Settings) -> list[tuple[str, str, str]]:
    """Return name, state and counts of the searches of a fleet that have not ended; none where it can't be read."""
    from gridfleet.storage.errors import GridfleetError

    try:
        return _unfinished(settings)
    except GridfleetError:
        return []
    except Exception as error:
        if not is_database_error(error):
            raise
        return []  # of another release, or damaged; whoever needs it says so


def _unfinished(settings: Settings) -> list[tuple[str, str, str]]:
    from contextlib import closing

    from gridfleet.scheduler.reports import reader
    from gridfleet.storage import searches
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.errors import SearchNotFoundError

    found: list[tuple[str, str, str]] = []
    with closing(Database(settings)) as database:
        for search_id in searches.unfinished_searches(database):
            try:  # not a refit, which is shown with its search
                search = reader.find_search(database, search_id)
                found.append((search.name, search.shown_state, _scored(database, search)))
            except SearchNotFoundError:
                continue
    return found


def _scored(database: Database, search: SearchSummary) -> str:
    from gridfleet.scheduler.reports import reader

    progress = reader.progress(database, search.id)
    return f"{progress.scored}/{progress.total} scored"


def _fleet_as_json(fleet: RunningFleet, searches: list[tuple[str, str, str]]) -> dict[str, Any]:
    return {
        "folder": str(fleet.folder.home),
        "pid": fleet.pid,
        "started_at": None if fleet.started_at is None else fleet.started_at.isoformat(),
        "n_workers": fleet.n_workers,
        "searches": [{"search": name, "state": state} for name, state, _ in searches],
    }


def _print_log(log: Path, *, n_lines: int, follow: bool) -> None:
    from gridfleet.scheduler.reports.plain import plain_lines

    # a terminal would obey what a model printed
    shown = plain_lines if sys.stdout.isatty() else str
    with log.open(encoding="utf-8", errors="replace") as file:
        content = file.read()
        last = content.splitlines(keepends=True)[-n_lines:] if n_lines else []
        sys.stdout.write(shown("".join(last)))
        sys.stdout.flush()
        while follow:
            if log.stat().st_size < file.tell():  # it was begun anew
                file.seek(0)
            if more := file.read(CHUNK_BYTES):
                sys.stdout.write(shown(more))
                sys.stdout.flush()
            else:
                time.sleep(LOOK_S)
