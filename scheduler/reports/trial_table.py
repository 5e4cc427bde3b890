"""A page of a search's table of trials: chosen, sorted and cut in SQL, whatever the search's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from gridfleet.scheduler.reports.param_values import WORDS, as_number, as_text
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import QueryError
from gridfleet.storage.schema import Trial, TrialState

#: Rows of a page.
PAGE_SIZE = 50
#: Trials among which is sorted or chosen by what has no index: the best of the search.
EXAMINED = 20_000
#: Conditions at once.
MAX_CONDITIONS = 8
#: What scored trials are called in `TrialChoice.shown`.
SCORED, ALL = "scored", "all"
SHOWN = (SCORED, *(state for state in TrialState if state != TrialState.COMPLETED), ALL)
#: The ways to compare.
COMPARISONS = ("=", "≠", "<", "≤", ">", "≥")
#: Beside hyperparameters, what trials are sorted and chosen by.
COLUMNS = {
    "mean_test_score": Trial.mean_test_score,
    "std_test_score": Trial.std_test_score,
    "mean_fit_time": Trial.mean_fit_time,
    "attempt": Trial.attempt,
    "peak_memory_mb": Trial.peak_memory_mb,
}
NUMBER, SCORE = "number", "mean_test_score"
#: What stands before the name of a hyperparameter, for one may be called as a column is.
PARAM = "params."


class Order(StrEnum):
    """Which end of a column comes first."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that trials have to fulfil, such as ``params.units ≥ 32``.

    Parameters
    ----------
    column : str
        One of `COLUMNS`, or ``params.`` and a hyperparameter's name.
    comparison : str
        One of `COMPARISONS`.
    value : str
        A number, a text, or Python's None, True or False.
    """

    column: str
    comparison: str
    value: str

    def __str__(self) -> str:
        return f"{self.column.removeprefix(PARAM)} {self.comparison} {self.value}"


@dataclass(frozen=True, slots=True)
class TrialChoice:
    """Which trials are asked for, and in which order.

    Parameters
    ----------
    shown : str, default="all"
        One of `SHOWN`.
    sort : str, default="number"
        ``number``, one of `COLUMNS`, or ``params.`` and a hyperparameter's name. By a score, only what has one.
    order : Order, default="up"
        The smallest first, or the largest.
    conditions : sequence of Condition, default=()
        All have to hold.
    page : int, default=1
        From 1 on.
    """

    shown: str = ALL
    sort: str = NUMBER
    order: Order = Order.UP
    conditions: Sequence[Condition] = ()
    page: int = 1

    @property
    def needs_look(self) -> bool:
        """Whether no index has the answer, so that each trial has to be looked at."""
        return bool(self.conditions) or self.sort not in (NUMBER, SCORE)


@dataclass(frozen=True, slots=True)
class TrialLine:
    """One trial of the table."""

    number: int
    state: str
    mean_test_score: float | None
    std_test_score: float | None
    mean_fit_time: float | None
    params: Mapping[str, Any]
    attempt: int
    worker_id: str | None
    error_type: str | None
    peak_memory_mb: int | None
    fit_mode: str | None


@dataclass(frozen=True, slots=True)
class TrialPage:
    """A page of the table.

    Parameters
    ----------
    trials : list of TrialLine
        Its rows.
    n_found : int
        Trials on all pages.
    page, n_pages : int
        Which page it is, from 1 on, of how many.
    n_examined : int or None
        How many of the best trials were looked at; None: all that there are.
    """

    trials: list[TrialLine]
    n_found: int
    page: int
    n_pages: int
    n_examined: int | None


def trial_page(
    database: Database, search_id: int, n_trials: int, choice: TrialChoice, *, size: int = PAGE_SIZE
) -> TrialPage:
    """Return a page of a search's trials.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id, n_trials : int
        The search's id, and how many trials it has.
    choice : TrialChoice
        Which trials, in which order.
    size : int, default=50
        Rows of a page.

    Raises
    ------
    QueryError
        If the choice names what there is not.
    """
    column = None if choice.sort == NUMBER else _columns(database.dialect, choice.sort)
    conditions = [_condition(database.dialect, one) for one in choice.conditions[:MAX_CONDITIONS]]
    is_cut = choice.needs_look and n_trials > EXAMINED
    among = [Trial.search_id == search_id, *_shown(choice), *conditions]
    if is_cut:
        best = (
            select(Trial.number)
            .where(Trial.search_id == search_id, Trial.mean_test_score.is_not(None))
            .order_by(Trial.mean_test_score.desc(), Trial.number)
            .limit(EXAMINED)
        )
        among.append(Trial.number.in_(best))
    with database.read() as connection:
        n_found = _count(connection, n_trials, choice, among)
        n_pages = max(1, math.ceil(n_found / size))
        page = min(max(choice.page, 1), n_pages)
        # numbers first, which are in the indexes; whole rows of this page only
        numbers = connection.execute(
            select(Trial.number)
            .where(*among)
            .order_by(*_order(column, choice.order))
            .limit(size)
            .offset((page - 1) * size)
        ).scalars()
        trials = _lines(connection, search_id, list(numbers))
    return TrialPage(trials, n_found, page, n_pages, EXAMINED if is_cut else None)


def _shown(choice: TrialChoice) -> list[ColumnElement[bool]]:
    if choice.shown not in SHOWN:
        raise QueryError(f"trials that are {choice.shown!r} are not shown apart; ask for {', '.join(SHOWN)}")
    conditions: list[ColumnElement[bool]] = []
    if choice.shown == SCORED or choice.sort == SCORE:
        conditions.append(Trial.mean_test_score.is_not(None))
    if choice.shown not in (SCORED, ALL):
        conditions.append(Trial.state == choice.shown)
    return conditions


def _count(connection: Connection, n_trials: int, choice: TrialChoice, among: Sequence[ColumnElement[bool]]) -> int:
    if not choice.conditions and choice.shown == ALL and choice.sort == NUMBER:
        return n_trials
    if not choice.conditions and choice.shown in (SCORED, ALL) and choice.sort in (NUMBER, SCORE):
        # in the order of ix_trials_best, so that PostgreSQL counts in it and not in the table
        scored = select(Trial.number).where(*among).order_by(Trial.mean_test_score.desc(), Trial.number)
        return connection.execute(select(func.count()).select_from(scored.subquery())).scalar_one()
    return connection.execute(select(func.count()).select_from(Trial).where(*among)).scalar_one()


def _columns(dialect: str, name: str) -> Sequence[Any]:
    """Return what a column is sorted by: numbers before texts."""
    if name in COLUMNS:
        return (COLUMNS[name],)
    param = _param(name)
    return as_number(dialect, param), as_text(dialect, param)


def _param(column: str) -> str:
    if not column.startswith(PARAM) or "\x00" in column:
        raise QueryError(f"there is no column {column!r}; there are number, {', '.join(COLUMNS)} and {PARAM}NAME")
    return column.removeprefix(PARAM)


def _order(columns: Sequence[Any] | None, order: Order) -> list[Any]:
    if columns is None:
        return [Trial.number.desc() if order == Order.DOWN else Trial.number]
    if list(columns) == [Trial.mean_test_score]:  # no NULL is among them, and this is the order of ix_trials_best
        if order == Order.DOWN:
            return [Trial.mean_test_score.desc(), Trial.number]
        return [Trial.mean_test_score, Trial.number.desc()]
    sides = [column.desc() if order == Order.DOWN else column.asc() for column in columns]
    return [*(side.nulls_last() for side in sides), Trial.number]


def _condition(dialect: str, condition: Condition) -> ColumnElement[bool]:
    value = condition.value.strip().replace("\x00", "")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if condition.comparison not in COMPARISONS:
        raise QueryError(f"{condition.comparison!r} compares nothing; there are {' '.join(COMPARISONS)}")
    if condition.column in COLUMNS:
        if not math.isfinite(number):
            raise QueryError(f"{condition.column} is compared with a number, and {value[:40]!r} is none")
        return _compared(COLUMNS[condition.column], condition.comparison, number)
    param = _param(condition.column)
    text = as_text(dialect, param)
    is_text = _compared(text, condition.comparison, WORDS.get(value, value))
    if not math.isfinite(number):
        return is_text
    is_number = _compared(as_number(dialect, param), condition.comparison, number)
    if condition.comparison == "≠":
        return and_(text.is_not(None), or_(is_number, as_number(dialect, param).is_(None)))
    return or_(is_number, is_text) if condition.comparison == "=" else is_number


def _compared(expression: Any, comparison: str, value: Any) -> ColumnElement[bool]:
    compared: ColumnElement[bool] = {
        "=": expression.__eq__,
        "≠": expression.__ne__,
        "<": expression.__lt__,
        "≤": expression.__le__,
        ">": expression.__gt__,
        "≥": expression.__ge__,
    }[comparison](value)
    return compared


def _lines(connection: Connection, search_id: int, numbers: Sequence[int]) -> list[TrialLine]:
    columns = [getattr(Trial, name) for name in TrialLine.__slots__]
    rows = connection.execute(select(*columns).where(Trial.search_id == search_id, Trial.number.in_(numbers)))
    found = {row.number: TrialLine(**row._mapping) for row in rows}
    return [found[number] for number in numbers if number in found]
