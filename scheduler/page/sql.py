"""``/sql``: the documented queries and a box for one's own, as ``gridfleet sql``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.page.documented import queries_about
from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import query as queries
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.cells import cell_text, csv_line
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import QueryError, SearchNotFoundError

#: Queries at once: half of the page's threads, so that the pages are answered meanwhile.
MAX_AT_ONCE = 2
#: What is shown of a result: rows, characters of one value, and characters of all.
MAX_ROWS, MAX_CELL, MAX_SHOWN = 1_000, 2_000, 500_000
#: Characters of a result as CSV, which is made whole before it is sent: who reads it slowly holds no connection.
MAX_CSV = 20_000_000
#: Rows that are fetched at once, and bytes of one value in SQLite: what a query takes of this process' memory.
FETCH_ROWS, MAX_CELL_BYTES = 100, 10_000_000

_free = BoundedSemaphore(MAX_AT_ONCE)


@dataclass(frozen=True)
class Shown:
    """A result as the page shows it: each cell its text, and whether that is a number."""

    columns: Sequence[str]
    rows: Sequence[Sequence[tuple[str, bool]]]
    is_cut: bool
    seconds: float


def _sql(request: Request) -> Response:
    query = request.query_params.get("q", "")
    database = request.app.state.database
    if request.query_params.get("as") == "csv":
        return _csv(database, query)
    result, error = None, None
    if query.strip():
        try:
            result = _run(database, query)
        except QueryError as refused:
            error = str(refused)
    try:
        about = reader.choose_search(database, None).name
    except SearchNotFoundError:
        about = "pima"
    documented = [(title, text, f"/sql?{urlencode({'q': text})}") for title, text in queries_about(about)]
    values = {"text": query, "result": result, "error": error, "documented": documented}
    csv = f"/sql?{urlencode({'q': query, 'as': 'csv'})}"
    return render(request, "sql.html", status=400 if error else 200, csv=csv, about=about, **values)


@contextmanager
def _result(database: Database, query: str) -> Iterator[queries.Result]:
    if not _free.acquire(blocking=False):
        raise HTTPException(
            503, f"{MAX_AT_ONCE} queries run already; try again when one has ended", {"Retry-After": "10"}
        )
    try:
        with queries.run(database, query, fetch_rows=FETCH_ROWS, max_cell_bytes=MAX_CELL_BYTES) as result:
            yield result
    finally:
        _free.release()


def _run(database: Database, query: str) -> Shown:
    began, n_shown = time.monotonic(), 0
    with _result(database, query) as result:
        rows: list[list[tuple[str, bool]]] = []
        is_cut = False
        for row in result.rows:
            if len(rows) == MAX_ROWS or n_shown > MAX_SHOWN:
                is_cut = True
                break
            cells = [_cell(value) for value in row]
            n_shown += sum(len(text) + 10 for text, _ in cells)
            rows.append(cells)
        return Shown(result.columns, rows, is_cut, time.monotonic() - began)


def _cell(value: Any) -> tuple[str, bool]:
    if isinstance(value, float):  # the CSV has all digits
        return f"{value:.6g}", True
    text = cell_text(value)
    return (text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}…"), isinstance(value, int)


def _csv(database: Database, query: str) -> Response:
    try:
        with _result(database, query) as result:
            lines = [csv_line(result.columns)]
            size = len(lines[0])
            for row in result.rows:
                lines.append(csv_line(row))
                size += len(lines[-1])
                if size > MAX_CSV:
                    raise HTTPException(
                        413, f"this is more than {MAX_CSV:,} characters of CSV; `gridfleet sql --csv` gives all"
                    )
    except QueryError as error:
        raise HTTPException(400, str(error)) from error
    headers = {"Content-Disposition": 'attachment; filename="gridfleet.csv"'}
    return Response("".join(lines), media_type="text/csv; charset=utf-8", headers=headers)


ROUTES: list[BaseRoute] = [Route("/sql", _sql)]
