"""Hyperparameters in SQL: a trial's value as a number and as a text, to be sorted and compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Double, String, case, cast, func, literal, select

from gridfleet.scheduler.reports.fair_sample import drawn
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Trial

#: Trials that are looked at for the names of hyperparameters.
EXAMINED = 200
#: Python's words for what JSON calls otherwise.
WORDS = {"None": "null", "True": "true", "False": "false"}


def as_number(dialect: str, params: Any, name: str) -> Any:
    """Return the SQL expression of a hyperparameter's value in a column of params: a number, or NULL."""
    if dialect == "postgresql":
        is_number = func.jsonb_typeof(func.jsonb_extract_path(params, name)) == "number"
        return case((is_number, cast(func.jsonb_extract_path_text(params, name), Double)))
    entry = _entry(params)
    return _of(entry, params, name, case((entry.c.type.in_(["integer", "real"]), cast(entry.c.value, Double))))


def as_text(dialect: str, params: Any, name: str) -> Any:
    """Return the SQL expression of a hyperparameter's value as JSON writes it; NULL where a trial has no such one."""
    if dialect == "postgresql":
        is_null = func.jsonb_typeof(func.jsonb_extract_path(params, name)) == "null"
        return case((is_null, literal("null")), else_=func.jsonb_extract_path_text(params, name))
    entry = _entry(params)
    words = entry.c.type.in_(list(WORDS.values()))
    return _of(entry, params, name, case((words, entry.c.type), else_=cast(entry.c.value, String)))


def names_of(all_params: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the names of hyperparameters, in the order in which they appear."""
    return list(dict.fromkeys(name for params in all_params for name in params))


def hyperparameters(database: Database, search_id: int, n_trials: int) -> dict[str, bool]:
    """Return the names of a search's hyperparameters, and whether they vary, as far as `EXAMINED` trials say it."""
    numbers = drawn(search_id, n_trials, EXAMINED)
    query = select(Trial.params).where(Trial.search_id == search_id, Trial.number.in_(numbers)).order_by(Trial.number)
    with database.read() as connection:
        all_params = connection.execute(query).scalars().all()
    values = {
        name: {repr(params[name]) if name in params else None for params in all_params} for name in names_of(all_params)
    }
    return {name: len(found) > 1 for name, found in values.items()}


def _entry(params: Any) -> Any:
    # json_each and not json_extract: a path can't hold every name
    return func.json_each(params).table_valued("key", "value", "type")


def _of(entry: Any, params: Any, name: str, value: Any) -> Any:
    found = select(value).select_from(entry).where(entry.c.key == name).limit(1)
    return found.correlate(params.table).scalar_subquery()
