"""How long each read of reports takes: a million trials in a thousand searches, one of 100,000, 10,000 workers seen.

    python benchmarks/reads.py [--searches 1000] [--trials 1000] [--large 100000] [--workers 10000] [--plans]
                               [--database sqlite] [--only fit_modes] [--json FILE]

Fills a SQLite file and a PostgreSQL, and prints the best of some repeats of each read, in this process and with what it
makes of the rows, the slowest first. A mark stands at what is above the aim; `--plans` prints the plans of its queries.
Everything runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from overhead import fleet_on
from page import FILLED, columns_of, fill
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, event, select, text

from gridfleet.scheduler.reports import (
    as_json,
    best_so_far,
    changes,
    fleet_activity,
    fleet_findings,
    fold_scores,
    listing,
    one_trial,
    param_values,
    reader,
    tables,
    trial_reader,
    trial_table,
    where_time_went,
    workers,
)
from gridfleet.storage import tags
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import VIEWS, Search, Trial
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions
from tests.stored_searches import switch_triggers_off

DATABASES = ("sqlite", "postgresql")
AIM_MS = 50
REPEATS = 5
#: Searches whose trials are copied in one transaction.
AT_ONCE = 50
#: Searches of which the last trials wait and one runs, and how many wait.
OPEN, WAITING = 20, 100
#: Of the large search: each how manyth trial took another one's result, trained as Keras does it, and warned.
EACH_REUSED, EACH_FALLBACK, EACH_WARNED = 2, 4, 4
#: A traceback as they are: some lines of calls, and a sentence.
TRACEBACK = "Traceback (most recent call last):\n" + 30 * (
    '  File "/srv/app/.venv/lib/python3.12/site-packages/keras/src/utils/traceback_utils.py", line 122, in handler\n'
)
ERROR = f"{TRACEBACK}ValueError: loss is not finite: the learning rate is too high"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=1_000)
    parser.add_argument("--trials", type=int, default=1_000, help="of each search")
    parser.add_argument("--large", type=int, default=100_000, help="trials of one more search")
    parser.add_argument("--workers", type=int, default=10_000, help="worker processes, all seen just now")
    parser.add_argument("--database", choices=DATABASES, action="append", help="only this one")
    parser.add_argument("--only", action="append", default=[], help="only reads with this in their name")
    parser.add_argument("--plans", action="store_true", help="print the plans of what is above the aim")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/reads.json"), help="where figures go")
    options = parser.parse_args()

    results = {database: measure(database, options) for database in options.database or DATABASES}
    show(results, options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(options, name) for name in ("searches", "trials", "large", "workers")}
    options.json.write_text(
        json.dumps({"cores": os.cpu_count(), "aim, ms": AIM_MS, **sizes, **results}, indent=2) + "\n"
    )


def measure(database: str, options: argparse.Namespace) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="gridfleet-reads-") as folder,
        fleet_on(database, Path(folder) / "fleet") as fleet,
    ):
        started = time.perf_counter()
        fill_all(fleet.database, options)
        print(f"{database}: filled in {time.perf_counter() - started:.0f} s", flush=True)
        return {
            name: timed(fleet.database, read)
            for name, read in reads(fleet.database, options).items()
            if not options.only or any(part in name for part in options.only)
        }


def fill_all(database: Database, options: argparse.Namespace) -> None:
    """Store the large search, copy its first trials to the others, and note the worker processes."""
    fill(database, options.large)
    with writing(database) as connection:
        connection.execute(text("UPDATE trials SET error = :error WHERE error IS NOT NULL"), {"error": ERROR})
        large = connection.execute(select(Search.id).where(Search.name == FILLED)).scalar_one()
        columns, of_old = columns_of(database, "searches", "id", "name")
        number = "SELECT CAST(1 AS integer) AS number UNION ALL SELECT number + 1 FROM n WHERE number < :most"
        connection.execute(
            text(
                f"WITH RECURSIVE n AS ({number}) INSERT INTO searches (name, {columns}) "
                f"SELECT 'search-' || n.number, {of_old} FROM searches old, n WHERE old.id = :large"
            ),
            {"most": options.searches, "large": large},
        )
        connection.execute(text("UPDATE searches SET n_trials = :n WHERE name LIKE 'search-%'"), {"n": options.trials})
        others = connection.execute(select(Search.id).where(Search.name.like("search-%")).order_by(Search.id))
        ids = list(others.scalars())
    for place in range(0, len(ids), AT_ONCE):
        with writing(database) as connection:
            copy_trials(database, connection, large, ids[place : place + AT_ONCE], options.trials)
    with writing(database) as connection:
        tell_more(connection, large, ids, options)
    with writing(database) as connection:
        note_workers(connection, options.workers)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if database.dialect == "postgresql":  # as its autovacuum does within a minute
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))
        else:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


@contextlib.contextmanager
def writing(database: Database) -> Iterator[Connection]:
    with database.write() as connection:
        switch_triggers_off(connection)
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield connection


def copy_trials(database: Database, connection: Connection, large: int, ids: list[int], n_trials: int) -> None:
    """Copy the first trials of the large search to others, each with one attempt."""
    given = {"large": large, "first": ids[0], "last": ids[-1], "most": n_trials}
    among = "new.id BETWEEN :first AND :last"
    columns, of_old = columns_of(database, "trials", "id", "search_id")
    connection.execute(
        text(
            f"INSERT INTO trials (search_id, {columns}) SELECT new.id, {of_old} FROM searches new "
            f"JOIN trials old ON old.search_id = :large AND old.number < :most WHERE {among}"
        ),
        given,
    )
    connection.execute(
        text(
            "INSERT INTO attempts (trial_id, attempt, token, worker_id, started_at, ended_at, outcome, error) "
            "SELECT new.id, 1, 't', 'host-' || (new.id % 1000) || '/1', new.started_at, new.finished_at, new.state, "
            "new.error FROM trials new WHERE new.search_id BETWEEN :first AND :last AND new.started_at IS NOT NULL"
        ),
        {"first": ids[0], "last": ids[-1]},
    )


def tell_more(connection: Connection, large: int, ids: list[int], options: argparse.Namespace) -> None:
    """Let trials of the large search have what reports tell, and leave some searches open."""
    first = connection.execute(select(Trial.id).where(Trial.search_id == ids[0], Trial.number == 0)).scalar_one()
    other = f"{first} + number % {options.trials}"
    of_large = {"large": large}
    for statement in (
        f"UPDATE trials SET reused_from = {other} WHERE search_id = :large AND number % {EACH_REUSED} = 0",
        (
            "UPDATE trials SET fit_mode = 'keras', fit_fallback_reason = 'a callback: EarlyStopping with a baseline' "
            f"WHERE search_id = :large AND number % {EACH_FALLBACK} = 0"
        ),
        (
            "INSERT INTO trial_warnings (trial_id, position, category, message, module, n_fits) SELECT id, 0, "
            "'sklearn.exceptions.ConvergenceWarning', 'lbfgs failed to converge after 100 iterations', 'model', 5 "
            f"FROM trials WHERE search_id = :large AND number % {EACH_WARNED} = 0"
        ),
    ):
        connection.execute(text(statement), of_large)
    opened = {"first": ids[-OPEN:][0], "waits": options.trials - WAITING}
    not_run = "mean_test_score = NULL, std_test_score = NULL, finished_at = NULL, error = NULL, error_type = NULL"
    for statement in (
        "UPDATE searches SET state = 'running', finished_at = NULL WHERE id >= :first",
        (
            f"UPDATE trials SET state = 'queued', started_at = NULL, {not_run} WHERE search_id >= :first "
            "AND number >= :waits"
        ),
        (
            f"UPDATE trials SET state = 'running', token = 't', {not_run} WHERE search_id >= :first "
            "AND number = :waits - 1"
        ),
        (
            "INSERT INTO leases (trial_id, token, worker_id, expires_at, search_id) SELECT id, 't', 'host-1/2', "
            f"{clock(connection, 3_600)}, search_id FROM trials WHERE search_id >= :first AND state = 'running'"
        ),
        # what ended in the last hour: a trial of each worker process
        (
            f"UPDATE attempts SET ended_at = {clock(connection)} WHERE trial_id IN (SELECT id FROM trials "
            f"WHERE search_id = :first OR search_id >= :first - {max(options.workers // options.trials - 1, 0)} "
            "AND search_id < :first) AND ended_at IS NOT NULL"
        ),
    ):
        given = {name: value for name, value in opened.items() if f":{name}" in statement}
        connection.execute(text(statement), given)


def clock(connection: Connection, plus_s: int = 0) -> str:
    if connection.dialect.name == "sqlite":
        return f"strftime('%Y-%m-%d %H:%M:%f+00:00', 'now', '{plus_s} seconds')"
    return f"now() + interval '{plus_s} seconds'"


def note_workers(connection: Connection, n_workers: int) -> None:
    """Note worker processes, sixteen a worker."""
    versions = installed_versions()
    at = clock(connection)
    connection.execute(
        text(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :most) "
            f"INSERT INTO workers (id, hostname, pid, started_at, last_seen_at, draining, {', '.join(versions)}) "
            f"SELECT 'host-' || (i / 16) || '/' || (i % 16 + 1), 'host-' || (i / 16), i, {at}, {at}, :no, "
            f"{', '.join(f':{name}' for name in versions)} FROM n"
        ),
        {"most": n_workers, "no": False, **versions},
    )


def reads(database: Database, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what reports ask, by what it is called in the table."""
    large = reader.find_search(database, FILLED)
    newest = [search.id for search in reader.list_searches(database, limit=50)]
    every = [search.id for search in reader.list_searches(database, limit=options.searches)]
    # an open search of usual size
    small = reader.find_search(database, f"search-{options.searches}")
    sample, middle = trial_table.EXAMINED, large.n_trials // 2
    numbers = where_time_went.drawn(large.id, large.n_trials)

    def page(**choice: Any) -> Callable[[], Any]:
        return lambda: trial_table.trial_page(database, large.id, large.n_trials, trial_table.TrialChoice(**choice))

    found: dict[str, Callable[[], Any]] = {
        "list_searches, 50": lambda: reader.list_searches(database),
        "list_searches, all": lambda: reader.list_searches(database, limit=None),
        "list_searches, failed": lambda: reader.list_searches(database, state="failed"),
        "list_searches, waiting": lambda: reader.list_searches(database, state="waiting"),
        "list_searches, best first": lambda: reader.list_searches(database, sort="best"),
        "list_searches, by part of the name": lambda: reader.list_searches(database, name_has="99"),
        "count_trials, 50": lambda: reader.count_trials(database, newest),
        "count_trials, all": lambda: reader.count_trials(database, every),
        "tags_of, all": lambda: tags.tags_of(database, every),
        "best_so_far, 50": lambda: best_so_far.best_so_far(database, dict.fromkeys(newest, options.trials)),
        "find_search": lambda: reader.find_search(database, FILLED),
        "choose_search, by a beginning": lambda: reader.choose_search(database, FILLED[:-1]),
        "progress": lambda: reader.progress(database, large.id),
        "progress of an open search": lambda: reader.progress(database, small.id),
        "leaderboard": lambda: trial_reader.leaderboard(database, large.id),
        "best_trial": lambda: trial_reader.best_trial(database, large.id),
        "trial_of": lambda: trial_reader.trial_of(database, large.id, middle),
        "failures, 10": lambda: trial_reader.failures(database, large.id),
        "failures, as a report examines": lambda: trial_reader.failures(
            database, large.id, limit=tables.EXAMINED_FAILURES
        ),
        "failures, all": lambda: trial_reader.failures(database, large.id, limit=None),
        "has_raised": lambda: trial_reader.has_raised(database, large.id, any_error=True),
        "trial_warnings": lambda: trial_reader.trial_warnings(database, large.id, limit=51),
        "fit_modes": lambda: trial_reader.fit_modes(database, large.id),
        "fit_modes, of a sample": lambda: trial_reader.fit_modes(database, large.id, among=numbers),
        "reused": lambda: trial_reader.reused(database, large.id),
        "reused, of a sample": lambda: trial_reader.reused(database, large.id, among=numbers),
        "peak_memory_mb": lambda: trial_reader.peak_memory_mb(database, large.id),
        "where_time_went": lambda: where_time_went.where_time_went(database, large.id, large.n_trials),
        "fold_scores, 10": lambda: fold_scores.fold_scores(database, large.id, range(10)),
        "lead": lambda: fold_scores.lead(database, large.id, large.refit_metric),
        "hyperparameters": lambda: param_values.hyperparameters(database, large.id, large.n_trials),
        "attempts of a trial": lambda: trial_reader.attempts(database, large.id, number=middle),
        "trial_and_splits": lambda: one_trial.trial_and_splits(database, large, middle),
        "trial_page, by number": page(),
        "trial_page, best first": page(sort=trial_table.SCORE, order=trial_table.Order.DOWN),
        "trial_page, the failed": page(shown="failed"),
        f"trial_page, by a value, of {sample:,}": page(sort="params.units"),
        "workers_seen": lambda: fleet_findings.workers(database, heartbeat_s=100, is_embedded=False),
        "present_workers": lambda: workers.present_workers(database),
        "waiting_for_python": lambda: reader.waiting_for_python(database),
        "fleet_activity": lambda: fleet_activity.fleet_activity(database),
        "count_queued": lambda: queue.count_queued(database),
        "changes.look": lambda: changes.look(database),
        "gridfleet list": lambda: silently(lambda: listing.print_searches(database, limit=50)),
        "gridfleet list --json": lambda: as_json.searches(database, limit=50),
        "gridfleet report": lambda: silently(lambda: tables.print_report(database, FILLED)),
        "gridfleet report --json": lambda: as_json.report(database, FILLED),
    }
    views = dict.fromkeys(VIEWS, f"search = '{FILLED}'") | {"epochs": f"trial_id = {trial_of(database, large.id)}"}
    for view, condition in sorted(views.items()):
        found[f"view {view}, one of it"] = functools.partial(
            ask, database, f"SELECT * FROM {view} WHERE {condition} LIMIT 10"
        )
    found["view search_progress, all"] = lambda: ask(database, "SELECT * FROM search_progress")
    found["view best_trials, all"] = lambda: ask(database, "SELECT * FROM best_trials")
    return found


def trial_of(database: Database, search_id: int) -> int:
    with database.read() as connection:
        return connection.execute(select(Trial.id).where(Trial.search_id == search_id, Trial.number == 7)).scalar_one()


def silently(print_it: Callable[[], Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        print_it()


def ask(database: Database, query: str) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(text(query)))


def timed(database: Database, read: Callable[[], Any]) -> dict[str, Any]:
    asked: list[tuple[str, Any]] = []
    with listening(database, asked):
        read()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - started)
    found: dict[str, Any] = {"ms": round(min(seconds) * 1_000, 1), "queries": len(asked)}
    if found["ms"] > AIM_MS:
        explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN (ANALYZE, BUFFERS) "
        with database.read() as connection:
            found["plan"] = [
                str(row[-1])
                for statement, parameters in asked
                for row in connection.exec_driver_sql(explain + statement, parameters)
            ]
    return found


@contextlib.contextmanager
def listening(database: Database, asked: list[tuple[str, Any]]) -> Iterator[None]:
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    console = Console(width=140)
    title = (
        f"{options.searches:,} searches of {options.trials:,} trials, one of {options.large:,}, {options.workers:,} "
        f"worker processes: the best of {REPEATS}; * above {AIM_MS} ms"
    )
    table = Table("read", *(f"{name}, {unit}" for name in results for unit in ("ms", "queries")), title=title)
    names = next(iter(results.values()))
    for name in sorted(names, key=lambda one: -max(of[one]["ms"] for of in results.values())):
        cells = [of[name] for of in results.values()]
        marked = ((f"{cell['ms']:.1f}{' *' if cell['ms'] > AIM_MS else '  '}", str(cell["queries"])) for cell in cells)
        table.add_row(name, *(cell for pair in marked for cell in pair))
    console.print(table)
    if options.plans:
        for database, of in results.items():
            for name, found in of.items():
                for line in found.get("plan", []):
                    console.print(f"{database}, {name}: {line}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
