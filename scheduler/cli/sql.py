"""What ``gridfleet sql`` shows: the rows of one query that can change nothing, as table, CSV or JSON."""

from __future__ import annotations

import math
from typing import Any, Literal, TextIO

from gridfleet.scheduler.reports.cells import FORMULA_STARTS, cell_text, csv_cell, csv_line, json_line
from gridfleet.scheduler.reports.query import Result, run

__all__ = ["FORMULA_STARTS", "Result", "Style", "csv_cell", "json_line", "run", "write"]

#: Rows that a table shows; CSV and JSON have all.
MAX_TABLE_ROWS = 1_000

Style = Literal["table", "csv", "json"]


def write(result: Result, out: TextIO, *, style: Style) -> None:
    """Write a result.

    Parameters
    ----------
    result : Result
        What to write.
    out : text file
        A file, or standard output.
    style : {"table", "csv", "json"}
        For people, spreadsheets or programs.
    """
    {"table": _write_table, "csv": _write_csv, "json": _write_json}[style](result, out)


def _write_table(result: Result, out: TextIO) -> None:
    from gridfleet.scheduler.reports.tables import console, table

    rows: list[list[Any]] = []
    for row in result.rows:
        if len(rows) == MAX_TABLE_ROWS:
            break
        rows.append(list(map(_table_cell, row)))
    else:
        console(out).print(table(result.columns, rows))
        return
    console(out).print(table(result.columns, rows))
    out.write(f"the first {MAX_TABLE_ROWS} rows; --csv and --json give all\n")


def _table_cell(value: Any) -> Any:
    if isinstance(value, float):  # CSV and JSON have all digits
        return f"{value:.6g}"
    return value if value is None or isinstance(value, int) else cell_text(value)


def _write_csv(result: Result, out: TextIO) -> None:
    from gridfleet.scheduler.reports.plain import plain_lines

    # a program gets texts as they are stored; a terminal would obey their escape sequences
    shown = plain_lines if out.isatty() else str
    out.write(shown(csv_line(result.columns)))
    for row in result.rows:
        out.write(shown(csv_line(row)))


def _write_json(result: Result, out: TextIO) -> None:
    out.write("[")
    for number, row in enumerate(result.rows):
        shown = {column: _json_value(value) for column, value in zip(result.columns, row, strict=True)}
        out.write(("," if number else "") + "\n" + json_line(shown))
    out.write("\n]\n")


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
