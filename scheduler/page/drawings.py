"""Figures as JSON, for plotly's script to draw: those of a search, those that compare searches, that of the fleet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
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
from gridfleet.scheduler.figures.rank import rank
from gridfleet.scheduler.figures.slices import slices
from gridfleet.scheduler.figures.style import optuna_module, titled
from gridfleet.scheduler.figures.time_spent import time_spent
from gridfleet.scheduler.figures.timeline import fleet_timeline, timeline
from gridfleet.scheduler.page.addresses import MAX_NUMBER, SearchRoute, asked_search
from gridfleet.scheduler.page.compare import compared_searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, MissingPackageError, NothingToDrawError

#: The figures of a search by the name in their address, and what of the address they take.
OF_SEARCH: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "history": (history, ()),
    "parallel": (parallel, ()),
    "importances": (importances, ()),
    "slices": (slices, ("name",)),
    "heatmap": (heatmap, ("first", "second")),
    "rank": (rank, ("first", "second")),
    "distribution": (lambda database, search_id: distribution(database, [search_id]), ()),
    "curves": (curves, ("number",)),
    "folds": (folds, ("metric", "number")),
    "time": (time_spent, ("number",)),
    "timeline": (timeline, ()),
}


def _of_search(request: Request) -> Response:
    search = asked_search(request)
    return _answer(of_search(request.app.state.database, search.id, request.path_params["kind"], request.query_params))


def of_search(database: Database, search_id: int, kind: str, asked: Mapping[str, str]) -> str:
    """Return a figure of a search as JSON; or why there is none, as ``{"nothing": "…"}``.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    kind : str
        One of `OF_SEARCH`, maybe with ``.json`` behind it.
    asked : mapping of str to str
        The query of its address.

    Raises
    ------
    HTTPException
        404 if there is no such figure.
    """
    kind = kind.removesuffix(".json")
    if kind not in OF_SEARCH:
        raise HTTPException(404, f"there is no figure {kind[:40]!r}; there are {', '.join(OF_SEARCH)}")
    draw, taken = OF_SEARCH[kind]
    given: dict[str, Any] = {name: asked[name] for name in taken if asked.get(name)}
    if "number" in given:
        number = given["number"]
        if not (number.isascii() and number.isdecimal() and len(number) <= len(str(MAX_NUMBER))):
            raise HTTPException(404, "a trial's number is a whole one")
        given["number"] = min(int(number), MAX_NUMBER)
    return _drawn(lambda: draw(database, search_id, **given))


def prepare() -> None:
    """Import what figures are drawn with, which takes a second: not while somebody waits for the first one."""
    from plotly.subplots import make_subplots

    titled(make_subplots().add_scatter(x=[0], y=[0]), "").to_json()
    with contextlib.suppress(MissingPackageError):
        optuna_module().importance.PedAnovaImportanceEvaluator()


def _compared(request: Request) -> Response:
    searches = compared_searches(request)
    ids = [search.id for search in searches]
    database = request.app.state.database
    kind = request.path_params["kind"]
    if not ids or kind not in ("trials", "time", "distribution"):
        raise HTTPException(404, "there are the figures trials, time and distribution, of two to five searches")
    if kind == "distribution":
        return _answer(_drawn(lambda: distribution(database, ids)))
    return _answer(_drawn(lambda: best_so_far(database, ids, over=kind)))


def _fleet(request: Request) -> Response:
    return _answer(_drawn(lambda: fleet_timeline(request.app.state.database)))


def _drawn(draw: Callable[[], Any]) -> str:
    try:
        return str(draw().to_json())
    except (NothingToDrawError, InvalidSearchError) as error:  # a search that has not come so far is no fault
        return json.dumps({"nothing": str(error)})


def _answer(shown: str) -> Response:
    return Response(shown, media_type="application/json")


ROUTES: list[BaseRoute] = [
    SearchRoute("/searches/{search:name}/figures/{kind:name}", _of_search),
    Route("/compare/figures/{kind}.json", _compared),
    Route("/fleet/figures/timeline.json", _fleet),
]
