"""The view of each search: typed columns, whatever a hyperparameter is called, alike on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import inspect

from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.search_views import AFTER_PARAMS, BEFORE_PARAMS, create_search_view, quote
from gridfleet.storage.trials import transitions
from tests.storage.conftest import StoredSearch, result_of, store_search


def search_with_view(database: Database, candidates: list[dict[str, Any]], *, name: str = "pima") -> StoredSearch:
    search = store_search(database, candidates, name=name)
    with database.write() as connection:
        create_search_view(connection, search.id, name, column_kinds(map(params_to_json, candidates)))
    return search


def columns_of(database: Database, name: str = "pima") -> list[str]:
    with database.read() as connection:
        return [column["name"] for column in inspect(connection).get_columns(name)]


def param_columns(database: Database) -> list[str]:
    return columns_of(database)[len(BEFORE_PARAMS) : -len(AFTER_PARAMS)]


def query(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def values_of(database: Database, column: str) -> list[Any]:
    escaped = quote(column).replace("%", "%%") if database.dialect == "postgresql" else quote(column)
    return [value for (value,) in query(database, f"SELECT {escaped} FROM pima ORDER BY number")]


def test_the_query_of_the_design_works(database: Database) -> None:
    search = search_with_view(
        database, [{"optimizer": "adam", "batch_size": 10}, {"optimizer": "rmsprop", "batch_size": 20}]
    )
    for number, score in enumerate((0.7, 0.8)):
        transitions.record(database, search.held(number), result_of(score))

    rows = query(database, 'SELECT optimizer, batch_size, mean_test_score FROM "pima" ORDER BY rank_test_score')

    assert rows == [("rmsprop", 20, 0.8), ("adam", 10, 0.7)]


def test_a_view_shows_only_its_own_trials_ranked(database: Database) -> None:
    other = store_search(database, 1)
    transitions.record(database, other.held(), result_of(0.99))
    search = search_with_view(database, [{"units": units} for units in (1, 2, 3, 4)])
    for number, score in enumerate((0.5, 0.7, 0.7)):
        transitions.record(database, search.held(number), result_of(score))

    rows = query(database, "SELECT number, state, rank_test_score, worker_id, attempt FROM pima ORDER BY number")

    assert rows == [
        (0, "completed", 3, "node/1", 1),
        (1, "completed", 1, "node/1", 1),
        (2, "completed", 1, "node/1", 1),
        (3, "queued", None, None, 0),
    ]


def test_the_columns_come_in_a_fixed_order(database: Database) -> None:
    search_with_view(database, [{"b": 1, "a": 2}])

    assert columns_of(database) == [*BEFORE_PARAMS, "b", "a", *AFTER_PARAMS]


def test_each_hyperparameter_has_a_column_of_its_type(database: Database) -> None:
    search_with_view(
        database,
        [
            {"count": 3, "rate": 0.5, "wide": 1, "name": "a", "flag": True, "layers": [1, 2], "large": 2**62},
            {"count": 4, "rate": 1.0, "wide": 0.5, "name": "b", "flag": False, "layers": [3], "large": None},
        ],
    )

    assert values_of(database, "count") == [3, 4]
    assert values_of(database, "rate") == [0.5, 1.0]
    assert values_of(database, "wide") == [1.0, 0.5]
    assert all(isinstance(value, float) for value in values_of(database, "wide"))
    assert values_of(database, "name") == ["a", "b"]
    assert values_of(database, "flag") == [True, False]
    assert values_of(database, "large") == [2**62, None]
    assert query(database, "SELECT number FROM pima WHERE flag AND rate < 0.75 AND count + 1 > 3") == [(0,)]
    assert query(database, "SELECT SUM(wide) FROM pima") == [(1.5,)]


def test_a_column_of_numbers_sorts_as_numbers(database: Database) -> None:
    search_with_view(database, [{"units": units} for units in (9, 10, 100, 2)])

    assert query(database, "SELECT units FROM pima ORDER BY units") == [(2,), (9,), (10,), (100,)]


def test_values_of_mixed_types_are_texts_alike_on_both_databases(database: Database) -> None:
    search_with_view(database, [{"v": value} for value in (True, False, 1, 0.5, "auto", None, [1, "a"], {"b": None})])

    found = values_of(database, "v")

    assert found[:6] == ["true", "false", "1", "0.5", "auto", None]
    assert [text.replace(" ", "") for text in found[6:]] == ['[1,"a"]', '{"b":null}']


def test_a_hyperparameter_that_a_combination_does_not_have_is_null(database: Database) -> None:
    search_with_view(database, [{"kernel": "rbf", "gamma": 0.5}, {"kernel": "linear"}])

    assert values_of(database, "gamma") == [0.5, None]


ODD_NAMES = [
    "model__units",
    "with space",
    "a'quote",
    'a"double quote',
    '"; DROP TABLE trials; --',
    "per%cent",
    "%s %(name)s %%",
    "co:lon :name",
    "back\\slash",
    "dot.and[0]",
    "$.dollar",
    "question?",
    "größe",
    "超参数",
    "🌲",
    "select",
    "new\nline",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_columns_too(name: str, database: Database) -> None:
    search_with_view(database, [{name: 1}, {name: 2}])

    assert param_columns(database) == [name]
    assert values_of(database, name) == [1, 2]


@pytest.mark.parametrize("letter", ["x", "ü", "🌲"])
def test_very_long_names_are_cut_and_stay_apart(letter: str, database: Database) -> None:
    first, second = letter * 200 + "a", letter * 200 + "b"
    search_with_view(database, [{first: 1, second: 2}])

    columns = param_columns(database)

    assert len(set(columns)) == 2
    assert all(len(column.encode()) <= 63 and column.startswith(letter * 10) for column in columns)
    assert [values_of(database, column) for column in columns] == [[1], [2]]


@pytest.mark.parametrize("name", [*BEFORE_PARAMS, *AFTER_PARAMS, "STATE"])
def test_names_of_fixed_columns_are_prefixed(name: str, database: Database) -> None:
    search_with_view(database, [{name: 17}])

    assert param_columns(database) == [f"param_{name}"]
    assert values_of(database, f"param_{name}") == [17]


def test_names_that_differ_only_in_case_stay_apart(database: Database) -> None:
    search_with_view(database, [{"C": 1, "c": 2, "param_c": 3, "PARAM_C": 4}])

    columns = param_columns(database)

    assert columns[0] == "C"
    assert len({column.lower() for column in columns}) == 4
    assert [values_of(database, column) for column in columns] == [[1], [2], [3], [4]]


def test_prefixed_names_that_are_taken_stay_apart(database: Database) -> None:
    search_with_view(database, [{"param_state": 1, "state": 2}])

    columns = param_columns(database)

    assert len(set(columns)) == 2
    assert [values_of(database, column) for column in columns] == [[1], [2]]


@pytest.mark.parametrize("name", ["pima 2", "Pima-2.1", 'a"b', "100%", "a:b", "it's"])
def test_a_search_may_have_an_odd_name(name: str, database: Database) -> None:
    search_with_view(database, [{"units": 1}], name=name)

    assert columns_of(database, name)[len(BEFORE_PARAMS)] == "units"


def test_a_view_appears_with_its_search_or_not_at_all(database: Database) -> None:
    with database.write() as connection:
        create_search_view(connection, 1, "pima", {"units": "bigint"})
        connection.rollback()

    with database.read() as connection:
        assert "pima" not in inspect(connection).get_view_names()


def test_a_hundred_hyperparameters_fit(database: Database) -> None:
    params = {f"parameter_{number}": number for number in range(100)}
    search_with_view(database, [params])

    assert param_columns(database) == list(params)
