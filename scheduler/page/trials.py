"""One trial: what it was, how it went, and how to build its estimator again."""

from __future__ import annotations

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from gridfleet.scheduler.page.addresses import SearchRoute, asked_number, asked_search
from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import tables, trial_reader
from gridfleet.scheduler.reports.causes import cause
from gridfleet.scheduler.reports.fold_scores import fold_scores
from gridfleet.scheduler.reports.one_trial import trial_and_splits
from gridfleet.scheduler.reports.pruning import how_pruned, reports_of
from gridfleet.scheduler.reports.where_time_went import PARTS
from gridfleet.storage.database.connection import Database
from gridfleet.storage.plain import plain_lines
from gridfleet.storage.schema import OPEN_STATES, TrialWarning

#: Attempts and warnings that are shown.
MAX_ATTEMPTS, MAX_WARNINGS = 100, 50
#: Characters of a traceback that are shown: its end, which says most.
MAX_TRACEBACK = 50_000


def _trial(request: Request) -> Response:
    database = request.app.state.database
    search = asked_search(request)
    number = asked_number(request, search)
    trial, splits = trial_and_splits(database, search, number)
    parts = {part: getattr(trial, f"{part}_time") for part in PARTS}
    reports = reports_of(database, trial.id)
    error = None if trial.error is None else plain_lines(trial.error.strip())
    return render(
        request,
        "trial.html",
        search=search,
        trial=trial,
        live=str(search.id) if trial.state in OPEN_STATES else "",
        metric=tables.metric_of(search),
        is_best=_is_best(database, search.id, number),
        scores=fold_scores(database, search.id, [number]),
        splits=splits,
        reports=reports,
        pruned=how_pruned(trial, reports),
        parts={part: seconds for part, seconds in parts.items() if seconds is not None},
        attempts=trial_reader.attempts(database, search.id, number=number)[-MAX_ATTEMPTS:],
        warnings=_warnings(database, trial.id),
        cause=cause(trial.error, trial.error_type) if trial.error or trial.error_type else None,
        error=None if error is None else error[-MAX_TRACEBACK:],
        is_cut=error is not None and len(error) > MAX_TRACEBACK,
        cause_of=cause,
        python_line=tables.set_params_line(trial.params),
    )


def _is_best(database: Database, search_id: int, number: int) -> bool:
    best = trial_reader.best_trial(database, search_id)
    return best is not None and best.number == number


def _warnings(database: Database, trial_id: int) -> list[trial_reader.GivenWarning]:
    columns = (TrialWarning.category, TrialWarning.message, TrialWarning.module, TrialWarning.n_fits)
    query = select(*columns).where(TrialWarning.trial_id == trial_id).order_by(TrialWarning.position)
    with database.read() as connection:
        return [trial_reader.GivenWarning(*row) for row in connection.execute(query.limit(MAX_WARNINGS))]


ROUTES: list[BaseRoute] = [SearchRoute("/searches/{search:name}/trials/{number:name}", _trial)]
