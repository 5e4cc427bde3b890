"""Figures as JSON, for plotly's script to draw: those of a search, those that compare searches, that of the fleet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.figures.best_so_far import best_so_far
from gridfleet.scheduler.figures.curves import curves
from gridfleet.scheduler.figures.distribution import distribution
from gridfleet.scheduler.figures.folds import folds
from gridfleet.scheduler.figures.heatmap import heatmap
from gridfleet.scheduler.figures.history import history
from gridfleet.scheduler.figures.importances import importances
from gridfleet.scheduler.figures.parallel import parallel
from gridfleet.scheduler.figures.slices import slices
from gridfleet.scheduler.figures.time_spent import time_spent
from gridfleet.scheduler.figures.timeline import fleet_timeline, timeline
from gridfleet.scheduler.page.addresses import MAX_NUMBER, SearchRoute, asked_search
from gridfleet.scheduler.page.compare import compared_searches
from gridfleet.storage.errors import InvalidSearchError, NothingToDrawError

#: The figures of a search by the name in their address, and what of the address they take.
OF_SEARCH: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "history": (history, ()),
    "parallel": (parallel, ()),
    "importances": (importances, ()),
    "slices": (slices, ("name",)),
    "heatmap": (heatmap, ("first", "second")),
    "curves": (curves, ("number",)),
    "folds": (folds, ("metric", "number")),
    "time": (time_spent, ("number",)),
    "timeline": (timeline, ()),
}


def _of_search(request: Request) -> Response:
    search = asked_search(request)
    kind = request.path_params["kind"].removesuffix(".json")
    if kind not in OF_SEARCH:
        raise HTTPException(404, f"there is no figure {kind[:40]!r}; there are {', '.join(OF_SEARCH)}")
    draw, taken = OF_SEARCH[kind]
    given: dict[str, Any] = {name: request.query_params[name] for name in taken if request.query_params.get(name)}
    if "number" in given:
        asked = given["number"]
        if not (asked.isascii() and asked.isdecimal() and len(asked) <= len(str(MAX_NUMBER))):
            raise HTTPException(404, "a trial's number is a whole one")
        given["number"] = min(int(asked), MAX_NUMBER)
    return _drawn(lambda: draw(request.app.state.database, search.id, **given))


def _compared(request: Request) -> Response:
    searches = compared_searches(request)
    ids = [search.id for search in searches]
    database = request.app.state.database
    kind = request.path_params["kind"]
    if not ids or kind not in ("trials", "time", "distribution"):
        raise HTTPException(404, "there are the figures trials, time and distribution, of two to five searches")
    if kind == "distribution":
        return _drawn(lambda: distribution(database, ids))
    return _drawn(lambda: best_so_far(database, ids, over=kind))


def _fleet(request: Request) -> Response:
    return _drawn(lambda: fleet_timeline(request.app.state.database))


def _drawn(draw: Callable[[], Any]) -> Response:
    try:
        shown = draw().to_json()
    except (NothingToDrawError, InvalidSearchError) as error:  # a search that has not come so far is no fault
        shown = json.dumps({"nothing": str(error)})
    return Response(shown, media_type="application/json")


ROUTES: list[BaseRoute] = [
    SearchRoute("/searches/{search:name}/figures/{kind:name}", _of_search),
    Route("/compare/figures/{kind}.json", _compared),
    Route("/fleet/figures/timeline.json", _fleet),
]
