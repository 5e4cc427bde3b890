"""What can be wrong with a fleet, as far as its tables say it: for ``gridfleet doctor`` and whoever shows a fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.figures import count
from gridfleet.scheduler.reports.reader import SeenWorkers
from gridfleet.storage import passes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.search_states import SEEN_S
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions

#: Seconds for which a worker is told of that took itself out, or did not start.
STOPPED_S = 3_600
#: A scheduler that let so many of its times to look pass is not there any more.
PASSES_MISSED = 4
#: A worker process that let so many heartbeats pass is not alive, as far as anybody knows.
BEATS_MISSED = 3

#: What was found: all is well, it is not there and need not be, something has to be done.
OK, ABSENT, WRONG = "ok", "–", "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    sentence: str
    status: str = OK

    @property
    def is_wrong(self) -> bool:
        """Whether something has to be done."""
        return self.status == WRONG

    def __str__(self) -> str:
        return f"{self.status:<6}{self.subject:<10}{self.sentence}"

    def as_json(self) -> dict[str, str]:
        """Return it as JSON types."""
        status = "absent" if self.status == ABSENT else self.status.lower()
        return {"subject": self.subject, "status": status, "sentence": self.sentence}


def scheduler(database: Database, *, reconcile_s: float) -> Finding:
    """Look whether a scheduler looked after the fleet; of an embedded one its supervisor does."""
    last = passes.last_pass(database)
    if last is None:
        return Finding("scheduler", "none has run yet; start one with `gridfleet scheduler`", WRONG)
    sentence = f"last looked after the fleet {last.age_s:.0f} s ago, process {last.pid} on {last.hostname}"
    if last.age_s <= max(SEEN_S, PASSES_MISSED * reconcile_s):
        return Finding("scheduler", sentence)
    return Finding("scheduler", f"{sentence}; start one with `gridfleet scheduler`", WRONG)


def workers(database: Database, *, heartbeat_s: float, is_embedded: bool, may_be_there: bool = True) -> list[Finding]:
    """Look which workers are there, what waits for them, and whether they fit together.

    Parameters
    ----------
    database : Database
        The fleet's.
    heartbeat_s : float
        Seconds between two of its heartbeats.
    is_embedded : bool
        Whether it is a folder's, which needs no workers as long as nothing is submitted.
    may_be_there : bool, default=True
        False: workers that were seen a moment ago have ended with their fleet.
    """
    return list(_workers(database, BEATS_MISSED * heartbeat_s, is_embedded=is_embedded, may_be_there=may_be_there))


def _workers(database: Database, within_s: float, *, is_embedded: bool, may_be_there: bool) -> Iterator[Finding]:
    yield from _stopped(database)
    seen = reader.workers_seen(database, within_s=within_s) if may_be_there else None
    n_queued = queue.count_queued(database)
    verb = "waits" if n_queued == 1 else "wait"
    queued = f"{count(n_queued, 'trial')} {'or more ' * (n_queued == queue.COUNTED)}{verb}"
    if seen is None or not seen.n_processes:
        starts = "gridfleet up" if is_embedded else "gridfleet worker"
        sentence = f"none was seen in the last {within_s:g} s, and {queued}"
        yield Finding("workers", f"{sentence}; `{starts}` starts some", ABSENT if is_embedded else WRONG)
        return
    there = f"{count(seen.n_workers, 'worker')} with {count(seen.n_processes, 'process')}"
    yield Finding("workers", f"{there} seen in the last {within_s:g} s; {queued}")
    for waiting in reader.waiting_for_python(database):
        yield Finding("python", f"{waiting}; start one, or submit again with a Python that workers have", WRONG)
    here = installed_versions()
    for package, version in here.items():
        yield from _differences(package, version, seen)


def _stopped(database: Database) -> Iterator[Finding]:
    for worker in reader.workers_stopped(database, within_s=STOPPED_S):
        name, _, number = worker.id.rpartition("/")
        what = "took itself out" if number != "0" else "did not start"
        yield Finding("workers", f"{name} {what}: {worker.reason}", WRONG)


def _differences(package: str, here: str | None, seen: SeenWorkers) -> Iterator[Finding]:
    others = seen.versions[package] - {here}
    if others and here is not None:
        name = package.removesuffix("_version").replace("_", "-")
        sentence = f"workers have {name} {', '.join(sorted(others))}, this environment has {here}; install the same"
        yield Finding("versions", sentence, WRONG)
