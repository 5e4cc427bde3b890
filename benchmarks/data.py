"""What data cost on their way to the workers: through SQLite, through PostgreSQL, by reference, and by loky's maps.

    python benchmarks/data.py [--megabytes 10 100 1000 2500] [--ways loky sqlite postgresql reference] [--json FILE]

One float64 array of each size, on two warm worker processes, by each way in turn. Fits see ten rows, so that what is
timed are the data: ``submit`` is the call's time, ``first trial`` the time from that call until the first trial is
over, ``second search`` another search of the same data in the same script. The digest of what is read by reference is
given, and is computed by the workers. ``script`` is the most memory that the script ever had resident, its array
included, ``worker`` the most that one worker process has of its own and its share of what it shares (PSS), ``database``
the most that one of the server's processes ever had resident. ``disk`` is what the database grew by, ``cache`` what
lies in the cache of the workers, or in loky's files. Prints a table and writes JSON. Everything runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import sklearn.model_selection
from overhead import WORKERS, fleet_on, workers_of
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator
from sklearn.model_selection import ShuffleSplit

from gridfleet import DataRef, GridSearchCV, submit

WAYS = ("loky", "sqlite", "postgresql", "reference")
COLUMNS = 1_000
#: What the first trial of 1 GB may take on SQLite, in units of loky's.
AIM = 1.5
MB = 1_000_000


class Glance(BaseEstimator):
    """An estimator that looks at the rows that it gets, and learns nothing."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def fit(self, X: Any, y: Any = None) -> Glance:
        self.sum_ = float(np.sum(X))
        return self

    def score(self, X: Any, y: Any = None) -> float:
        return self.sum_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1_000, 2_500], help="sizes of X")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS, help="only these")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/data.json"), help="where figures go")
    parser.add_argument("--script", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.script:
        print(json.dumps(be_the_script(options.script[0], Path(options.script[1]))))
        return
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.megabytes:
            file = Path(folder) / "X.npy"
            save(file, size)
            for way in options.ways:
                figures[f"{size} MB, {way}"] = measure(way, file, Path(folder) / f"{way}-{size}")
            file.unlink()
    show(figures)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"cores": os.cpu_count(), "aim": AIM, "figures": figures}, indent=2) + "\n")


def save(file: Path, megabytes: int) -> None:
    array = np.lib.format.open_memmap(file, "w+", np.float64, (megabytes * MB // 8 // COLUMNS, COLUMNS))
    rng = np.random.default_rng(megabytes)
    for start in range(0, len(array), 1_000):
        part = array[start : start + 1_000]
        part[:] = rng.random(part.shape)
    array.flush()


def measure(way: str, file: Path, folder: Path) -> dict[str, Any]:
    if way == "loky":
        return run_script(way, file, {})
    kind = "postgresql" if way == "postgresql" else "sqlite"
    with fleet_on(kind, folder) as fleet, workers_of(fleet) as worker:
        before = size_of_database(fleet, folder)
        figures = run_script(way, file, fleet.settings.as_variables())
        processes = psutil.Process(worker.pid).children(recursive=True)
        figures["worker, MB"] = max(pss_of(process) for process in processes) / MB
        if kind == "postgresql":
            figures["database, MB"] = most_of_a_server_process(folder) / MB
        figures["disk, MB"] = (size_of_database(fleet, folder) - before) / MB
        figures["cache, MB"] = sum(entry.stat().st_size for entry in (folder / "cache").glob("?" * 64)) / MB
    return figures


def run_script(way: str, file: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Run the searches in a process of their own, whose memory is what they need."""
    command = [sys.executable, __file__, "--script", way, str(file)]
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def be_the_script(way: str, file: Path) -> dict[str, Any]:
    n_rows = np.load(file, mmap_mode="r").shape[0]
    y = np.arange(n_rows) % 2
    X: Any = DataRef(file, sha256=digest_of(file)) if way == "reference" else np.load(file)
    small = np.zeros((100, 2)), np.zeros(100)
    if way == "loky":
        figures = searches_of_loky(X, y, small)
    else:
        search(GridSearchCV, 0, verbose=0).fit(*small)  # connections are open, a worker process has begun
        started = time.perf_counter()
        handle = submit(search(GridSearchCV, 1), X, y)
        submitted = time.perf_counter()
        handle.wait()
        first = time.perf_counter()
        submit(search(GridSearchCV, 2), X, y).wait()
        figures = {
            "submit, s": submitted - started,
            "first trial, s": first - started,
            "second search, s": time.perf_counter() - first,
        }
    return {**figures, "script, MB": most_memory(os.getpid()) / MB}


def searches_of_loky(X: Any, y: Any, small: tuple[Any, Any]) -> dict[str, Any]:
    search(sklearn.model_selection.GridSearchCV, *range(2 * WORKERS)).fit(*small)
    with most_in_files() as files:
        started = time.perf_counter()
        search(sklearn.model_selection.GridSearchCV, 1).fit(X, y)
        first = time.perf_counter()
        search(sklearn.model_selection.GridSearchCV, 2).fit(X, y)
        ended = time.perf_counter()
        children = psutil.Process().children(recursive=True)
        figures = {
            "first trial, s": first - started,
            "second search, s": ended - first,
            "worker, MB": max(pss_of(process) for process in children) / MB,
        }
    return {**figures, "cache, MB": files[0] / MB}


def search(kind: Any, *numbers: int, **options: Any) -> Any:
    """Return a search of some candidates on one split of ten rows."""
    split = ShuffleSplit(1, train_size=10, test_size=10, random_state=0)
    return kind(Glance(), {"number": list(numbers)}, cv=split, refit=False, n_jobs=WORKERS, **options)


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def most_in_files() -> Iterator[list[int]]:
    """Note the most bytes that joblib's folders of maps have, which go when their call ends."""
    found, is_over = [0], threading.Event()
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]

    def look() -> None:
        while not is_over.wait(0.02):
            files = [file for place in places for file in place.glob(f"joblib_memmapping_folder_{os.getpid()}_*/*.pkl")]
            with contextlib.suppress(FileNotFoundError):
                found[0] = max(found[0], sum(file.stat().st_size for file in files))

    watcher = threading.Thread(target=look)
    watcher.start()
    yield found
    is_over.set()
    watcher.join()


def pss_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def most_memory(pid: int) -> int:
    """Return the most bytes that a process ever had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0 if found is None else int(found[1]) * 1024


def most_of_a_server_process(folder: Path) -> int:
    servers = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "postgres"]
    ours = [process for process in servers if process.cwd().startswith(str(folder))]
    return max(most_memory(process.pid) for process in ours)


def size_of_database(fleet: Any, folder: Path) -> int:
    if fleet.database.dialect == "sqlite":
        return sum(file.stat().st_size for file in folder.glob("bench.db*"))
    from sqlalchemy import text

    with fleet.database.read() as connection:
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def show(figures: dict[str, dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for measured in figures.values() for name in measured))
    aim = f"aim: first trial of 1 GB on SQLite {AIM} times loky's"
    title = f"data on {os.cpu_count()} cores, {WORKERS} worker processes; {aim}"
    table = Table("data", *names, title=title)
    for name, measured in figures.items():
        table.add_row(name, *(f"{measured[key]:.2f}" if key in measured else "" for key in names))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
