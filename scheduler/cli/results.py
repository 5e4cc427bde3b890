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
    choose_search,
    exit_at_sigterm,
    note_missing_fleet,
    open_results,
)
from gridfleet.scheduler.cli.output import say, show_json
from gridfleet.scheduler.cli.which_search import ANY, AnySearch, NamedSearch, names

if TYPE_CHECKING:
    from gridfleet.scheduler.cli.sql import Style
    from gridfleet.storage.database.connection import Database


class State(StrEnum):
    """The states that `gridfleet list` shows."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many searches.")] = 20,
    wide: Annotated[
        bool, typer.Option("--wide", help="Also metric, strategy, time, user, id and tags; wider than 80 columns.")
    ] = False,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Only those with this tag: KEY=VALUE, or KEY; may be repeated.", show_default=False),
    ] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    by: Annotated[
        str | None, typer.Option(help="Only those of this user: ada, or ada@host.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, a list of objects.")] = False,
) -> None:
    """List the searches, the newest first."""
    from gridfleet.scheduler.reports import as_json as json_types
    from gridfleet.scheduler.reports import listing

    tags = {}
    for one in tag or ():
        key, has_value, value = one.partition("=")
        tags[key] = value if has_value else None
    # what can't be printed is nowhere in the database, which refuses some of it
    if not all(map(str.isprintable, (*(tag or ()), by or ""))):
        raise typer.BadParameter("--tag and --by take printable characters")
    database = open_results().database
    if as_json:
        show_json(json_types.searches(database, limit=limit, tags=tags, state=state, by=by))
    else:
        listing.print_searches(database, limit=limit, wide=wide, tags=tags, state=state, by=by)


def watch(
    name: Annotated[
        str | None, typer.Argument(help=f"{ANY}; default: all.", show_default=False, autocompletion=names)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one object a line.")] = False,
    progress: ProgressOption = None,
) -> None:
    """Follow one search until it ends, or all searches for ever."""
    from gridfleet.scheduler.reports import followed
    from gridfleet.scheduler.reports import tables as report
    from gridfleet.scheduler.reports import watch as watching

    choose_progress(progress)
    fleet = open_results()
    if name is not None:
        search = choose_search(fleet.database, name)
        note_missing_fleet(fleet)
        if as_json:
            has_score = followed.follow_as_json(fleet.database, search)
        else:
            watching.follow(fleet.database, search.id, how=fleet.settings.progress)
            has_score = report.print_best_line(fleet.database, search.id)
        if not has_score:
            sys.exit(1)
        return
    from gridfleet.storage.logs import log_to_stderr
    from gridfleet.worker.guards.health_file import touch_for_ever

    exit_at_sigterm()
    log_to_stderr(fleet.settings.log_level, fleet.settings.log_format, service="reporter")
    # only where it was given one of its own: the others are those of the workers
    touch_for_ever(None if fleet.is_embedded else fleet.settings.health_file)
    watching.follow_all(fleet.database, followed.JsonWatcher(fleet.database) if as_json else None)


def report(
    name: AnySearch = None,
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
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write its page into one file for a browser.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; attempts as one object a line.")] = False,
    progress: ProgressOption = None,
) -> None:
    """Show what was searched, the best score and the leaderboard."""
    if (trial is not None) + attempts + source + (html is not None) > 1:
        raise typer.BadParameter("choose one of --attempts, --trial, --source and --html")
    if html is not None and as_json:
        raise typer.BadParameter("choose one of --html and --json")
    choose_progress(progress)
    fleet = open_results()
    search = choose_search(fleet.database, name)
    if wait:
        from gridfleet.scheduler.reports import watch as watching

        note_missing_fleet(fleet)
        watching.follow(fleet.database, search.id, how=fleet.settings.progress)
    if html is not None:
        _write_page(fleet.database, search.id, html)
    elif source:
        from gridfleet.scheduler.results.what_ran import what_ran

        found = what_ran(fleet, search.id)
        if as_json:
            show_json(found.as_json())
        else:
            typer.echo("\n".join(found.lines()))
    elif as_json:
        _report_as_json(fleet.database, search.id, attempts=attempts, trial=trial)
    else:
        _report(fleet.database, search.id, attempts=attempts, trial=trial)


def _write_page(database: Database, search_id: int, file: Path) -> None:
    from gridfleet.scheduler.results.exports.new_file import require_new, write_new
    from gridfleet.storage.errors import MissingPackageError

    require_new(file)
    try:
        from gridfleet.scheduler.page.one_file import search_file
    except ImportError as error:
        raise MissingPackageError(f"--html needs the page: pip install 'gridfleet[page]' ({error})") from error
    text = search_file(database, search_id)
    write_new(file, lambda part: part.write_text(text, encoding="utf-8"))
    say(f"{file} has the page of the search; a browser shows it, without a network too")


def _report(database: Database, search_id: int, *, attempts: bool, trial: int | None) -> None:
    from gridfleet.scheduler.reports.attempts import print_attempts
    from gridfleet.scheduler.reports.one_trial import print_trial
    from gridfleet.scheduler.reports.tables import print_report

    if attempts:
        print_attempts(database, search_id)
    elif trial is not None:
        print_trial(database, search_id, trial)
    else:
        print_report(database, search_id)


def _report_as_json(database: Database, search_id: int, *, attempts: bool, trial: int | None) -> None:
    from gridfleet.scheduler.reports import as_json, trial_reader
    from gridfleet.scheduler.reports.one_trial import trial_as_json

    if attempts:
        for one in trial_reader.iterate_attempts(database, search_id):
            show_json(as_json.attempt(one))
    elif trial is not None:
        show_json(trial_as_json(database, search_id, trial))
    else:
        show_json(as_json.report(database, search_id))


def best(
    name: AnySearch = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    as_python: Annotated[
        bool, typer.Option("--python", help="As the line of Python that gives an estimator these params.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the best model into a new folder, too.", show_default=False),
    ] = None,
) -> None:
    """Print the best score and its params; save the best model.

    DIR gets the whole estimator (joblib), its Keras model (.keras), MODEL.md, and a program that loads and uses it. The
    model is loaded for that, which runs what is in it.
    """
    from gridfleet.scheduler.reports import as_json as json_types
    from gridfleet.scheduler.reports import tables as reports

    if as_json and as_python:
        raise typer.BadParameter("choose one of --json and --python")
    fleet = open_results()
    database = fleet.database
    search = choose_search(database, name)
    if save is not None:
        from gridfleet.scheduler.results.save_model import save_best_model

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        files = save_best_model(fleet, search.id, save)
        say(f"{save} has the best model: {', '.join(files)}")
    if as_json:
        show_json(json_types.best(database, search.id))
    elif as_python:
        typer.echo(reports.set_params_line(json_types.best(database, search.id)["best_params"]))
    elif not reports.print_best_line(database, search.id):
        sys.exit(1)


def compare(
    first: NamedSearch,
    second: NamedSearch,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show in what two searches differ.

    State, counts and best score, and all of best params, settings, data and versions that is not the same.
    """
    from gridfleet.scheduler.reports import comparison

    database = open_results().database
    both = choose_search(database, first), choose_search(database, second)
    compared = comparison.compare(database, *both)
    if as_json:
        show_json(comparison.as_json(compared, *both))
    else:
        comparison.print_comparison(compared, *both)


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
