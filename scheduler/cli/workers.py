"""The commands that show the workers of a fleet, and let them drain."""

from __future__ import annotations

from typing import Annotated

import typer

from gridfleet.scheduler.cli.connected import note_missing_fleet, open_results
from gridfleet.scheduler.cli.output import fail, say, show

#: Seconds between looks whether a worker that drains has ended.
LOOK_S = 0.5


def workers(
    as_json: Annotated[bool, typer.Option("--json", help="One list of objects instead.")] = False,
) -> None:
    """Show the workers, and what they run and did lately."""
    from dataclasses import asdict

    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.reports import workers as reports

    fleet = open_results()
    note_missing_fleet(fleet)
    present = reports.present_workers(fleet.database)
    if as_json:
        show(json_line([asdict(worker) for worker in present]))
    elif not present:
        show("no worker was seen in the last hour")
    for line in () if as_json else reports.describe(present):
        show(line)


def drain(
    name: Annotated[
        str | None, typer.Argument(help="The worker's name, as `gridfleet workers` has it.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All workers that are there.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they have ended.")] = False,
) -> None:
    """Let a worker take nothing new, finish what it evaluates, and end.

    It notices within GRIDFLEET_HEARTBEAT_S, and ends with status 0.
    """
    import time

    from gridfleet.storage import workers as stored
    from gridfleet.storage.errors import WorkerNotFoundError

    if (name is None) != all_:
        raise typer.BadParameter("name one worker, or write --all")
    fleet = open_results()
    if fleet.is_embedded:
        fail(
            "the fleet of this folder starts another worker for one that ends: `gridfleet down` stops it, and "
            "`gridfleet up --workers N` lets it finish what it runs and go on with N processes"
        )
    database = fleet.database
    # what can't be printed is in no name, and the databases refuse some of it
    asked = stored.drain(database, name) if all_ or (name or "").isprintable() else []
    if not asked and name is not None:
        there = ", ".join(map(repr, stored.names_there(database))) or "none"
        raise WorkerNotFoundError(f"no worker {name!r} is there; there are {there}, as `gridfleet workers` shows")
    for worker in asked:
        show(f"worker {worker} drains: it takes nothing new, and ends when what it runs has")
    if not asked:
        show("no worker is there that could drain")
    # of one that was killed nobody hears any more: its trials are taken back when its lease is over
    within_s = fleet.settings.lease_s
    silent = set(asked) - set(stored.names_there(database, within_s=within_s)) if wait else set()
    for worker in sorted(silent):
        say(f"nothing was heard of worker {worker} for {within_s:g} s, so nobody waits for it")
    while wait and set(asked) & set(stored.names_there(database, within_s=within_s)):
        time.sleep(LOOK_S)
