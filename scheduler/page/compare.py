"""Searches side by side."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.page.addresses import find
from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import reader, tables, trial_reader
from gridfleet.scheduler.reports.comparison import compare

#: Searches that are compared at most.
MAX_SEARCHES = 5
#: Searches among which is chosen: the newest.
OFFERED = 50


def compared_searches(request: Request) -> list[reader.SearchSummary]:
    """Return the searches that an address names with ``s``, each once, the first five.

    Raises
    ------
    SearchNotFoundError
        If one of them is not there.
    """
    names = [name for name in request.query_params.getlist("s") if name]
    found = {search.id: search for search in (find(request, name) for name in names[: 2 * MAX_SEARCHES])}
    return list(found.values())[:MAX_SEARCHES]


def _compare(request: Request) -> Response:
    database = request.app.state.database
    searches = compared_searches(request)
    is_comparison = len(searches) > 1
    chosen = {search.id for search in searches}
    newest = reader.list_searches(database, limit=OFFERED)
    return render(
        request,
        "compare.html",
        searches=searches,
        chosen=chosen,
        offered=[*searches, *(search for search in newest if search.id not in chosen)],
        is_comparison=is_comparison,
        live=" ".join(str(search.id) for search in searches if not search.is_finished),
        lines=lambda: compare(database, *searches),
        best=lambda: [trial_reader.best_trial(database, search.id) for search in searches],
        metrics={search.id: tables.metric_of(search) for search in searches},
        max_searches=MAX_SEARCHES,
        names=urlencode([("s", search.id) for search in searches]),
    )


ROUTES: list[BaseRoute] = [Route("/compare", _compare)]
