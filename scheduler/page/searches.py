"""All searches, and each of them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import reader


def _searches(request: Request) -> Response:
    database = request.app.state.database
    found = reader.list_searches(database)
    counts = reader.count_trials(database, [search.id for search in found])
    return render(request, "searches.html", searches=found, counts=counts)


ROUTES: list[BaseRoute] = [Route("/", _searches)]
