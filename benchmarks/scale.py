"""Many trials: 100,000 in the queue, and 10,000 drained while workers are killed and the broker is flushed.

    python benchmarks/scale.py [--queued 100000] [--drained 10000] [--keras 200] [--part submit]
                               [--seed 1] [--database sqlite] [--json FILE]

Prints tables and writes JSON: how long it takes to submit while workers are there, and until the first trial has
ended; how long storing and publishing take, the memory of `gridfleet scheduler` and of the broker, a pass of the
reconciler, the plan of every query that runs while trials wait; then what the checker of histories says about the
drained ones. On SQLite and on PostgreSQL; everything runs on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from overhead import DoNothing, _cell, empty_queue, fleet_on, workers_of
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import ParameterGrid
from sqlalchemy import event, func, insert, literal, select, text, update

from gridfleet import GridSearchCV, SearchHandle, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.storage import searches
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Trial
from gridfleet.storage.trials import claims
from gridfleet.storage.trials import queue as trial_queue
from gridfleet.storage.trials.held import expired, held_by
from gridfleet.worker.broker.publisher import MAX_MESSAGES
from tests import history
from tests.history import Expected
from tests.soak.system import SCHEDULER, System, be_quiet, running, use_fleet

DATABASES = ("sqlite", "postgresql")
#: Messages that a pass of the reconciler sends where none waits.
DUE = MAX_MESSAGES
AIMS = {
    "submitted, s": 10,
    "first trial has ended after that, s": 2,
    "scheduler's memory, MB": 300,
    "reconciler's pass, nothing due, s": 1,
    f"reconciler's pass, {DUE:,} never published, s": 1,
    "reconciler's pass, all messages lost, s": 1,
    "full scans of trials": 0,
    "lost": 0,
    "doubled": 0,
    "violations": 0,
}
#: Repeats of what is timed.
REPEATS = 5
#: Seconds that draining may take before it counts as stuck.
DRAIN_S = 1_800
#: What happens while trials are drained.
KILLS_AND_FLUSHES = (
    "worker process killed",
    "worker killed",
    "scheduler killed",
    "broker flushed",
    "broker killed and started",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=100_000, help="trials in the queue")
    parser.add_argument("--ended", type=int, default=400_000, help="trials that ended before, in the same table")
    parser.add_argument("--drained", type=int, default=10_000, help="trials of no work to drain")
    parser.add_argument("--keras", type=int, default=200, help="trials of a Keras model to drain")
    parser.add_argument("--seed", type=int, default=1, help="draws the faults")
    parser.add_argument("--database", choices=DATABASES, action="append", help="only this one")
    parser.add_argument("--part", choices=("submit", "queue", "drain"), help="only this")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"), help="where figures go")
    options = parser.parse_args()

    be_quiet()
    databases = options.database or DATABASES
    results: dict[str, Any] = {"cores": os.cpu_count(), "aims": AIMS}
    if options.part in (None, "submit"):
        results["submitted"] = {database: submit_to_workers(database, options) for database in databases}
        show(f"{options.queued:,} trials submitted while a worker is there", results["submitted"])
    if options.part in (None, "queue"):
        results["queued"] = {database: queue(database, options) for database in databases}
        show(f"{options.queued:,} trials queued among {options.ended:,} that ended", results["queued"])
    if options.part in (None, "drain"):
        results["drained"] = {database: drain(database, options) for database in databases}
        title = f"{options.drained:,} trials of no work and {options.keras:,} of Keras, drained under faults"
        show(title, results["drained"])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")


def submit_to_workers(database: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a submission, and the wait for its first result, by the database's clock."""
    with tempfile.TemporaryDirectory() as folder, fleet_on(database, Path(folder) / "fleet") as fleet:
        use_fleet(fleet.settings)
        with workers_of(fleet):
            submit_no_work(100).wait()  # imports done, connections open
            began = clock(fleet)
            started = time.perf_counter()
            search = submit_no_work(options.queued)
            seconds = time.perf_counter() - started
            first = select(func.min(Trial.finished_at)).where(Trial.search_id == search.id)
            while (ended := ask(fleet, first)) is None:
                time.sleep(0.01)
            search.cancel()
        return {
            "submitted, s": round(seconds, 2),
            "first trial has ended, s": round((ended - began).total_seconds(), 2),
            "first trial has ended after that, s": round((ended - began).total_seconds() - seconds, 2),
        }


def clock(fleet: Fleet) -> Any:
    return ask(fleet, select(now()))


def ask(fleet: Fleet, query: Any) -> Any:
    with fleet.database.read() as connection:
        return connection.execute(query).scalar_one()


def queue(database: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, fleet_on(database, Path(folder) / "fleet") as fleet:
        return measure_queue(use_fleet(fleet.settings), options.queued, options.ended)


def submit_no_work(n_trials: int) -> SearchHandle:
    """Submit trials that do nothing and score their number, as a script does: validate, store, publish."""
    space = {"value": list(range(n_trials))}
    grid = GridSearchCV(DoNothing(), space, cv=2, refit=False, verbose=0)
    return submit(grid, np.zeros((20, 2)), np.zeros(20))


def measure_queue(fleet: Fleet, n_trials: int, n_ended: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    searches = []
    for size in (n_trials // 10, n_trials // 2, n_trials):
        for earlier in searches:
            earlier.cancel()
        empty_queue(fleet)
        started = time.perf_counter()
        searches.append(submit_no_work(size))
        seconds = time.perf_counter() - started
        figures[f"{size:,} submitted, s"] = round(seconds, 2)
        figures[f"{size:,} submitted, µs per trial"] = round(seconds / size * 1e6)
    figures["broker's memory, MB"] = round(fleet.publisher._redis.info()["used_memory"] / 1e6, 1)
    add_ended_trials(fleet, searches[-2].id, n_ended)
    figures.update(passes_of_reconciler(fleet, searches[-1].id))
    plans = plans_of_queries(fleet, waiting=searches[-1].id, ended=searches[-2].id)
    figures["full scans of trials"] = sum(is_full_scan(line) for plan in plans.values() for line in plan["plan"])
    return {**figures, "queries": plans}


def add_ended_trials(fleet: Fleet, search_id: int, n_trials: int) -> None:
    """Give the database a past: copies of a search's trials, all completed."""
    columns = (Trial.search_id, Trial.params, Trial.params_digest, Trial.structure_digest, Trial.finished_at)
    size = reader.progress(fleet.database, search_id).total
    for shift in range(size, n_trials, size):
        copies = select(*columns, Trial.number + shift, literal("completed"), Trial.number / 7.0)
        with fleet.database.write() as connection:
            connection.execute(
                insert(Trial).from_select(
                    [*columns, Trial.number, Trial.state, Trial.mean_test_score],
                    copies.where(Trial.search_id == search_id, Trial.number < size),
                )
            )
    if fleet.database.dialect == "postgresql":  # as its autovacuum does within a minute; SQLite has no statistics
        with fleet.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))


def passes_of_reconciler(fleet: Fleet, search_id: int) -> dict[str, float]:
    figures = {
        "reconciler's pass, nothing due, s": time_of_pass(fleet, lambda: None, published=0),
        f"reconciler's pass, {DUE:,} never published, s": time_of_pass(
            fleet, lambda: forget_messages(fleet, search_id, DUE), published=DUE
        ),
        "reconciler's pass, all messages lost, s": time_of_pass(
            fleet, lambda: lose_messages(fleet, search_id), published=DUE
        ),
    }
    forget_messages(fleet, search_id, DUE)
    return {**figures, "scheduler's memory, MB": memory_of_scheduler(fleet)}


def forget_messages(fleet: Fleet, search_id: int, n_trials: int) -> None:
    """Make trials such that no message was ever sent for them, and none waits."""
    empty_queue(fleet)
    first = select(Trial.id).where(Trial.search_id == search_id).order_by(Trial.id).limit(n_trials)
    with fleet.database.write() as connection:
        connection.execute(update(Trial).where(Trial.id.in_(first)).values(published_at=None, publish_count=0))


def lose_messages(fleet: Fleet, search_id: int) -> None:
    """Lose all messages, an hour ago."""
    empty_queue(fleet)
    with fleet.database.write() as connection:
        connection.execute(
            update(Trial).where(Trial.search_id == search_id).values(published_at=now(-3_600), publish_count=1)
        )


def time_of_pass(fleet: Fleet, prepare: Callable[[], None], *, published: int) -> float:
    reconciler = fleet.reconciler()
    seconds = []
    for _ in range(REPEATS):
        prepare()
        started = time.perf_counter()
        done = reconciler.once()
        seconds.append(time.perf_counter() - started)
        assert done.published == published, done
    return round(statistics.median(seconds), 3)


def memory_of_scheduler(fleet: Fleet) -> float:
    """Run `gridfleet scheduler` until it has published what was due, and return its memory at the most."""
    settings = fleet.settings.replace(reconcile_s=0.5)
    with subprocess.Popen(
        SCHEDULER, env={**os.environ, **settings.as_variables()}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            most, until = 0, time.monotonic() + 60
            while fleet.publisher.room():
                assert time.monotonic() < until, "the scheduler published nothing"
                most = max(most, psutil.Process(process.pid).memory_info().rss)
                time.sleep(0.02)
            for _ in range(20):  # and some passes with nothing to do
                most = max(most, psutil.Process(process.pid).memory_info().rss)
                time.sleep(0.2)
        finally:
            process.terminate()
    return round(most / 1e6, 1)


def plans_of_queries(fleet: Fleet, *, waiting: int, ended: int) -> dict[str, dict[str, Any]]:
    """Return the time and the plan of each query that the fleet asks while trials wait."""
    database = fleet.database
    with database.read() as connection:
        first = connection.execute(select(func.min(Trial.id)).where(Trial.search_id == waiting)).scalar_one()
    # one trial runs: a message about it makes a worker look for another one of its search
    assert claims.claim(database, first, "node/1", lease_s=3_600, max_runtime_s=3_600) is not None
    questions: dict[str, Callable[[], Any]] = {
        "due_for_publishing": lambda: trial_queue.due_for_publishing(database, republish_s=60),
        "due_for_publishing, messages wait": lambda: trial_queue.due_for_publishing(
            database, republish_s=60, oldest=first
        ),
        "expired": lambda: expired(database),
        "count_queued": lambda: trial_queue.count_queued(database),
        "unfinished_searches": lambda: searches.unfinished_searches(database),
        "finish_search, open": lambda: searches.finish_search(database, waiting),
        "finish_search, ended": lambda: searches.finish_search(database, ended),
        "look": lambda: trial_queue.look(database, first),
        "held_by": lambda: held_by(database, "node"),
        "progress": lambda: reader.progress(database, waiting),
        "best": lambda: trial_reader.best_trial(database, ended),
    }
    return {name: plan_of(fleet, ask) for name, ask in questions.items()}


def plan_of(fleet: Fleet, ask: Callable[[], Any]) -> dict[str, Any]:
    asked: list[tuple[str, Any]] = []
    with listening(fleet, asked):
        ask()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    explain = "EXPLAIN QUERY PLAN " if fleet.database.dialect == "sqlite" else "EXPLAIN (COSTS OFF) "
    with fleet.database.read() as connection:
        lines = [
            str(row[-1]).replace("(clock_timestamp() + '00:00:00'::interval)", "now()")
            for statement, parameters in asked
            for row in connection.exec_driver_sql(explain + statement, parameters)
        ]
    return {"ms": round(statistics.median(seconds) * 1e3, 2), "plan": lines}


@contextmanager
def listening(fleet: Fleet, asked: list[tuple[str, Any]]) -> Iterator[None]:
    """Note the statements that are executed meanwhile."""

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
            asked.append((statement, parameters))

    event.listen(fleet.database.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(fleet.database.engine, "before_cursor_execute", note)


def is_full_scan(line: str) -> bool:
    """Whether a line of a plan reads all trials without an index."""
    return "Seq Scan on trials" in line or (line.startswith("SCAN trials") and "INDEX" not in line)


def drain(database: str, options: argparse.Namespace) -> dict[str, Any]:
    """Let two workers drain trials while they are killed and the broker is flushed; judge the history."""
    with running(database, concurrencies=(1, 1), n_schedulers=1) as system:
        from tests.soak import run
        from tests.soak.nemesis import Nemesis
        from tests.soak.recoveries import recoveries_of_attempts

        fleet = use_fleet(system.settings)
        started = time.monotonic()
        expected = [no_work(options.drained), keras_work(options.keras)]
        nemesis = Nemesis(system, fleet, options.seed, KILLS_AND_FLUSHES)
        witness = run.Looking(system)
        still_open = run.wait_for_rest(system, fleet, DRAIN_S, nemesis.tick, witness.tick)
        seconds = time.monotonic() - started
        system.heal()
        violations = [f"{name} has not ended" for name in still_open] + run.judge(system, expected, witness.witness)
        totals = history.totals(system.database, expected)
        return {
            "seconds": round(seconds),
            **{f"trials {state}": n_trials for state, n_trials in sorted(totals.trials.items())},
            "attempts": dict(totals.attempts),
            "lost": totals.lost,
            "doubled": totals.doubled,
            "violations": violations or 0,
            "faults": {kind: sum(fault.kind == kind for fault in nemesis.injected) for kind in KILLS_AND_FLUSHES},
            "runs again after, worst s": {
                recovery.kind: round(recovery.worst, 1) for recovery in recoveries_of_attempts(system.database)
            },
            "restarts": restarts(system),
        }


def no_work(n_trials: int) -> Expected:
    """Submit trials whose score is their number."""
    search = submit_no_work(n_trials)
    params = [{"value": value} for value in range(n_trials)]
    return Expected(search.id, params, [[float(value)] * 2 for value in range(n_trials)])


def keras_work(n_trials: int) -> Expected:
    """Submit trials of a Keras model, each combination of a small space many times."""
    from tests.soak.searches import KERAS_SPACE, KERAS_TOLERANCE, N_SPLITS, Kind, X, Y, keras_model, scores_of

    def key(params: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(sorted(params.items()))

    once = list(ParameterGrid(KERAS_SPACE))
    scores = dict(zip(map(key, once), scores_of(Kind(1, keras_model(), KERAS_SPACE)), strict=True))
    space = {**KERAS_SPACE, "random_state": KERAS_SPACE["random_state"] * (n_trials // len(once))}
    search = submit(GridSearchCV(keras_model(), space, cv=N_SPLITS, refit=False, verbose=0), X, Y)
    params = list(ParameterGrid(space))
    return Expected(search.id, params, [scores[key(one)] for one in params], KERAS_TOLERANCE)


def restarts(system: System) -> dict[str, int]:
    return {service.name: service.starts - 1 for service in system.services}


def show(title: str, figures: dict[str, dict[str, Any]]) -> None:
    console = Console(width=140)
    table = Table("figure", *figures, "aim at most", title=f"{title}, on {os.cpu_count()} cores")
    for name in dict.fromkeys(name for of_database in figures.values() for name in of_database if name != "queries"):
        cells = (_cell(_one_line(of_database.get(name, ""))) for of_database in figures.values())
        table.add_row(name, *cells, str(AIMS.get(name, "")))
    console.print(table)
    for database, of_database in figures.items():
        for name, query in of_database.get("queries", {}).items():
            console.print(f"{database}, {name}: {query['ms']} ms", style="bold", highlight=False)
            for line in query["plan"]:
                console.print(f"    {line}", highlight=False, markup=False)


def _one_line(value: Any) -> Any:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
