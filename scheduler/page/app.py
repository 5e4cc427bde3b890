"""The page's application: which addresses there are, and what stands around all of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import plotly
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gridfleet.scheduler.page import compare, drawings, events, fleet, metrics, searches, security, sql, trials
from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports.durations import EndedAttempts
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, QueryError, SearchNotFoundError, TrialNotFoundError, first_line

logger = logging.getLogger(__name__)

#: Requests that are worked on at once, each in a thread: as many as a database has connections of one process.
N_THREADS = 4
STATIC = Path(__file__).parent / "static"
#: Plotly's own script, which its package has.
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def create_app(database: Database, *, token: str, names: Collection[str] = ()) -> Starlette:
    """Return the page of a fleet.

    Parameters
    ----------
    database : Database
        The fleet's, read-only.
    token : str
        What who opens the page has to have: a token or a password.
    names : collection of str
        Host names under which the page is reached, beside those of the loopback.
    """
    guard = Middleware(security.Guard, access=security.Access(token), names=frozenset(names))
    routes = [
        *searches.ROUTES,
        *trials.ROUTES,
        *compare.ROUTES,
        *fleet.ROUTES,
        *drawings.ROUTES,
        *sql.ROUTES,
        *metrics.ROUTES,
        *events.ROUTES,
        Route("/healthz", _is_alive),
        Route("/static/plotly.min.js", _plotly),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[guard],
        exception_handlers={HTTPException: _refused, GridfleetError: _failed, SQLAlchemyError: _no_database},
        lifespan=_with_few_threads,
    )
    app.router.redirect_slashes = False
    app.state.database = database
    app.state.changes = events.Changes(database)
    app.state.attempts = EndedAttempts(database)
    return app


@asynccontextmanager
async def _with_few_threads(_app: Starlette) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = N_THREADS
    threading.Thread(target=drawings.prepare, name="prepare", daemon=True).start()
    yield


async def _is_alive(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _plotly(_request: Request) -> Response:
    return FileResponse(PLOTLY, media_type="text/javascript")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette chose this function by it
    shown = render(request, "error.html", status=error.status_code, sentence=error.detail)
    shown.headers.update(error.headers or {})
    return shown


def _failed(request: Request, error: Exception) -> Response:
    kinds = ((SearchNotFoundError, 404), (TrialNotFoundError, 404), (QueryError, 400))
    status = next((status for kind, status in kinds if isinstance(error, kind)), 503)
    return render(request, "error.html", status=status, sentence=str(error))


def _no_database(request: Request, error: Exception) -> Response:
    logger.warning("the database refuses: %s", first_line(error))
    return render(request, "error.html", status=503, sentence=f"The database refuses: {first_line(error)}")
