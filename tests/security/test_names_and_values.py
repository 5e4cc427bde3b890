"""Odd names and values through everything that stores and shows them: refused in a sentence, or shown as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sqlalchemy import func, select, text

from gridfleet import GridfleetError, GridSearchCV, SearchHandle, submit
from gridfleet.scheduler.cli import sql
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from tests.faults.support import X, Y
from tests.stored_searches import WORKERS, claim, record, store_pima
from tests.thinning import some_of

#: Markup first, for a notebook shows five rows only.
ODD = {
    "markup": "<img src=x onerror=alert(1)>",
    "a script": "</td><script>alert(1)</script>",
    "a quote": "it's",
    "a double quote": 'a"b',
    "SQL": "x'; DROP TABLE trials; --",
    "SQL for a name": '"; DROP TABLE trials; --',
    "a comment": "/* x */ -- x",
    "per cent": "%s %(a)s %%",
    "a colon": ":a ::b",
    "a backslash": "a\\'b\\",
    "console markup": "[bold red]a[/]",
    "a formula": "=cmd|'/c calc'!A1",
    "a formula with plus": "+1+1",
    "a formula with at": "@SUM(A1)",
    "a template": "{{7*7}} ${7*7}",
    "right to left": "abc\u202edcba",
    "no width": "a\u200bb\ufeffc",
    "an escape sequence": "\x1b]0;title\x07\x1b[2Jx",
    "a control sequence of one byte": "\x9b2Jx",
    "lines": "a\r\nb\nc",
    "a tab": "\ta",
    "ten kilobytes": "x" * 10_000,
    "ten kilobytes of quotes": "'" * 10_000,
    "a NUL": "a\x00b",
    "half a character": "a\ud800b",
    "a letter beyond the first plane": "🌲",
    "nothing": "",
}


class Anything(ClassifierMixin, BaseEstimator):
    """Has whatever hyperparameters it is given."""

    def __init__(self, **params: Any) -> None:
        self.params = params

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return dict(self.params)

    def set_params(self, **params: Any) -> Anything:
        self.params |= params
        return self

    def fit(self, X: Any, y: Any) -> Anything:
        return self

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"Anything({self.params})"


@pytest.fixture
def shown(gridfleet: Callable[..., tuple[int, str, str]]) -> Callable[[SearchHandle], dict[str, str]]:
    """Show a search in every way: ``shown(handle)["report"]``."""

    def show(handle: SearchHandle) -> dict[str, str]:
        view = f'SELECT * FROM "{handle.name}"'
        commands = {
            "list": ["list"],
            "report": ["report", handle.name],
            "best": ["best", handle.name],
            "best as JSON": ["best", handle.name, "--json"],
            "table": ["sql", view],
            "json": ["sql", view, "--json"],
            "params": ["sql", "SELECT params FROM trials", "--json"],
            "csv": ["sql", view, "--csv"],
        }
        outputs = {}
        for way, command in commands.items():
            status, output, errors = gridfleet(*command)
            assert (status, errors) == (0, ""), (way, errors)
            outputs[way] = output
        return {**outputs, "html": handle._repr_html_(), "repr": repr(handle)}

    return show


def _assert_only_text(outputs: dict[str, str]) -> None:
    for way, output in outputs.items():
        if way != "csv":  # for programs: as it is stored, where it is not shown on a terminal
            assert all(char.isprintable() or char == "\n" for char in output), way
    for forbidden in ("<img", "<script", "</td><"):
        rows = outputs["html"].replace("</td><td>", "").replace("</td></tr>", "")
        assert forbidden not in rows
    json.loads(outputs["json"])
    for row in csv.reader(io.StringIO(outputs["csv"], newline="")):
        assert not [cell for cell in row if cell.startswith(sql.FORMULA_STARTS) and not _is_number(cell)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _assert_whole(fleet: Fleet, n_searches: int) -> None:
    """Assert that the database is as it should be: its tables, the other search, nothing more."""
    with fleet.database.read() as connection:
        of_no_refit = select(func.count()).where(Search.refit_of.is_(None))
        assert connection.execute(of_no_refit).scalar_one() == n_searches
        assert connection.execute(text("SELECT COUNT(*) FROM pima")).scalar_one() == 5
        if fleet.database.dialect == "sqlite":
            assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"


def _finish(fleet: Fleet, handle: SearchHandle) -> None:
    with fleet.database.read() as connection:
        numbers = connection.execute(select(Trial.number).where(Trial.search_id == handle.id)).scalars().all()
    for number in numbers:
        record(fleet.database, claim(fleet.database, handle.id, number, WORKERS[0]), (0.5, 0.5))


def test_odd_search_names_are_refused_in_a_sentence(fleet: Fleet, configured: Settings) -> None:
    store_pima(configured, fleet.database)
    search = GridSearchCV(Anything(C=1), {"C": [1]})

    for name in ODD.values():
        with pytest.raises(GridfleetError, match="can't be a search's name") as refused:
            submit(search, X, Y, name=name)
        assert str(refused.value).isprintable()

    _assert_whole(fleet, n_searches=1)


def test_odd_values_of_hyperparameters_are_shown_as_text(
    fleet: Fleet, configured: Settings, shown: Callable[[SearchHandle], dict[str, str]]
) -> None:
    store_pima(configured, fleet.database)

    handle = submit(GridSearchCV(Anything(C="x"), {"C": list(ODD.values())}, cv=2), X, Y, name="odd")
    _finish(fleet, handle)

    outputs = shown(handle)
    _assert_only_text(outputs)
    assert "&lt;img src=x" in outputs["html"]
    assert "[bold red]a[/]" in outputs["table"]
    assert len(json.loads(outputs["json"])) == len(ODD)
    _assert_whole(fleet, n_searches=2)


@pytest.mark.parametrize("part", some_of([1, 0, 2, 3], every=4))
def test_odd_names_of_hyperparameters_are_refused_in_a_sentence_or_shown_as_text(
    part: int, fleet: Fleet, configured: Settings, shown: Callable[[SearchHandle], dict[str, str]]
) -> None:
    store_pima(configured, fleet.database)
    stored = 0
    for odd, name in list(ODD.items())[part::4]:
        search = GridSearchCV(Anything(**{name: 1}), {name: [1, 2]}, cv=2)
        handle, sentence = _submit(search, odd)
        assert sentence.isprintable()
        if handle is not None:
            stored += 1
            _finish(fleet, handle)
            _assert_only_text(shown(handle))

    assert stored >= 2
    _assert_whole(fleet, n_searches=1 + stored)


def _submit(search: GridSearchCV, name: str) -> tuple[SearchHandle | None, str]:
    try:
        return submit(search, X, Y, name=name), ""
    except GridfleetError as refused:
        return None, str(refused)


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("=+-@\t\r\n '\"0.e1"), max_size=6)))
def test_no_text_in_a_csv_cell_is_a_formula(value: str) -> None:
    cell = sql.csv_cell(value)

    assert not cell.startswith(sql.FORMULA_STARTS)
    assert cell.removeprefix("'") == value.removeprefix("'")


@settings(deadline=None)
@given(st.one_of(st.integers(), st.floats(), st.none(), st.booleans()))
def test_numbers_in_csv_cells_stay_numbers(value: Any) -> None:
    assert sql.csv_cell(value) is value


class Terminal(io.StringIO):
    """Where somebody looks."""

    def isatty(self) -> bool:
        return True


def test_csv_on_a_terminal_shows_escape_sequences_and_in_a_file_keeps_them() -> None:
    written = {}
    for place in (io.StringIO(), Terminal()):
        sql.write(sql.Result(["a"], iter([["\x1b[2J\u202e"]])), place, style="csv")
        written[place.isatty()] = place.getvalue()

    assert written == {False: "a\n\x1b[2J\u202e\n", True: "a\n\\x1b[2J\\u202e\n"}


@settings(deadline=None)
@given(st.text())
def test_json_holds_every_text_and_shows_no_control_character(value: str) -> None:
    line = sql.json_line({"a": value})

    assert json.loads(line) == {"a": value}
    assert line.isprintable()
