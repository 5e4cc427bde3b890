"""How fast workers train Keras models, against scikit-learn's GridSearchCV with scikeras, in one run.

    python benchmarks/training.py [--repeats 3] [--row NAME ...] [--mode exact xla auto] [--json FILE]

Each row runs scikit-learn's search as a process of its own, its imports included, as a user meets it, and the
same search on a fleet of two worker processes. "warm" rows time ``fit`` on a fleet that has imported Keras and
traced nothing yet, "again" rows the same search once more on that fleet, "cold" a process that starts its fleet
and its imports itself. In rows "both warm" and "both again" scikit-learn's ``fit`` alone is timed, in a process whose
joblib workers have imported Keras as well. Every row says whether the scores are equal, split by split, and what both
took of the processor and of memory, with all processes that they started. Medians of the repeats.

    python benchmarks/training.py --calls [--repeats 3] [--case NAME ...] [--json FILE]

measures calls of fit, evaluate and predict against Keras' own, cold and steady, with their memory
(benchmarks/training_cases.py), and prints those first that gain least, also as the table of docs/training.md. Medians
of the repeats, in each of which Keras and the modes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy_floor import floor_of_pima
from process_usage import Usage
from rich.console import Console
from rich.table import Table
from training_cases import CASES
from training_workloads import N_SPLITS, WORKLOADS, ImportKeras, split_scores

from gridfleet import GridSearchCV, open_search

WORKERS = 2
GRIDFLEET = str(Path(sys.executable).parent / "gridfleet")
MODES = ("exact", "xla", "auto")
#: What each row is to reach: times faster than scikit-learn, in exact mode and in the others.
AIMS: dict[str, dict[str, float | None]] = {
    "pima-2 warm": {"exact": 15, "xla": 25},
    "pima-2 again": {"exact": 35, "xla": 60},
    "pima-2 both warm": {"exact": None, "xla": None},
    "pima-2 both again": {"exact": None, "xla": None},
    "pima-16 warm": {"exact": 15, "xla": 50},
    "pima-2 cold": {"exact": 6, "xla": 8},
    "pima-16 cold": {"exact": 6, "xla": 8},
    "digits-mlp warm": {"exact": 5, "xla": 8},
    "digits-conv warm": {"exact": 0.95, "xla": None},
    "digits-lstm warm": {"exact": 0.95, "xla": None},
    "digits-mlp both warm": {"exact": None, "xla": None},
    "digits-conv both warm": {"exact": None, "xla": None},
    "digits-lstm both warm": {"exact": None, "xla": None},
    "large step": {"exact": 0.97, "xla": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row", nargs="+", choices=AIMS, default=list(AIMS), metavar="NAME", help=", ".join(AIMS))
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training.json"), help="where figures go")
    parser.add_argument("--calls", action="store_true", help="calls of Keras' methods instead of searches")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.calls:
        for case in options.case:
            figures[case] = measure_call(case, options.repeats)
            write(options.json.with_stem("training-calls"), figures)
        show_calls(figures)
        return

    for name in ("pima-2", "pima-16", "digits-mlp", "digits-conv", "digits-lstm"):
        rows = [row for row in options.row if row.split()[0] == name]
        if rows:
            figures.update(measure(name, rows, options.mode, options.repeats))
            write(options.json, figures)  # half an hour is long: what is measured is kept
    if "large step" in options.row:
        figures["large step"] = large_step(options.repeats)
    floor = floor_of_pima(epochs=100)
    write(options.json, figures, floor=floor)
    show({row: figures[row] for row in options.row}, floor)


def write(file: Path, figures: dict[str, Any], **more: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {"cores": os.cpu_count(), "aims": AIMS, "figures": figures, **more}
    file.write_text(json.dumps(report, indent=2) + "\n")


def measure(name: str, rows: list[str], modes: list[str], repeats: int) -> dict[str, Any]:
    """Run one search by scikit-learn and by fleets in each mode."""
    figures: dict[str, Any] = {row: {"modes": {}} for row in rows}
    expected: Any = None
    for options in sorted({scikit_learn_options(row) for row in rows}):
        runs = [run_process(name, *options) for _ in range(repeats)]
        expected = runs[0]["scores"] if expected is None or "--refit" not in options else expected
        for row in rows:
            if scikit_learn_options(row) == options:
                figures[row]["scikit-learn"] = medians(runs)
    for mode in modes:
        of_fleets = [run_on_fleets(name, rows, mode) for _ in range(repeats)]
        for row in rows:
            runs = [run[row.replace("both ", "")] for run in of_fleets]
            difference = max(np.abs(np.subtract(run["scores"], expected)).max() for run in runs)
            took, by_scikit_learn = medians(runs), figures[row]["scikit-learn"]
            figures[row]["modes"][mode] = {
                **took,
                "times faster": by_scikit_learn["seconds"] / took["seconds"],
                "times less of the processor": by_scikit_learn["cpu, s"] / took["cpu, s"],
                "largest difference of scores": float(difference),
                **runs[0].get("trial", {}),
            }
    return figures


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu, s", "peak, MB")}


def scikit_learn_options(row: str) -> tuple[str, ...]:
    return ("--refit",) if row.endswith("cold") else ("--warm",) if "both" in row else ()


def run_on_fleets(name: str, rows: list[str], mode: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if any(row.endswith(("warm", "again")) for row in rows):
        with warm_fleet():
            for row in (f"{name} warm", f"{name} again"):
                if row == f"{name} warm" or any(one.replace("both ", "") == row for one in rows):
                    found[row] = run_on_fleet(name, mode)
    if f"{name} cold" in rows:
        found[f"{name} cold"] = run_process(name, "--refit", "--fleet", mode)
    return found


def run_on_fleet(name: str, mode: str) -> dict[str, Any]:
    workload = WORKLOADS[name]
    search_name = f"{name}-{time.time_ns()}"
    grid = GridSearchCV(
        workload.estimator(), workload.space, cv=N_SPLITS, refit=False, fit_mode=mode, verbose=0, name=search_name
    )
    X, y = workload.data()
    started = time.perf_counter()
    with Usage(os.getpid()) as usage:  # which started the fleet
        grid.fit(X, y)
    seconds = time.perf_counter() - started
    took = {"seconds": seconds, "cpu, s": usage.cpu_s, "peak, MB": usage.peak_mb}
    return {**took, "scores": split_scores(grid.cv_results_), "trial": mean_times(search_name)}


def mean_times(search_name: str) -> dict[str, Any]:
    """Say where a trial's time went, from the columns of ``trials``."""
    phases = ("build", "trace", "compile", "train", "score", "record")
    columns = ", ".join(f"avg({phase}_time) AS {phase}" for phase in phases)
    query = f"SELECT {columns}, min(fit_mode) AS mode FROM trials WHERE search_id = {open_search(search_name).id}"
    command = [GRIDFLEET, "sql", "--json", query]
    (row,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"seconds of a trial": row}


@contextmanager
def warm_fleet() -> Iterator[None]:
    """Start a fleet in an empty folder whose processes have imported Keras and traced nothing."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        fleet = subprocess.Popen([GRIDFLEET, "up", "--workers", str(WORKERS)], stdout=subprocess.DEVNULL)
        try:
            while not Path(".gridfleet/fleet.json").exists():
                if fleet.poll() is not None:
                    raise RuntimeError(f"`gridfleet up` ended with status {fleet.returncode}")
                time.sleep(0.1)
            grid = GridSearchCV(ImportKeras(), {"number": list(range(WORKERS * 4))}, cv=2, refit=False, verbose=0)
            grid.fit(np.zeros((4, 1)))
            yield
        finally:
            fleet.send_signal(signal.SIGINT)
            fleet.wait()
            os.chdir(before)


def run_process(name: str, *options: str) -> dict[str, Any]:
    """Run a search as a script, in an empty folder; by scikit-learn, or with ``--fleet`` by one that it starts.

    Measured from outside, but for ``--warm``, whose script measures the search alone.
    """
    script = Path(__file__).parent / "training_workloads.py"
    command = [sys.executable, str(script), name, *options]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with Usage(process.pid) as usage:
            output, _ = process.communicate()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{name} ended with status {process.returncode}")
    printed = json.loads(output.splitlines()[-1])
    if "--warm" in options:
        return dict(printed)
    return {"scores": printed["scores"], "seconds": seconds, "cpu, s": usage.cpu_s, "peak, MB": usage.peak_mb}


def large_step(repeats: int) -> dict[str, Any]:
    """Time one fit whose steps are all arithmetic, by Keras and compiled, in this process, one after the other."""
    import keras

    from gridfleet.worker.compiled_fit import compiled_fit

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2048, 4096)).astype("float32"), rng.normal(size=(2048, 1)).astype("float32")

    def usage_of(mode: str) -> dict[str, Any]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        dense = [keras.layers.Dense(4096, activation="relu") for _ in range(2)]
        model = keras.Sequential([keras.Input((4096,)), *dense, keras.layers.Dense(1)])
        model.compile(loss="mse", optimizer="sgd")
        with compiled_fit(mode):
            started = time.perf_counter()
            with Usage(os.getpid()) as usage:
                history = model.fit(X, y, batch_size=512, epochs=3, verbose=0)
            seconds = time.perf_counter() - started
        losses = history.history["loss"]
        return {"losses": losses, "seconds": seconds, "cpu, s": usage.cpu_s, "peak, MB": usage.peak_mb}

    runs = {mode: [usage_of(mode) for _ in range(repeats)] for mode in ("keras", "exact")}
    by_keras, exact = medians(runs["keras"]), medians(runs["exact"])
    difference = max(np.abs(np.subtract(run["losses"], runs["keras"][0]["losses"])).max() for run in runs["exact"])
    ratios = {
        "times faster": by_keras["seconds"] / exact["seconds"],
        "times less of the processor": by_keras["cpu, s"] / exact["cpu, s"],
    }
    exact |= {**ratios, "largest difference of scores": float(difference)}
    return {"scikit-learn": by_keras, "modes": {"exact": exact}}


def measure_call(case: str, repeats: int) -> dict[str, Any]:
    """Run a case of training_cases.py in its modes, one after the other, in processes of their own with one thread."""
    script = Path(__file__).parent / "training_cases.py"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")

    def run(mode: str) -> Any:
        command = [sys.executable, str(script), case, mode]
        done = subprocess.run(command, check=True, env=os.environ | threads, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    runs = [{mode: run(mode) for mode in CASES[case].modes} for _ in range(repeats)]
    return {mode: _median_of_calls([one[mode] for one in runs]) for mode in CASES[case].modes}


def _median_of_calls(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("cold, s", "steady, s", "peak, MB", "growth, MB")
    results = sorted({run["result"] for run in runs})
    return {
        **runs[0],
        **{name: statistics.median(run[name] for run in runs) for name in names},
        "result": results[0] if len(results) == 1 else results,
        "runs": runs,
    }


def show_calls(figures: dict[str, Any]) -> None:
    table = Table(title="against Keras' own methods, in seconds of the processor")
    columns = ("call", "mode", "cold", "steady", "times faster, cold", "steady", "peak, MB", "growth, MB", "result")
    for column in columns:
        table.add_column(column)
    rows = []
    for name, modes in figures.items():
        expected = modes["keras"]
        for mode, one in modes.items():
            faster = [expected[phase] / one[phase] for phase in ("cold, s", "steady, s")]
            seconds = f"{one['cold, s']:.2f}", f"{one['steady, s']:.4f}"
            memory = f"{one['peak, MB']:.0f}", f"{one['growth, MB']:.1f}"
            equal = "equal" if one["result"] == expected["result"] else "other"
            rows.append((min(faster), (name, mode, *seconds, *(f"{one:.2f}x" for one in faster), *memory, equal)))
    for _, row in sorted(rows):
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    for line in _lines_for_docs(figures):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines_for_docs(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the table of docs/training.md: of `exact` and `auto`, those first that gain least."""
    speed = ("`exact`: first call", "later calls", "`auto`: first call", "later calls")
    columns = ("call", *speed, "MB: Keras", "`exact`", "`auto`")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    rows = []
    for name, modes in figures.items():
        by_keras, ours = modes["keras"], [modes["exact"], modes["auto"]]
        faster = [by_keras[phase] / one[phase] for one in ours for phase in ("cold, s", "steady, s")]
        megabytes = [f"{one['peak, MB']:.0f}" for one in (by_keras, *ours)]
        rows.append((min(faster), [CASES[name].title, *map(_times, faster), *megabytes]))
    for _, row in sorted(rows):
        yield f"| {' | '.join(row)} |"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.05 else f"{ratio:.2f}x"


def show(figures: dict[str, Any], floor: dict[str, float]) -> None:
    """Print the rows, those first that gain least."""
    table = Table(title=f"against scikit-learn + scikeras, {os.cpu_count()} cores, {WORKERS} worker processes")
    columns = ("scikit-learn", "gridfleet", "times faster", "of the processor", "peak, MB", "aim", "scores")
    for column in ("row", "mode", *columns):
        table.add_column(column)
    lines = []
    for row, figure in figures.items():
        for mode, one in figure["modes"].items():
            aim = AIMS[row]["exact" if mode == "exact" else "xla"]
            difference, other = one["largest difference of scores"], figure["scikit-learn"]
            equal = "equal" if difference == 0 else f"within {difference:.1e}"
            faster, less = one["times faster"], one["times less of the processor"]
            seconds = f"{other['seconds']:.2f} s", f"{one['seconds']:.2f} s"
            reached = "-" if aim is None else f"{aim:g}x {'reached' if faster >= aim else 'MISSED'}"
            memory = f"{other['peak, MB']:.0f}, {one['peak, MB']:.0f}"
            lines.append((less, (row, mode, *seconds, f"{faster:.2f}x", f"{less:.2f}x", memory, reached, equal)))
    for _, line in sorted(lines):
        table.add_row(*line)
    console = Console(width=150)
    console.print(table)
    _show_times(console, figures)
    console.print(
        f"floor: one fit of pima-2's model in plain numpy takes {floor['numpy, s']:.2f} s; "
        f"exact {floor['exact, s']:.2f} s ({floor['exact, s'] / floor['numpy, s']:.2f} of it), "
        f"xla {floor['xla, s']:.3f} s ({floor['xla, s'] / floor['numpy, s']:.2f} of it), programs at hand"
    )


def _show_times(console: Console, figures: dict[str, Any]) -> None:
    table = Table(title="mean seconds of a trial (columns of the table trials)")
    phases = ("build", "trace", "compile", "train", "score", "record")
    for column in ("row", "mode", *phases):
        table.add_column(column)
    for row, figure in figures.items():
        for mode, one in figure["modes"].items():
            if "seconds of a trial" in one:
                times = one["seconds of a trial"]
                table.add_row(row, mode, *(f"{times[phase] or 0:.3f}" for phase in phases))
    console.print(table)


if __name__ == "__main__":
    main()
