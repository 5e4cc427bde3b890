"""The command ``gridfleet``. Thin: each command imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from gridfleet.scheduler.cli.sql import Style
    from gridfleet.scheduler.fleet.connection import Fleet
    from gridfleet.scheduler.reports.reader import SearchSummary
    from gridfleet.scheduler.submission.store import SearchHandle
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.settings import Settings

#: Seconds for which a health file counts: several of the touches that a living service makes every 10 s.
HEALTHY_S = 60
#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130

app = typer.Typer(
    name="gridfleet",
    help="Hyperparameter search on a fleet: one task per combination, every score in SQL.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    # plain help: the same on every terminal, and five times as fast
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db, name="db")

Name = Annotated[str, typer.Argument(help="The search's name.", show_default=False)]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit: 0, 1 for an error that is told in one sentence, 2 for wrong usage.

    Parameters
    ----------
    arguments : list of str, default=None
        Instead of those of the command line.
    """
    from gridfleet.storage.errors import GridfleetError

    try:
        app(args=arguments, prog_name="gridfleet")
    except GridfleetError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not _is_database_error(error):
            raise
        _fail(f"the database refuses: {_first_line(getattr(error, 'orig', None) or error)}")
    sys.exit(0)


@app.command()
def up(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one per core.", show_default=False)
    ] = None,
) -> None:
    """Run a fleet of this folder in the foreground, until Ctrl-C."""
    from gridfleet.scheduler.fleet import local_fleet
    from gridfleet.storage.errors import LocalFleetError, SettingsError
    from gridfleet.worker.guards.cores import usable_cores

    settings = _settings()
    if not settings.is_embedded:
        raise SettingsError(
            "a fleet is configured by GRIDFLEET_DATABASE_URL and GRIDFLEET_BROKER_URL; start its parts with "
            "`gridfleet worker` and `gridfleet scheduler`, or unset both for a fleet of this folder"
        )
    home = settings.home.resolve()
    taken = LocalFleetError(f"a fleet runs in {home} already; searches of this folder use it")
    if local_fleet.is_running(settings):
        raise taken
    n_workers = workers or usable_cores()
    _say(f"a fleet of {n_workers} worker processes in {home}; Ctrl-C stops it")
    try:
        local_fleet.run(settings, n_workers=n_workers, owner=None)
    except SystemExit as exit_:
        if exit_.code == local_fleet.ALREADY_RUNNING:
            raise taken from None
        raise
    _say("the fleet has stopped; its searches go on with the next one")


@app.command()
def worker(
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Trials evaluated at once; default: one per core.", show_default=False),
    ] = None,
) -> None:
    """Run a worker of a configured fleet."""
    settings = _configured_settings()
    from gridfleet.worker.guards.cores import usable_cores
    from gridfleet.worker.main_process.service import run_worker

    run_worker(settings, concurrency=concurrency or usable_cores())


@app.command()
def scheduler() -> None:
    """Run the scheduler of a configured fleet, which puts right what was lost."""
    import logging

    from gridfleet.scheduler.fleet.connection import Fleet
    from gridfleet.scheduler.fleet.reconciler import Reconciler
    from gridfleet.storage import migrations
    from gridfleet.worker.main_process.service import touch_for_ever

    _exit_at_sigterm()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = _configured_settings()
    fleet = Fleet(settings, is_embedded=False)
    try:
        fleet.check()
    except Exception as error:
        if _is_database_error(error):  # tables that are not there or old, and a role that must not make them
            migrations.require_current(fleet.database)
        raise
    touch_for_ever(settings.health_path)
    _say("the scheduler is ready")
    Reconciler(fleet).run_for_ever()


@app.command()
def health() -> None:
    """Exit 0 if the service of this container lives."""
    path = os.environ.get("GRIDFLEET_HEALTH_FILE")  # first, because reading all settings takes half a second
    file = Path(path) if path else Path(tempfile.gettempdir()) / "gridfleet-health"
    try:
        age_s = time.time() - file.stat().st_mtime
    except OSError:
        _fail(f"the health file {file} is not there: the service has not started, or GRIDFLEET_HEALTH_FILE differs")
    if age_s > HEALTHY_S:
        _fail(f"the health file {file} was last touched {age_s:.0f} s ago: the service does not live")


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="The search file (YAML).", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and the best score.")] = False,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Do nothing if the name is taken already.")] = False,
    name: Annotated[
        str | None, typer.Option(help="The search's name instead of the file's.", show_default=False)
    ] = None,
) -> None:
    """Queue the search that a YAML file describes."""
    from gridfleet.scheduler.search_file import submit as file_submission

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    submitted = file_submission.submit_file(file, name=name, exist_ok=exist_ok)
    handle = submitted.handle
    if submitted.is_new:
        progress = handle.progress()
        typer.echo(f"search {handle.name} is queued: {progress.total} trials")
    else:
        typer.echo(f"search {handle.name} is there already: {handle.state}")
    if wait:
        _wait(handle, is_embedded=submitted.is_embedded)
    elif submitted.stops_with_us:
        _say("no fleet runs in this folder; `gridfleet up` starts one and the search with it, --wait runs it here")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many searches.")] = 20,
) -> None:
    """List the searches, the newest first."""
    from gridfleet.scheduler.reports import tables as report

    report.print_searches(_results().database, limit=limit)


@app.command()
def watch(
    name: Annotated[str | None, typer.Argument(help="One search; default: all.", show_default=False)] = None,
) -> None:
    """Follow one search until it ends, or all searches for ever."""
    from gridfleet.scheduler.reports import tables as report
    from gridfleet.scheduler.reports import watch as watching

    fleet = _results()
    if name is not None:
        _note_missing_fleet(fleet)
        watching.follow(fleet.database, name)
        if not report.print_best_line(fleet.database, name):
            sys.exit(1)
        return
    from gridfleet.worker.main_process.service import touch_for_ever

    _exit_at_sigterm()
    touch_for_ever(fleet.settings.health_path)
    watching.follow_all(fleet.database)


@app.command()
def report(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the search ends.")] = False,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="Show every try at every trial instead: who, when, how it ended.")
    ] = False,
) -> None:
    """Show what was searched, the best score and the leaderboard."""
    from gridfleet.scheduler.reports import tables as reports
    from gridfleet.scheduler.reports import watch as watching

    fleet = _results()
    if wait:
        _note_missing_fleet(fleet)
        watching.follow(fleet.database, name)
    if attempts:
        reports.print_attempts(fleet.database, name)
    else:
        reports.print_report(fleet.database, name)


@app.command()
def best(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print the best score and its hyperparameters."""
    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.reports import tables as reports

    database = _results().database
    if as_json:
        typer.echo(json_line(reports.best_as_json(database, name)))
    elif not reports.print_best_line(database, name):
        sys.exit(1)


@app.command()
def cancel(name: Name) -> None:
    """Cancel a search.

    Queued trials end at once, running ones as soon as their workers see it.
    """
    from gridfleet.storage import searches

    search, database = _search(name)
    if searches.cancel_search(database, search.id):
        typer.echo(f"search {search.name} is cancelled")
    else:
        typer.echo(f"search {search.name} has ended already ({search.state}); nothing to cancel")


@app.command()
def pause(name: Name) -> None:
    """Pause a search.

    None of its trials starts any more; those that run go on to their end.
    """
    from gridfleet.storage import searches

    search, database = _search(name)
    if searches.pause_search(database, search.id):
        typer.echo(f"search {search.name} is paused; `gridfleet resume {search.name}` goes on with it")
    else:
        typer.echo(f"search {search.name} is {search.state} already; nothing to pause")


@app.command()
def resume(name: Name) -> None:
    """Go on with a paused search."""
    from gridfleet.storage import searches

    search, database = _search(name)
    if searches.resume_search(database, search.id):
        typer.echo(f"search {search.name} goes on")
    else:
        typer.echo(f"search {search.name} is {search.state}, not paused; nothing to resume")


@app.command()
def retry_failed(name: Name) -> None:
    """Queue the failed trials of a search once more.

    They begin anew, with their whole budget of failures; the story of their attempts stays.
    """
    from gridfleet.storage import searches

    search, database = _search(name)
    n_trials = searches.retry_failed(database, search.id)
    if n_trials:
        queued = "1 failed trial is" if n_trials == 1 else f"{n_trials} failed trials are"
        typer.echo(f"search {search.name}: {queued} queued again")
    else:
        typer.echo(f"search {search.name} is {search.state} and has no failed trial to try again")


@app.command()
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
    with read_only_sql.run(_results().database, query) as result:
        read_only_sql.write(result, sys.stdout, style=style)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the tables to this release's schema."""
    from gridfleet.storage import migrations
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.schema import SCHEMA_REVISION

    database = Database(_stored_settings())
    database.check()
    changed = migrations.upgrade(database)
    typer.echo(f"the schema is {SCHEMA_REVISION}" + ("" if changed else " already"))


@db.command("current")
def db_current() -> None:
    """Print the schema that the tables have, and the one of this release."""
    from gridfleet.storage import migrations
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.schema import SCHEMA_REVISION

    database = Database(_stored_settings())
    database.check()
    revision = migrations.current_revision(database)
    typer.echo(f"the schema is {revision or 'empty'}; this release needs {SCHEMA_REVISION}")


@app.command()
def doctor() -> None:
    """Check everything that a fleet needs, and say what to do.

    Settings, broker, database, schema, secret key, workers, their versions, and Python packages.
    """
    from gridfleet.scheduler.cli import doctor as checks

    findings = checks.examine()
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.is_wrong for finding in findings):
        sys.exit(1)


def _wait(handle: SearchHandle, *, is_embedded: bool) -> None:
    from gridfleet.scheduler.reports import tables as reports

    try:
        handle.wait(verbose=1)
    except KeyboardInterrupt:
        if is_embedded:
            _say(f"search {handle.name} stops with this process; `gridfleet up` goes on with it")
        else:
            _say(f"search {handle.name} goes on on the fleet; `gridfleet watch {handle.name}` shows it")
        sys.exit(INTERRUPTED)
    if not reports.print_best_line(_results().database, handle.name):
        sys.exit(1)


def _settings() -> Settings:
    from gridfleet.storage.settings import load_settings

    return load_settings()


def _configured_settings() -> Settings:
    from gridfleet.storage.errors import SettingsError

    settings = _settings()
    if settings.is_embedded:
        raise SettingsError(
            "no fleet is configured: set GRIDFLEET_DATABASE_URL, GRIDFLEET_BROKER_URL and GRIDFLEET_SECRET_KEY; "
            "`gridfleet up` starts an embedded fleet of this folder, which needs none"
        )
    return settings


def _stored_settings() -> Settings:
    settings = _settings()
    if not settings.is_embedded:
        return settings
    from gridfleet.scheduler.fleet import local_fleet

    return local_fleet.stored(settings)


def _results() -> Fleet:
    from gridfleet.scheduler.fleet.connection import read_only

    return read_only()


def _search(name: str) -> tuple[SearchSummary, Database]:
    from gridfleet.scheduler.reports import reader

    database = _results().database
    return reader.find_search(database, name), database


def _note_missing_fleet(fleet: Fleet) -> None:
    from gridfleet.scheduler.fleet import local_fleet

    if fleet.is_embedded and not local_fleet.is_running(_settings()):
        _say("no fleet runs in this folder; searches go on when `gridfleet up` starts one")


def _exit_at_sigterm() -> None:
    def leave(*_: Any) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


def _is_database_error(error: Exception) -> bool:
    if "sqlalchemy" not in sys.modules:
        return False
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _say(sentence: str) -> None:
    typer.echo(f"gridfleet: {sentence}", err=True)


def _fail(sentence: str) -> NoReturn:
    _say(sentence)
    sys.exit(1)
