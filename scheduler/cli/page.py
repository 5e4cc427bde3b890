"""The command that serves the page in the browser."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gridfleet.scheduler.cli.connected import exit_at_sigterm, open_results
from gridfleet.scheduler.cli.output import fail, say

if TYPE_CHECKING:
    import socket
    from threading import Event

    from gridfleet.scheduler.page.server import Server
    from gridfleet.storage.settings import Settings

#: Where the page is without --port, if that port is free.
PORT = 8080


def page(
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, help=f"Where it listens; default: {PORT}, or one that is free.", show_default=False
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print what `gridfleet watch` prints, too.")] = False,
) -> None:
    """Serve the page that shows all searches in the browser, until Ctrl-C.

    On 127.0.0.1, unless GRIDFLEET_PAGE_ADDRESS says otherwise; with a token in its address, or with the
    password GRIDFLEET_PAGE_PASSWORD. It only reads, whatever the database's role may do.
    """
    import secrets
    from contextlib import closing, suppress

    fleet = open_results()
    settings, database = fleet.settings, fleet.database
    password = settings.password_of_page()
    database.close()
    try:
        from gridfleet.scheduler.page.app import create_app
        from gridfleet.scheduler.page.server import Server
    except ModuleNotFoundError as error:
        _without_packages(error)
    from gridfleet.storage.database.connection import Database

    token = password or secrets.token_urlsafe(24)
    with closing(Database(settings, read_only=True)) as reading, _listening(settings.page_address, port) as listener:
        server = Server(create_app(reading, token=token, names=settings.names_of_page()))
        address = _address(listener, settings.page_address)
        typer.echo(address if password else f"{address}?token={token}")
        sys.stdout.flush()
        say(f"the page is there; {'log in with GRIDFLEET_PAGE_PASSWORD, ' if password else ''}Ctrl-C stops it")
        exit_at_sigterm()
        if open_browser:
            _open(address if password else f"{address}?token={token}")
        has_ended = _watch(settings, server) if watch else None
        # a script's background process ignores Ctrl-C: uvicorn ends by it, and raises nothing then
        with suppress(KeyboardInterrupt):
            server.run([listener])
        if has_ended is not None and has_ended.is_set():
            fail("the watcher has stopped, and the page with it")
        say("the page has stopped")


def _without_packages(error: ModuleNotFoundError) -> NoReturn:
    from gridfleet.storage.errors import MissingPackageError

    package = str(error.name).partition(".")[0]
    raise MissingPackageError(
        f"the page needs {package}, which is not installed; run `pip install 'gridfleet[page]'`"
    ) from error


def _listening(address: str, port: int | None) -> socket.socket:
    from gridfleet.scheduler.page.server import listening
    from gridfleet.storage.errors import SettingsError

    if port is not None:
        return listening(address, port)
    try:
        return listening(address, PORT)
    except SettingsError:  # another page, or a program of its own
        return listening(address, 0)


def _address(listener: socket.socket, address: str) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)  # noqa: S104 - compared
    return f"http://{shown}:{listener.getsockname()[1]}/"


def _open(address: str) -> None:
    """Let the browser go to an address, which others would read in its command line."""
    import atexit
    import shutil
    import tempfile
    import webbrowser
    from html import escape
    from pathlib import Path
    from threading import Thread

    from gridfleet.storage.private_folder import make_runtime_folder

    folder = Path(tempfile.mkdtemp(prefix="page-", dir=make_runtime_folder()))  # this user's alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "page.html"
    file.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">gridfleet')

    def show() -> None:
        if not webbrowser.open(file.as_uri()):
            say("no browser could be opened; open the address yourself")

    # some browsers are waited for, and theirs is the first question that the page answers
    Thread(target=show, name="browser", daemon=True).start()


def _watch(settings: Settings, server: Server) -> Event:
    """Print lines as searches go on, beside the page, and be a service: with a log, and a sign of life.

    Returns what is set once the lines have ended.
    """
    from threading import Event, Thread

    from gridfleet.scheduler.reports import watch
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.logs import log_to_stderr
    from gridfleet.worker.guards.health_file import touch_for_ever

    has_ended = Event()

    def follow() -> None:
        try:
            watch.follow_all(Database(settings, read_only=True))
        finally:  # an error of it is printed, and what is left is no service
            has_ended.set()
            server.should_exit = True

    log_to_stderr(settings.log_level, settings.log_format, service="reporter")
    touch_for_ever(None if settings.is_embedded else settings.health_file)
    Thread(target=follow, name="watch", daemon=True).start()
    return has_ended
