"""The commands that show what searches came to."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridfleet.scheduler.cli.connected import (
    ProgressOption,
    choose_progress,
    exit_at_sigterm,
    note_missing_fleet,
    open_results,
)
from gridfleet.scheduler.cli.output import say
from gridfleet.scheduler.cli.searches import Name

if TYPE_CHECKING:
    from gridfleet.scheduler.cli.sql import Style


class State(StrEnum):
    """The states that `gridfleet list` shows."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many searches.")] = 20,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Only those with this tag: KEY=VALUE, or KEY; may be repeated.", show_default=False),
    ] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    by: Annotated[
        str | None, typer.Option(help="Only those of this user: ada, or ada@host.", show_default=False)
    ] = None,
) -> None:
    """List the searches, the newest first."""
    from gridfleet.scheduler.reports import tables as report

    tags = {}
    for one in tag or ():
        key, has_value, value = one.partition("=")
        tags[key] = value if has_value else None
    # what can't be printed is nowhere in the database, which refuses some of it
    if not all(map(str.isprintable, (*(tag or ()), by or ""))):
        raise typer.BadParameter("--tag and --by take printable characters")
    report.print_searches(open_results().database, limit=limit, tags=tags, state=state, by=by)


def watch(
    name: Annotated[str | None, typer.Argument(help="One search; default: all.", show_default=False)] = None,
    progress: ProgressOption = None,
) -> None:
    """Follow one search until it ends, or all searches for ever."""
    from gridfleet.scheduler.reports import tables as report
    from gridfleet.scheduler.reports import watch as watching

    choose_progress(progress)
    fleet = open_results()
    if name is not None:
        note_missing_fleet(fleet)
        watching.follow(fleet.database, name, how=fleet.settings.progress)
        if not report.print_best_line(fleet.database, name):
            sys.exit(1)
        return
    from gridfleet.storage.logs import log_to_stderr
    from gridfleet.worker.guards.health_file import touch_for_ever

    exit_at_sigterm()
    log_to_stderr(fleet.settings.log_level, fleet.settings.log_format, service="reporter")
    # only where it was given one of its own: the others are those of the workers
    touch_for_ever(None if fleet.is_embedded else fleet.settings.health_file)
    watching.follow_all(fleet.database)


def report(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the search ends.")] = False,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="Show every attempt at every trial instead: who, when, how it ended.")
    ] = False,
    source: Annotated[
        bool, typer.Option("--source", help="Show what ran instead: commit, machines, packages, source text.")
    ] = False,
    trial: Annotated[
        int | None, typer.Option(min=0, help="Show one trial instead: its scores by split, its whole traceback.")
    ] = None,
    progress: ProgressOption = None,
) -> None:
    """Show what was searched, the best score and the leaderboard."""
    from gridfleet.scheduler.reports import tables as reports
    from gridfleet.scheduler.reports import watch as watching
    from gridfleet.scheduler.reports.one_trial import print_trial
    from gridfleet.scheduler.results.what_ran import print_what_ran

    if (trial is not None) + attempts + source > 1:
        raise typer.BadParameter("choose one of --attempts, --trial and --source")
    choose_progress(progress)
    fleet = open_results()
    if wait:
        note_missing_fleet(fleet)
        watching.follow(fleet.database, name, how=fleet.settings.progress)
    if source:
        print_what_ran(fleet, name)
    elif attempts:
        reports.print_attempts(fleet.database, name)
    elif trial is not None:
        print_trial(fleet.database, name, trial)
    else:
        reports.print_report(fleet.database, name)


def best(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the best model into a new folder, too.", show_default=False),
    ] = None,
) -> None:
    """Print the best score and its params; save the best model.

    DIR gets the whole estimator (joblib), its Keras model (.keras), MODEL.md, and a program that loads and uses it. The
    model is loaded for that, which runs what is in it.
    """
    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.reports import tables as reports

    fleet = open_results()
    database = fleet.database
    if save is not None:
        from gridfleet.scheduler.results.save_model import save_best_model

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        files = save_best_model(fleet, name, save)
        say(f"{save} has the best model: {', '.join(files)}")
    if as_json:
        typer.echo(json_line(reports.best_as_json(database, name)))
    elif not reports.print_best_line(database, name):
        sys.exit(1)


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT.", show_default=False)],
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV, safe to open in a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, a list of objects.")] = False,
) -> None:
    """Run a query; nothing can be changed."""
    from gridfleet.scheduler.cli import sql as read_only_sql

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    style: Style = "csv" if as_csv else "json" if as_json else "table"
    with read_only_sql.run(open_results().database, query) as result:
        read_only_sql.write(result, sys.stdout, style=style)
