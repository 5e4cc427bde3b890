"""A page of a search's table of trials: chosen, sorted and cut in SQL, whatever the search's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from gridfleet.scheduler.reports.param_values import WORDS, as_number, as_text
from gridfleet.scheduler.reports.trial_reader import best_first
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import QueryError
from gridfleet.storage.schema import Trial, TrialState

#: Rows of a page.
PAGE_SIZE = 50
#: Trials among which is sorted or chosen by what has no index: the best of the search.
EXAMINED = 10_000
#: Conditions at once.
MAX_CONDITIONS = 8
#: What scored trials are called in `TrialChoice.shown`.
SCORED, ALL = "scored", "all"
SHOWN = (SCORED, *(state for state in TrialState if state != TrialState.COMPLETED), ALL)
#: The ways to compare.
COMPARISONS = ("=", "≠", "<", "≤", ">", "≥")
#: Beside hyperparameters, what trials are sorted and chosen by.
COLUMNS = ("mean_test_score", "std_test_score", "mean_fit_time", "attempt", "peak_memory_mb")
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
    is_cut = choice.needs_look and n_trials > EXAMINED
    trials = _best(search_id) if is_cut else Trial.__table__.c
    order = _order(None if choice.sort == NUMBER else _columns(database.dialect, trials, choice.sort), trials, choice)
    conditions = [_condition(database.dialect, trials, one) for one in choice.conditions[:MAX_CONDITIONS]]
    among = [trials.search_id == search_id, *_shown(trials, choice), *conditions]
    with database.read() as connection:
        n_found = _count(connection, search_id, n_trials, choice, select(trials.number).where(*among))
        n_pages = max(1, math.ceil(n_found / size))
        page = min(max(choice.page, 1), n_pages)
        # numbers first, which are in the indexes; whole rows of this page only
        numbers = connection.execute(
            select(trials.number).where(*among).order_by(*order).limit(size).offset((page - 1) * size)
        ).scalars()
        lines = _lines(connection, search_id, list(numbers))
    return TrialPage(lines, n_found, page, n_pages, EXAMINED if is_cut else None)


def _best(search_id: int) -> Any:
    """Return the columns of the best trials of a search, as if there were no others."""
    columns = [getattr(Trial, name) for name in ("search_id", NUMBER, "state", "params", "iter", *COLUMNS)]
    return best_first(search_id).with_only_columns(*columns).limit(EXAMINED).subquery().c


def _shown(trials: Any, choice: TrialChoice) -> list[ColumnElement[bool]]:
    if choice.shown not in SHOWN:
        raise QueryError(f"trials that are {choice.shown!r} are not shown apart; ask for {', '.join(SHOWN)}")
    conditions: list[ColumnElement[bool]] = []
    if choice.shown == SCORED or choice.sort == SCORE:
        conditions.append(trials.mean_test_score.is_not(None))
    if choice.shown not in (SCORED, ALL):
        conditions.append(trials.state == choice.shown)
    return conditions


def _count(connection: Connection, search_id: int, n_trials: int, choice: TrialChoice, found: Select[Any]) -> int:
    if not choice.conditions and choice.shown in (SCORED, ALL) and choice.sort in (NUMBER, SCORE):
        is_all = choice.shown == ALL and choice.sort == NUMBER
        return n_trials if is_all else n_trials - _unscored(connection, search_id)
    return connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()


def _unscored(connection: Connection, search_id: int) -> int:
    """Count the trials without a score: those that have one are the most."""
    never = select(func.count()).where(
        Trial.search_id == search_id,
        Trial.state.in_([TrialState.QUEUED, TrialState.RUNNING, TrialState.CANCELLED]),
    )
    maybe = select(func.count()).where(
        Trial.search_id == search_id,
        Trial.state.in_([TrialState.FAILED, TrialState.PRUNED]),
        Trial.mean_test_score.is_(None),
    )
    return sum(connection.execute(query).scalar_one() for query in (never, maybe))


def _columns(dialect: str, trials: Any, name: str) -> Sequence[Any]:
    """Return what a column is sorted by: numbers before texts."""
    if name in COLUMNS:
        return (trials[name],)
    param = _param(name)
    return as_number(dialect, trials.params, param), as_text(dialect, trials.params, param)


def _param(column: str) -> str:
    if not column.startswith(PARAM) or "\x00" in column:
        raise QueryError(f"there is no column {column!r}; there are number, {', '.join(COLUMNS)} and {PARAM}NAME")
    return column.removeprefix(PARAM)


def _order(columns: Sequence[Any] | None, trials: Any, choice: TrialChoice) -> list[Any]:
    is_down = choice.order == Order.DOWN
    if columns is None:
        return [trials.number.desc() if is_down else trials.number]
    if choice.sort == SCORE:  # no NULL is among them, and this is the order of ix_trials_best
        best = (trials.iter, trials.mean_test_score)
        return [*(one.desc() for one in best), trials.number] if is_down else [*best, trials.number.desc()]
    sides = [column.desc() if is_down else column.asc() for column in columns]
    return [*(side.nulls_last() for side in sides), trials.number]


def _condition(dialect: str, trials: Any, condition: Condition) -> ColumnElement[bool]:
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
        return _compared(trials[condition.column], condition.comparison, number)
    param = _param(condition.column)
    text, of_number = as_text(dialect, trials.params, param), as_number(dialect, trials.params, param)
    is_text = _compared(text, condition.comparison, WORDS.get(value, value))
    if not math.isfinite(number):
        return is_text
    is_number = _compared(of_number, condition.comparison, number)
    if condition.comparison == "≠":
        return and_(text.is_not(None), or_(is_number, of_number.is_(None)))
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
