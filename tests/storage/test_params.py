"""Hyperparameters as JSON: what SQL shows of them, and the type of their column."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.linear_model import LogisticRegression
from sqlalchemy import select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import MAX_TEXT, column_kinds, params_digest, params_to_json
from gridfleet.storage.schema import Trial
from tests.storage.conftest import store_search


def relu_of_ours() -> None:
    """Stand for an activation."""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.1, 0.1),
        ("adam", "adam"),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("adam"), "adam"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        ((1, 2.5), [1, 2.5]),
        ([10, [20, None]], [10, [20, None]]),
        ({"a": (1,), 2: True}, {"a": [1], "2": True}),
        (relu_of_ours, "relu_of_ours"),
        (len, "len"),
        (LogisticRegression, "LogisticRegression"),
        (LogisticRegression(C=2.0), "LogisticRegression(C=2.0)"),
        (np.array([1, 2]), "array([1, 2])"),
        (1 + 2j, "(1+2j)"),
        ("nul \x00 here", "nul \\x00 here"),
        ("half \ud83d", "half \\ud83d"),
        ([[[[[1]]]]], [[[["[1]"]]]]),
    ],
)
def test_a_value_is_shown_as_json(value: Any, shown: Any) -> None:
    found = params_to_json({"name": value})["name"]

    assert (type(found), found) == (type(shown), shown)


def test_a_callable_without_a_name_is_shown_by_its_repr() -> None:
    assert params_to_json({"f": partial(int, base=2)})["f"].startswith("functools.partial(")


def test_long_texts_are_cut() -> None:
    shown = params_to_json({"text": "x" * 5_000})["text"]

    assert len(shown) == MAX_TEXT
    assert shown.endswith("x…")


def test_names_and_their_order_stay() -> None:
    assert list(params_to_json({"b__c": 1, "a": 2})) == ["b__c", "a"]


def test_equal_combinations_have_equal_digests() -> None:
    one = params_to_json({"a": 1, "b": 0.5})

    assert params_digest(one) == params_digest(params_to_json({"b": np.float64(0.5), "a": np.int32(1)}))
    assert params_digest(one) != params_digest(params_to_json({"a": 1, "b": 0.25}))
    assert params_digest(one) != params_digest(params_to_json({"a": "1", "b": 0.5}))
    assert len(params_digest(one)) == 64


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "bigint"),
        ([1, None], "bigint"),
        ([0.5, 1.5], "double precision"),
        ([1, 0.5], "double precision"),
        ([True, False], "boolean"),
        ([True, 1], "text"),
        (["a", 1], "text"),
        (["a", None], "text"),
        ([[1], [2]], "text"),
        ([None], "text"),
        ([2**64, 1], "text"),
        ([math.nan, 0.5], "text"),
    ],
)
def test_a_column_has_the_narrowest_type_that_holds_all_values(values: list[Any], kind: str) -> None:
    assert column_kinds(params_to_json({"name": value}) for value in values) == {"name": kind}


def test_columns_come_in_order_of_first_appearance() -> None:
    assert list(column_kinds([{"b": 1}, {"a": 1, "b": 2}, {"c": 1}])) == ["b", "a", "c"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=10), anything, max_size=3))
def test_whatever_is_given_the_result_is_strict_json(params: dict[str, Any]) -> None:
    shown = params_to_json(params)

    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert params_digest(shown)


def test_what_is_shown_is_what_the_database_gives_back(database: Database) -> None:
    odd = [0.1, 1e-300, 1e15, 5e-324, -0.0, 2**62, "ü", "nul \x00", "half \ud83d", [True, None, {"a": [1.5]}], ""]

    store_search(database, [{"value": value} for value in odd])

    with database.read() as connection:
        found = connection.execute(select(Trial.params).order_by(Trial.number)).scalars().all()
    assert [params["value"] for params in found] == [params_to_json({"value": value})["value"] for value in odd]
