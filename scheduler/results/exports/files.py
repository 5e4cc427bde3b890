"""A search as a file: CSV for spreadsheets, Parquet for frames, JSON for programs. Some hundred trials at a time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from gridfleet.scheduler.reports import as_json, reader
from gridfleet.scheduler.reports.cells import cell_text, csv_line, json_line
from gridfleet.scheduler.reports.whole_trials import WholeTrial, iterate
from gridfleet.scheduler.results.exports.columns import LAST, MEANS, Columns, columns_of
from gridfleet.storage.database.connection import Database

#: Trials of a row group of Parquet.
GROUP = 10_000


def write_csv(database: Database, search: reader.SearchSummary, file: Path) -> int:
    """Write a row for each trial; texts that a spreadsheet would take for formulas get a quote."""
    columns = columns_of(database, search)
    n_trials = 0
    with file.open("w", encoding="utf-8", newline="") as out:
        out.write(csv_line(columns.names))
        for trial in iterate(database, search.id):
            out.write(csv_line([_written(value) for value in columns.cells(trial)]))
            n_trials += 1
    return n_trials


def _written(value: Any) -> Any:
    return value.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds") if isinstance(value, datetime) else value


def write_json(database: Database, search: reader.SearchSummary, file: Path) -> int:
    """Write one object: what `gridfleet report --json` says of the search, and its ``trials``, one a line."""
    n_trials = 0
    with file.open("w", encoding="utf-8") as out:
        head = json_line(as_json.facts_of(search))
        out.write(f'{head[:-1]}, "trials": [')
        for trial in iterate(database, search.id):
            out.write(("," if n_trials else "") + "\n" + json_line(_as_json(trial)))
            n_trials += 1
        out.write("\n]}\n")
    return n_trials


def _as_json(trial: WholeTrial) -> dict[str, Any]:
    last = {name: getattr(trial, name) for name in LAST}
    return {
        "number": trial.number,
        "state": trial.state,
        "params": trial.params,
        **{name: getattr(trial, name) for name in MEANS},
        "split_test_scores": _in_order(trial.test_scores),
        "split_train_scores": _in_order(trial.train_scores),
        **{name: value.isoformat() if isinstance(value, datetime) else value for name, value in last.items()},
    }


def _in_order(scores: dict[str, dict[int, float | None]]) -> dict[str, list[float | None]]:
    return {metric: [by_split[split] for split in sorted(by_split)] for metric, by_split in scores.items()}


def write_parquet(database: Database, search: reader.SearchSummary, file: Path) -> int:
    """Write a row for each trial, with the types that the search's view in SQL has."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = columns_of(database, search)
    schema = pa.schema(list(zip(columns.names, _types(pa, columns), strict=True)))
    trials = iterate(database, search.id)
    n_trials = 0
    with pa.parquet.ParquetWriter(file, schema) as out:
        while rows := [_typed(columns, trial) for trial in islice(trials, GROUP)]:
            arrays = [pa.array(values, type=field.type) for values, field in zip(_turned(rows), schema, strict=True)]
            out.write_table(pa.Table.from_arrays(arrays, schema=schema))
            n_trials += len(rows)
    return n_trials


def _turned(rows: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    return zip(*rows, strict=True)


def _types(pa: Any, columns: Columns) -> list[Any]:
    of_params = {
        "bigint": pa.int64(),
        "double precision": pa.float64(),
        "boolean": pa.bool_(),
        "text": pa.string(),
    }
    time = pa.timestamp("ms", tz="UTC")
    of_last = {"mean_fit_time": pa.float64(), "seed": pa.int64(), "attempt": pa.int64()}
    return [
        pa.int64(),
        pa.string(),
        *(of_params[kind] for kind in columns.params.values()),
        *(pa.float64() for _ in (*MEANS, *columns.scores)),
        *(of_last.get(name, time if name.endswith("_at") else pa.string()) for name in LAST),
    ]


def _typed(columns: Columns, trial: WholeTrial) -> list[Any]:
    """Return a trial's cells, those of a column of texts as texts: lists are there, and numbers now and then."""
    cells = columns.cells(trial)
    for place, kind in enumerate(columns.params.values(), start=2):
        value = cells[place]
        if value is not None and kind == "text" and not isinstance(value, str):
            cells[place] = cell_text(value)
        elif value is not None and kind == "double precision":
            cells[place] = float(value)
    return cells
