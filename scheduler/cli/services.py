"""The commands that run a part of a fleet until they are stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gridfleet.scheduler.cli.connected import (
    configured_settings,
    embedded_settings,
    exit_at_sigterm,
    is_database_error,
)
from gridfleet.scheduler.cli.fleets import waiting
from gridfleet.scheduler.cli.output import fail, say

if TYPE_CHECKING:
    from gridfleet.storage.settings import Settings


def up(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one per core.", show_default=False)
    ] = None,
) -> None:
    """Run a fleet of this folder in the foreground, until Ctrl-C.

    If one runs already, --workers changes its number of worker processes: those that are there finish
    the trials that they run, and end.
    """
    import joblib

    from gridfleet.scheduler.fleet.local import client, supervisor
    from gridfleet.scheduler.reports.progress import name_the_page
    from gridfleet.storage.errors import LocalFleetError

    settings = embedded_settings(
        "start its parts with `gridfleet worker` and `gridfleet scheduler`, or unset both for a fleet of this folder"
    )
    home = settings.home.resolve()
    taken = LocalFleetError(
        f"a fleet runs in {home} already; searches of this folder use it, and `gridfleet logs` shows its log"
    )
    if client.is_running(settings):
        if workers is None:
            raise taken
        client.change_workers(settings, workers)
        say(f"the fleet in {home} goes on with {_processes(workers)}; what runs is finished by those of before")
        return
    n_workers = workers or joblib.cpu_count()
    say(f"a fleet of {_processes(n_workers)} in {home}; its log follows here, Ctrl-C stops it")
    say(waiting(settings) or "no search waits")
    name_the_page()
    try:
        supervisor.run(settings, n_workers=n_workers, owner=None)
    except SystemExit as exit_:
        if exit_.code == client.ALREADY_RUNNING:
            raise taken from None
        raise
    say(f"the fleet has stopped; {_what_waits(settings)}")


def down() -> None:
    """Stop the fleet of this folder, and say what waits.

    Whoever started it.
    """
    from gridfleet.scheduler.fleet.local import client

    settings = embedded_settings("stop its parts where they run, or unset both for the fleet of this folder")
    home = settings.home.resolve()
    if client.stop(settings):
        say(f"the fleet in {home} has stopped; {_what_waits(settings)}")
    else:
        say(f"no fleet runs in {home}; {_what_waits(settings)}")


def _what_waits(settings: Settings) -> str:
    waits = waiting(settings)
    return f"{waits}; `gridfleet up` goes on with them" if waits else "no search waits"


def _processes(number: int) -> str:
    return f"{number} worker process{'' if number == 1 else 'es'}"


def worker(
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Trials evaluated at once; default: one per core.", show_default=False),
    ] = None,
) -> None:
    """Run a worker of a configured fleet."""
    settings = configured_settings()
    import joblib

    from gridfleet.worker.main_process.environment import private_current_folder, with_cache
    from gridfleet.worker.main_process.self_test import require_folders
    from gridfleet.worker.main_process.service import run_worker

    settings = with_cache(settings)
    require_folders(settings)
    with private_current_folder(settings):
        run_worker(settings, concurrency=concurrency or joblib.cpu_count())


def scheduler() -> None:
    """Run the scheduler of a configured fleet.

    Every configured fleet needs one: without it searches with a time limit do not end, those that learn get no
    trials, what workers lost stays lost, and messages that a broker forgot are not sent again.
    """
    from gridfleet.scheduler.fleet import asker
    from gridfleet.scheduler.fleet.connection import Fleet
    from gridfleet.storage import migrations
    from gridfleet.storage.logs import log_to_stderr
    from gridfleet.worker.guards.health_file import touch_for_ever

    exit_at_sigterm()
    settings = configured_settings()
    log_to_stderr(settings.log_level, settings.log_format, service="scheduler")
    fleet = Fleet(settings, is_embedded=False)
    try:
        fleet.check()
    except Exception as error:
        if is_database_error(error):  # tables that are not there or old, and a role that must not make them
            migrations.require_current(fleet.database)
        raise
    touch_for_ever(settings.health_path)
    say("the scheduler is ready")
    asker.start(settings)
    fleet.reconciler().run_for_ever()


def health() -> None:
    """Exit 0 if the service of this container lives."""
    from gridfleet.worker.guards.health_file import why_not_healthy

    reason = why_not_healthy()
    if reason is not None:
        fail(reason)
