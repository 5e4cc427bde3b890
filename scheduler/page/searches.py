"""All searches, and each of them."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.page import sparkline
from gridfleet.scheduler.page.addresses import SearchRoute, asked_search
from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import reader, tables, trial_reader, trial_table
from gridfleet.scheduler.reports.best_so_far import best_so_far
from gridfleet.scheduler.reports.causes import by_cause
from gridfleet.scheduler.reports.fair_sample import sampled
from gridfleet.scheduler.reports.fold_scores import fold_scores, lead
from gridfleet.scheduler.reports.param_values import hyperparameters
from gridfleet.scheduler.reports.pruning import pruned_facts
from gridfleet.scheduler.reports.trial_table import Condition, Order, TrialChoice, trial_page
from gridfleet.scheduler.reports.where_time_went import where_time_went
from gridfleet.storage.database.connection import Database
from gridfleet.storage.refits import find_refit
from gridfleet.storage.search_states import ShownState
from gridfleet.storage.tags import tags_of

#: Searches of a page.
PAGE_SIZE = 25
#: More hyperparameters than this share one column of the table of trials.
MAX_PARAM_COLUMNS = 8
#: Trials whose scores by fold are shown.
SHOWN_FOLDS = 10
#: Splits up to which each has a column.
MAX_SPLITS = 20
#: Pages that can be asked for: no index answers what comes after so many rows quickly.
MAX_PAGE = 100_000


def _overview(request: Request) -> Response:
    database, asked = request.app.state.database, request.query_params
    state = asked.get("state") if asked.get("state") in list(ShownState) else None
    sort = asked.get("sort", reader.NEWEST)
    page = _page(asked)
    by, name = _printable(asked.get("by")), _printable(asked.get("name"))
    tag = _printable(asked.get("tag"))
    key, has_value, value = (tag or "").partition("=")
    found = reader.list_searches(
        database,
        limit=PAGE_SIZE + 1,
        offset=(page - 1) * PAGE_SIZE,
        tags={key: value if has_value else None} if tag else {},
        sort=sort if sort in reader.SORTS else reader.NEWEST,
        state=state,
        by=by,
        name_has=name,
    )
    shown = found[:PAGE_SIZE]
    ids = [search.id for search in shown]
    lines = best_so_far(database, {search.id: search.n_trials for search in shown})
    return render(
        request,
        "searches.html",
        searches=shown,
        counts=reader.count_trials(database, ids),
        progress={search.id: reader.progress(database, search.id) for search in shown if not search.is_finished},
        deviations=_deviations(request, shown),
        tags=tags_of(database, ids),
        metric_of=tables.metric_of,
        lines={search_id: (values, sparkline.points(values)) for search_id, values in lines.items()},
        states=list(ShownState),
        sorts=reader.SORTS,
        sort=sort,
        page=page,
        has_more=len(found) > PAGE_SIZE,
        is_filtered=any([state, by, name, tag]),
        address=lambda **changes: _address(asked, **changes),
    )


def _deviations(request: Request, searches: list[reader.SearchSummary]) -> dict[int, float | None]:
    best = {search.id: trial_reader.best_trial(request.app.state.database, search.id) for search in searches}
    return {search_id: None if trial is None else trial.std_test_score for search_id, trial in best.items()}


def _search(request: Request) -> Response:
    search = asked_search(request)
    return render(request, "search.html", **values_of(request.app.state.database, search, request.query_params))


def values_of(database: Database, search: reader.SearchSummary, asked: QueryParams) -> dict[str, Any]:
    """Return what the page of a search shows, by the query of its address."""
    choice = _choice(asked)
    sample = sampled(search.id, search.n_trials)

    ranked = cache(lambda: trial_reader.leaderboard(database, search.id, limit=SHOWN_FOLDS))
    progress = cache(lambda: reader.progress(database, search.id))
    names = cache(lambda: hyperparameters(database, search.id, search.n_trials))

    def failures() -> Any:
        failed = trial_reader.failures(database, search.id, limit=tables.EXAMINED_FAILURES)
        return by_cause(failed)[: tables.SHOWN], len(failed)

    def columns() -> list[str]:
        """Which hyperparameters have a column: those that vary, where they are few."""
        varied = [name for name, varies in names().items() if varies] or list(names())
        return varied if len(varied) <= MAX_PARAM_COLUMNS else []

    return {
        "search": search,
        "live": "" if search.is_finished else str(search.id),
        "metric": tables.metric_of(search),
        "progress": progress,
        "ranked": ranked,
        "lead": cache(lambda: lead(database, search.id, search.refit_metric)),
        "folds": lambda: fold_scores(database, search.id, [trial.number for trial in ranked()]),
        "max_splits": MAX_SPLITS,
        "names": names,
        "columns": columns,
        "failures": failures,
        "spent": lambda: where_time_went(database, search.id, search.n_trials),
        "training": lambda: tables.training_facts(trial_reader.fit_modes(database, search.id, among=sample)),
        "pruned": lambda: pruned_facts(database, search.id, n_pruned=progress().pruned),
        "reused": lambda: tables.reused_facts(search, trial_reader.reused(database, search.id)),
        "best_model": lambda: _best_model(database, search.id),
        "peak_memory_mb": lambda: trial_reader.peak_memory_mb(database, search.id),
        "n_sampled": None if sample is None else len(sample),
        "tags": lambda: tags_of(database, [search.id]).get(search.id, {}),
        "waits": lambda: reader.WaitingForPython(progress().waits_for_python or "", progress().queued),
        "python_line": tables.set_params_line,
        "choice": choice,
        "trials": cache(lambda: trial_page(database, search.id, search.n_trials, choice)),
        "shown": trial_table.SHOWN,
        "comparisons": trial_table.COMPARISONS,
        "score_columns": list(trial_table.COLUMNS),
        "sort_address": lambda column: _sort_address(asked, choice, column),
        "address": lambda **changes: _address(asked, **changes),
        "without": lambda index: _without(asked, index),
        "first": asked.get("first"),
        "second": asked.get("second"),
    }


def _best_model(database: Database, search_id: int) -> str | None:
    refit = find_refit(database, search_id)
    return None if refit is None else tables.best_model_fact(refit)


def _choice(asked: QueryParams) -> TrialChoice:
    """Read from an address which trials are asked for; without anything, all by number."""
    given = zip(asked.getlist("column"), asked.getlist("is"), asked.getlist("value"), strict=False)
    sort = asked.get("sort", trial_table.NUMBER)
    order = asked.get("order", Order.UP)
    return TrialChoice(
        shown=asked.get("shown", trial_table.ALL),
        sort=sort,
        order=Order(order) if order in list(Order) else Order.UP,
        conditions=[Condition(column, comparison, value) for column, comparison, value in given if value.strip()],
        page=_page(asked),
    )


def _page(asked: QueryParams) -> int:
    page = asked.get("page", "1")
    return min(max(int(page), 1), MAX_PAGE) if page.isascii() and page.isdecimal() and len(page) < 10 else 1


def _printable(text: str | None) -> str | None:
    """Return what can be in the database, which refuses some of what can't be printed."""
    return text if text and text.isprintable() else None


def _address(asked: QueryParams, **changes: Any) -> str:
    """Return the query of an address like this one, with changes, on its first page; None takes something away."""
    changes = {"page": None, "part": None, **changes}
    kept = [(key, value) for key, value in asked.multi_items() if key not in changes and value]
    return "?" + urlencode([*kept, *((key, value) for key, value in changes.items() if value is not None)])


def _sort_address(asked: QueryParams, choice: TrialChoice, column: str) -> str:
    """Return the address at which a column sorts; numbers' best and largest first, and the other way round next."""
    is_sorted = choice.sort == column
    first = Order.DOWN if column in trial_table.COLUMNS else Order.UP
    order = first if not is_sorted else (Order.UP if choice.order == Order.DOWN else Order.DOWN)
    return _address(asked, sort=column, order=order)


def _without(asked: QueryParams, index: int) -> str:
    """Return the address without one of the conditions, counted as `_choice` does."""
    given = zip(asked.getlist("column"), asked.getlist("is"), asked.getlist("value"), strict=False)
    kept = [one for one in given if one[2].strip()]
    others = [
        (key, value) for key, value in asked.multi_items() if key not in ("column", "is", "value", "page", "part")
    ]
    conditions = [
        pair
        for place, one in enumerate(kept)
        if place != index
        for pair in zip(("column", "is", "value"), one, strict=True)
    ]
    return "?" + urlencode([*others, *conditions])


ROUTES: list[BaseRoute] = [
    Route("/", _overview),
    SearchRoute("/searches/{search:name}", _search),
]
