"""The page, served on a free port of the loopback, and a small browser for it."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette

from gridfleet.scheduler.page.app import create_app
from gridfleet.scheduler.page.server import Server, listening
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings

TOKEN = "token-of-the-tests"


@dataclass
class Answer:
    """What the page answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


@dataclass
class Page:
    """A page that is served, and requests to it."""

    port: int
    server: Server
    database: Database
    token: str = TOKEN
    given: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> Starlette:
        """The application that answers."""
        return self.server.config.app

    @property
    def address(self) -> str:
        """Its first page."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, *, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
        """Ask once; ``Content_Type="…"`` gives that header. With the token, unless `given` has another."""
        sent = {"Authorization": f"Bearer {self.token}", "Accept": "text/html", **self.given}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str) -> str:
        """Return the text of a page that has to be there."""
        answer = self.ask(path)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text[:2000]}"
        return answer.text


@pytest.fixture
def serve_page() -> Iterator[Callable[..., Page]]:
    """Serve pages, ``serve_page(settings)``; they are stopped at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda settings, **options: stack.enter_context(served_page(settings, **options))


@pytest.fixture
def page(database_settings: Settings, serve_page: Callable[..., Page]) -> Page:
    """Serve the page of `database`."""
    return serve_page(database_settings)


@contextlib.contextmanager
def served_page(settings: Settings, **options: object) -> Iterator[Page]:
    """Serve the page of a database with uvicorn, in a thread."""
    database = Database(settings, read_only=True)
    listener = listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(create_app(database, token=TOKEN, **options))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Page(port, server, database)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        database.close()
