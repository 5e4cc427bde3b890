"""Who is there to evaluate trials, what they do, and what came of it in the last hour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from gridfleet.scheduler.reports.plain import plain
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.schema import Attempt, Lease, Search, Trial, Worker
from gridfleet.storage.workers import IS_OF_HOST, IS_THERE, node_of

#: Seconds in which attempts that ended are counted.
COUNTED_S = 3_600
#: Seconds after which a process that was not seen is said to be silent: several heartbeats of a fleet with defaults.
SILENT_S = 60
#: What is the same for all processes of a worker, but for one that outlived an upgrade of its packages.
VERSIONS = ("gridfleet", "python", "tensorflow", "keras", "scikit_learn")


#: What is read of each process, of which there may be 10,000: no time that is not shown.
_COLUMNS = (
    Worker.id,
    Worker.hostname,
    Worker.pid,
    Worker.started_at,
    Worker.draining,
    Worker.stopped_reason,
    Worker.n_cores,
    Worker.memory_limit_mb,
    *(getattr(Worker, f"{package}_version") for package in VERSIONS),
)
#: Whether a row tells of a worker that is there, or that took itself out a short time ago.
_IS_SHOWN = IS_THERE | (Worker.stopped_reason.is_not(None) & (Worker.last_seen_at > now(-COUNTED_S)))


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """What a worker process evaluates."""

    search: str
    number: int
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PresentProcess:
    """One process of a worker."""

    pid: int
    started_at: datetime
    seconds_since_seen: float
    running: RunningTrial | None


@dataclass(frozen=True, slots=True)
class PresentWorker:
    """One worker that is there, as far as anybody knows."""

    name: str
    hostname: str
    started_at: datetime
    is_draining: bool
    stopped_reason: str | None
    versions: dict[str, str | None]
    n_cores: int | None
    memory_limit_mb: int | None
    processes: list[PresentProcess]
    attempts_last_hour: dict[str, int]


def present_workers(database: Database) -> list[PresentWorker]:
    """List the workers that are there, by name, with all that they do."""
    since_seen = seconds_between(database.dialect, Worker.last_seen_at, now()).label("seconds_since_seen")
    is_process = (Worker.ended_at.is_(None) & ~IS_OF_HOST).label("is_process")
    asked = select(*_COLUMNS, since_seen, is_process).where(_IS_SHOWN).order_by(Worker.started_at, Worker.id)
    with database.read() as connection:
        rows = connection.execute(asked).all()
    running, counts = _running(database), _counts(database)
    by_name: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_name[node_of(row.id)].append(row)
    return [_worker(name, by_name[name], running, counts.get(name, {})) for name in sorted(by_name)]


def _worker(name: str, rows: list[Any], running: dict[str, RunningTrial], counts: dict[str, int]) -> PresentWorker:
    newest = rows[-1]
    return PresentWorker(
        name=name,
        hostname=newest.hostname,
        started_at=rows[0].started_at,
        is_draining=any(row.draining for row in rows),
        stopped_reason=next((row.stopped_reason for row in rows if row.stopped_reason is not None), None),
        versions={package: getattr(newest, f"{package}_version") for package in VERSIONS},
        n_cores=newest.n_cores,
        memory_limit_mb=newest.memory_limit_mb,
        processes=[
            PresentProcess(row.pid, row.started_at, float(row.seconds_since_seen), running.get(row.id))
            for row in rows
            if row.is_process
        ],
        attempts_last_hour=counts,
    )


def _running(database: Database) -> dict[str, RunningTrial]:
    seconds = seconds_between(database.dialect, Trial.started_at, now()).label("seconds")
    query = (
        select(Trial.worker_id, Search.name, Trial.number, Trial.attempt, seconds)
        .select_from(Lease)
        # outer joins keep their order: SQLite, which knows no sizes, would look for a lease of each of all trials
        .outerjoin(Trial, Trial.id == Lease.trial_id)
        .outerjoin(Search, Search.id == Trial.search_id)
    )
    with database.read() as connection:
        rows = connection.execute(query)
        return {row.worker_id: RunningTrial(row.name, row.number, row.attempt, float(row.seconds)) for row in rows}


def _counts(database: Database) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    with database.read() as connection:
        # asked before, for a clock that goes on within a statement is compared with every row and with no index
        since = connection.execute(select(now(-COUNTED_S))).scalar_one()
        query = (
            select(Attempt.worker_id, Attempt.outcome, func.count().label("n"))
            .where(Attempt.ended_at > since)
            .group_by(Attempt.worker_id, Attempt.outcome)
            .order_by(Attempt.outcome)
        )
        for row in connection.execute(query):
            of_worker = counts[node_of(row.worker_id)]
            of_worker[row.outcome] = of_worker.get(row.outcome, 0) + row.n
    return counts


def describe(workers: Iterable[PresentWorker]) -> Iterator[str]:
    """Describe workers, several lines each, in printable characters."""
    for worker in workers:
        state = "; drains" if worker.is_draining else ""
        yield plain(f"{worker.name} on {worker.hostname} since {_time(worker.started_at)}{state}")
        if worker.stopped_reason is not None:
            yield plain(f"  stopped    {worker.stopped_reason}")
        yield plain(f"  runs       {_machine(worker)}")
        done = ", ".join(f"{n} {outcome}" for outcome, n in worker.attempts_last_hour.items())
        yield plain(f"  last hour  {done or 'no attempt ended'}")
        for process in worker.processes:
            yield plain(f"  process    {process.pid:<7} {_work(process)}")


def _machine(worker: PresentWorker) -> str:
    facts = [f"{name.replace('_', '-')} {version}" for name, version in worker.versions.items() if version]
    if worker.n_cores is not None:
        facts.append(f"{worker.n_cores} cores")
    if worker.memory_limit_mb is not None:
        facts.append(f"{worker.memory_limit_mb} MB a process")
    return ", ".join(facts)


def _work(process: PresentProcess) -> str:
    silent = process.seconds_since_seen
    unseen = f"; not seen for {_duration(silent)}" if silent > SILENT_S else ""
    if process.running is None:
        return f"idle{unseen}"
    trial = process.running
    tried = f", attempt {trial.attempt}" if trial.attempt > 1 else ""
    return f"{trial.search}, trial {trial.number}{tried}, for {_duration(trial.seconds)}{unseen}"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
