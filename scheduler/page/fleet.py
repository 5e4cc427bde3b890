"""The workers, what they do, and what waits."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.page.templates import render
from gridfleet.scheduler.reports import fleet_findings
from gridfleet.scheduler.reports.fleet_activity import COUNTED_S, FleetActivity, fleet_activity
from gridfleet.scheduler.reports.fleet_findings import Finding
from gridfleet.scheduler.reports.workers import SILENT_S, PresentWorker, present_workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.search_states import has_fleet, is_of_folder
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import queue

#: What the fleet's settings are by default, for who reads does not know them.
HEARTBEAT_S: float = Settings.model_fields["heartbeat_s"].default
RECONCILE_S: float = Settings.model_fields["reconcile_s"].default


def _fleet(request: Request) -> Response:
    database = request.app.state.database
    return render(
        request,
        "fleet.html",
        workers=cache(lambda: present_workers(database)),
        activity=cache(lambda: fleet_activity(database)),
        busy_share=_busy_share,
        counted_min=COUNTED_S // 60,
        counted_queue=queue.COUNTED,
        findings=lambda: findings(database),
        silent_s=SILENT_S,
    )


def findings(database: Database) -> list[Finding]:
    """Return what ``gridfleet doctor`` would warn of, as far as the tables say it."""
    with database.read() as connection:
        is_embedded, is_there = is_of_folder(connection), has_fleet(connection)
    found = [] if is_embedded else [fleet_findings.scheduler(database, reconcile_s=RECONCILE_S)]
    found += fleet_findings.workers(
        database, heartbeat_s=HEARTBEAT_S, is_embedded=is_embedded, may_be_there=is_there or not is_embedded
    )
    return [finding for finding in found if finding.status != fleet_findings.OK]


def _busy_share(activity: FleetActivity, worker: PresentWorker) -> float:
    there_for_s = (datetime.now(UTC) - worker.started_at).total_seconds()
    return activity.busy_share(worker.name, len(worker.processes), there_for_s)


ROUTES: list[BaseRoute] = [Route("/fleet", _fleet)]
