"""Values as programs and spreadsheets read them: a line of CSV that is no formula, a line of strict JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

#: With these a spreadsheet takes a cell for a formula; the wide ones in a Japanese one.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv_cell(value: Any) -> Any:
    """Return a cell that a spreadsheet does not take for a formula: texts that look like one get a quote."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = cell_text(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def csv_line(cells: Sequence[Any]) -> str:
    """Return a line of CSV, with its end."""
    line = io.StringIO(newline="")
    # Python 3.11 quotes a carriage return only where it belongs to the end of a line
    csv.writer(line, lineterminator="\r\n").writerow(map(csv_cell, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def cell_text(value: Any) -> str:
    """Return a value as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def json_line(value: Any) -> str:
    """Return strict JSON in one line, with escapes for all that a terminal would obey or not show."""
    line = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else _json_escape(char) for char in line)


def _json_escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]
