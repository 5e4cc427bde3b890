"""How long the page's answers take in a database of a million trials, how large they are, and what onlookers cost.

    python benchmarks/page.py [--trials 1000000] [--onlookers 200] [--database sqlite] [--json FILE]

Prints, as tables of Markdown for docs/page.md, the best of some repeats of each page, part and figure, on SQLite and on
PostgreSQL; of an answer over the aims the plans of its queries. Then so many readers of the event stream look on: what
they take of memory, and how many queries are asked for all of them. Everything runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from overhead import fleet_on
from sqlalchemy import event, text

from gridfleet.storage.database.connection import Database
from tests.page.conftest import Page, served_page
from tests.page.searches_to_show import store_digits
from tests.stored_searches import switch_triggers_off

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
AIM_S, AIM_BYTES, AIM_MB = 0.5, 1_000_000, 150
REPEATS = 3
#: Seconds for which statements are counted while readers look on.
LOOKED_ON_S = 10
PARTS = ("summary", "winner", "figures", "folds", "time", "failed", "trials")
FIGURES = ("history", "parallel", "importances", "slices", "heatmap", "rank", "distribution", "curves", "timeline")
#: Trials whose rows are copied until there are as many as asked for.
COPIED = 1_000
#: Trials with curves, of which there are 20 rows a trial; a page reads those of a few trials.
WITH_CURVES = 20_000
#: Rows of one statement.
ROWS = 100_000
#: What `fill` calls the search.
FILLED = "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--onlookers", type=int, default=200)
    parser.add_argument("--database", choices=NAMES, action="append", help="only this one")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/page.json"), help="where figures go")
    options = parser.parse_args()

    results = {database: measure(database, options) for database in options.database or NAMES}
    show(results, options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"cores": os.cpu_count(), "trials": options.trials, **results}, indent=2) + "\n")


def measure(database: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, fleet_on(database, Path(folder) / "fleet") as fleet:
        started = time.perf_counter()
        fill(fleet.database, options.trials)
        found: dict[str, Any] = {"fill s": round(time.perf_counter() - started, 1), "MB": size_mb(fleet.database)}
        print(f"{NAMES[database]}: filled in {found['fill s']} s, {found['MB']:,.0f} MB", file=sys.stderr)
        with served_page(fleet.settings) as page:
            page.get("/fleet")  # templates and connections are made at the first request
            found["answers"] = {path: timed(page, path) for path in addresses(options.trials)}
            return found | {"onlookers": looked_on(page, options.onlookers)}


def addresses(n_trials: int) -> list[str]:
    search, table = "/searches/digits", "/searches/digits?part=trials"
    return [
        "/",
        search,
        *(f"{search}?part={part}" for part in PARTS),
        f"{table}&sort=mean_test_score&order=down",
        f"{table}&sort=mean_test_score&order=down&page={n_trials // 100}",
        f"{table}&page={n_trials // 60}",
        f"{table}&shown=failed",
        f"{table}&sort=params.units",
        f"{table}&column=params.units&is=%E2%89%A5&value=128",
        f"{search}/trials/{n_trials // 2}",
        *(f"{search}/figures/{figure}.json" for figure in FIGURES),
        "/compare?s=digits&s=small",
        "/compare/figures/trials.json?s=digits&s=small",
        "/fleet",
        "/metrics",
    ]


def fill(database: Database, n_trials: int) -> None:
    """Store a search, and copy its trials with scores, curves and attempts until there are as many as asked for."""
    store_digits(database, name="small")
    search_id = store_digits(database, n_trials=min(COPIED, n_trials), name=FILLED)
    for first in range(COPIED, n_trials, ROWS):
        _copy(database, search_id, first, min(first + ROWS, n_trials))
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(text("UPDATE searches SET n_trials = :n WHERE id = :id"), {"n": n_trials, "id": search_id})
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("ANALYZE"))


def _copy(database: Database, search_id: int, first: int, last: int) -> None:
    """Copy the first trials to the numbers from `first` to before `last`; no two scores are alike."""
    given = {"search": search_id, "first": first, "last": last, "copied": COPIED}
    columns, of_old = columns_of(database, "trials", "id", "number", "mean_test_score")
    old = "old.search_id = :search AND old.number = {0} - {0} / :copied * :copied"
    with database.write() as connection:
        switch_triggers_off(connection)
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        numbers = (
            "WITH RECURSIVE n(number) AS "
            "(SELECT CAST(:first AS integer) UNION ALL SELECT number + 1 FROM n WHERE number + 1 < :last)"
        )
        copied = f"SELECT n.number, old.mean_test_score - n.number / 1e9, {of_old}"
        of_first = f"FROM n JOIN trials old ON {old.format('n.number')}"
        statements = [f"INSERT INTO trials (number, mean_test_score, {columns}) {numbers} {copied} {of_first}"]
        for table in ("split_scores", "curves", "attempts"):
            columns, of_old = columns_of(database, table, "trial_id")
            most = f" AND new.number < {WITH_CURVES}" if table == "curves" else ""
            statements.append(
                f"INSERT INTO {table} (trial_id, {columns}) SELECT new.id, {of_old} FROM trials new "
                "JOIN trials first ON first.search_id = :search "
                "AND first.number = new.number - new.number / :copied * :copied "
                f"JOIN {table} old ON old.trial_id = first.id "
                f"WHERE new.search_id = :search AND new.number >= :first AND new.number < :last{most}"
            )
        for statement in statements:
            names = [name for name in given if f":{name}" in statement]
            connection.execute(text(statement), {name: given[name] for name in names})


def columns_of(database: Database, table: str, *left_out: str) -> tuple[str, str]:
    with database.read() as connection:
        names = list(connection.execute(text(f"SELECT * FROM {table} LIMIT 0")).keys())
    found = [name for name in names if name not in left_out]
    return ", ".join(f'"{name}"' for name in found), ", ".join(f'old."{name}"' for name in found)


def size_mb(database: Database) -> float:
    """Return what the database takes on its disk."""
    sizes = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        "postgresql": "SELECT pg_database_size(current_database())",
    }
    with database.read() as connection:
        return round(connection.exec_driver_sql(sizes[database.dialect]).scalar_one() / 1e6)


def timed(page: Page, path: str) -> dict[str, Any]:
    asked: list[tuple[str, Any]] = []
    started = time.perf_counter()
    with _listening(page.database, asked):
        body = page.ask(path)
    first = time.perf_counter() - started
    if body.status != 200:
        raise SystemExit(f"{path}: {body.status} {body.text[:500]}")
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        page.ask(path)
        seconds.append(time.perf_counter() - started)
    found: dict[str, Any] = {"s": round(min(seconds), 3), "first s": round(first, 3)}
    found |= {"bytes": len(body.body), "queries": len(asked)}
    if found["s"] > AIM_S or found["bytes"] > AIM_BYTES:
        explain = "EXPLAIN QUERY PLAN " if page.database.dialect == "sqlite" else "EXPLAIN (ANALYZE, BUFFERS) "
        with page.database.read() as connection:
            found["plan"] = [
                str(row[-1])
                for statement, parameters in asked
                if statement.lstrip().upper().startswith(("SELECT", "WITH"))
                for row in connection.exec_driver_sql(explain + statement, parameters)
            ]
    return found


@contextlib.contextmanager
def _listening(database: Database, asked: list[tuple[str, Any]]) -> Iterator[None]:
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def looked_on(page: Page, n_onlookers: int) -> dict[str, Any]:
    """Return what one reader and what many of them cost."""
    process = psutil.Process()
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as streams:
        for n_readers in (1, n_onlookers):
            before = process.memory_info().rss
            while page.app.state.changes.n_readers < n_readers:
                streams.enter_context(_stream(page))
            asked: list[tuple[str, Any]] = []
            with _listening(page.database, asked):
                time.sleep(LOOKED_ON_S)
            found[str(n_readers)] = {
                "MB more": round((process.memory_info().rss - before) / 1e6, 1),
                "queries a second": round(len(asked) / LOOKED_ON_S, 1),
            }
    return found


@contextlib.contextmanager
def _stream(page: Page) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as reader:
        request = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {page.token}\r\n\r\n"
        reader.sendall(request.encode())
        answer = http.client.HTTPResponse(reader)
        answer.begin()
        answer.readline()
        yield


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print tables as docs/page.md has them, and below what is over an aim, with the plans of its queries."""
    names = [NAMES[database] for database in results]
    print(f"{options.trials:,} trials; seconds: the best of {REPEATS}, and in brackets the first answer.\n")
    print(f"| address | {' | '.join(f'{name}: s | kB | queries' for name in names)} |")
    print(f"|---|{'--:|--:|--:|' * len(names)}")
    for path in next(iter(results.values()))["answers"]:
        answers = [of["answers"][path] for of in results.values()]
        cells = [
            f"{answer['s']:.2f} ({answer['first s']:.2f}) | {answer['bytes'] / 1e3:,.0f} | {answer['queries']}"
            for answer in answers
        ]
        print(f"| `{path}` | {' | '.join(cells)} |")
    print(
        "\n| database | filled in, s | size, MB | onlookers | MB more | queries a second |\n|---|--:|--:|--:|--:|--:|"
    )
    for name, of in zip(names, results.values(), strict=True):
        for n_readers, cost in of["onlookers"].items():
            filled = f"{of['fill s']:.0f} | {of['MB']:,.0f}"
            print(f"| {name} | {filled} | {n_readers} | {cost['MB more']} | {cost['queries a second']} |")
    over = [
        f"{NAMES[database]}, {path}: {found['s']} s, {found['bytes'] / 1e3:,.0f} kB\n{chr(10).join(found['plan'])}"
        for database, of in results.items()
        for path, found in of["answers"].items()
        if "plan" in found
    ]
    aims = f"{AIM_S} s, {AIM_BYTES // 1000:,} kB and {AIM_MB} MB for {options.onlookers} onlookers"
    print(f"\n{len(over)} answers are over the aims ({aims}).", *over, sep="\n\n")


if __name__ == "__main__":
    main()
