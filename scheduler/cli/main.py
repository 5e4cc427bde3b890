"""The command ``gridfleet``: its groups of commands, and what it does at an error."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from gridfleet.scheduler.cli import (
    completion,
    database,
    export,
    fleets,
    housekeeping,
    keys,
    page,
    reproduction,
    results,
    searches,
    services,
    workers,
)
from gridfleet.scheduler.cli import settings as settings_command
from gridfleet.scheduler.cli.connected import is_database_error
from gridfleet.scheduler.cli.output import INTERRUPTED, fail, flush_what_is_read, print_anywhere, say, show, show_json

app = typer.Typer(
    name="gridfleet",
    help="Hyperparameter search on a fleet: one task per combination, every score in SQL.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    # plain help: the same on every terminal, and five times as fast
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
db = typer.Typer(
    help="The database: its schema, its room, and backups of it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit: 0, 1 for an error, with one sentence, 2 for wrong usage; a worker has more.

    Parameters
    ----------
    arguments : list of str, default=None
        Instead of those of the command line.
    """
    import warnings

    from gridfleet.storage.errors import GridfleetError

    print_anywhere()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [completion.COMPLETE]:
        for one in completion.candidates(app, arguments[1:]):
            typer.echo(one)
        sys.exit(0)
    if "--version" in arguments:  # behind a command as well
        _print_version(is_wanted=True)
    # a sentence as any other, without the line of our code that it comes from
    warnings.showwarning = lambda message, *_, **__: say(str(message))
    try:
        app(args=arguments, prog_name="gridfleet")
    except SystemExit:
        flush_what_is_read()
        raise
    except GridfleetError as error:
        fail(str(error), status=error.exit_status)
    except KeyboardInterrupt as left:
        if str(left):
            say(str(left))
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not is_database_error(error):
            raise
        from gridfleet.storage.errors import first_line

        fail(f"the database refuses: {first_line(error)}")
    sys.exit(0)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from gridfleet.storage.versions import installed_versions

        typer.echo(f"gridfleet {installed_versions()['gridfleet_version']}")
        sys.exit(0)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the release and exit.")
    ] = False,
) -> None:
    pass


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, a list of objects.")] = False,
) -> None:
    """Check everything that a fleet needs, and say what to do.

    Settings, broker, database, schema, keys, scheduler, workers, their versions, and Python packages.
    """
    from gridfleet.scheduler.cli import doctor as checks

    findings = checks.examine()
    if as_json:
        show_json([finding.as_json() for finding in findings])
    for finding in () if as_json else findings:
        show(str(finding))
    if any(finding.is_wrong for finding in findings):
        sys.exit(1)


for _command in (
    services.up,
    services.down,
    services.worker,
    services.scheduler,
    services.health,
    fleets.ps,
    fleets.logs,
    workers.workers,
    workers.drain,
    searches.submit,
    results.list_,
    results.watch,
    page.page,
    results.report,
    results.best,
    results.compare,
    export.export,
    reproduction.reproduce,
    reproduction.verify,
    searches.cancel,
    searches.pause,
    searches.resume,
    searches.priority,
    searches.retry_failed,
    housekeeping.tag,
    housekeeping.rename,
    housekeeping.delete,
    results.sql,
    settings_command.settings,
    keys.public_key,
    keys.worker_key,
    housekeeping.rekey,
    doctor,
    completion.completion,
):
    # a negative priority looks as an option does
    _settings = {"ignore_unknown_options": _command is searches.priority}
    app.command(_command.__name__.strip("_").replace("_", "-"), context_settings=_settings)(_command)
db.command("upgrade")(database.upgrade)
db.command("current")(database.current)
db.command("size")(database.size)
db.command("backup")(database.backup)
db.command("restore")(database.restore)
app.add_typer(db, name="db")
