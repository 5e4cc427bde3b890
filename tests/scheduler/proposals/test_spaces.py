"""What users write as a space, what becomes of it, and which samples are points of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from gridfleet.scheduler.proposals.spaces import combinations, examples, given_space
from gridfleet.storage.errors import InvalidSearchError, SampleError
from gridfleet.storage.spaces import Choice, Quantile, Real, Space, Whole


class Halves:
    """A distribution of one's own."""

    def ppf(self, quantile: float) -> float:
        return quantile / 2


DIMENSIONS: list[tuple[Any, Any]] = [
    (["adam", "sgd"], Choice(["adam", "sgd"])),
    ([(1, 2), None], Choice([[1, 2], None])),
    (np.array([1, 2]), Choice([1, 2])),
    (stats.uniform(1, 2), Real(1.0, 3.0)),
    (stats.loguniform(1e-4, 1e-1), Real(1e-4, 1e-1, log=True)),
    (stats.randint(4, 65), Whole(4, 64)),
    (stats.norm(1, scale=2), Quantile("norm", [1.0], {"scale": 2.0})),
    (Halves(), Quantile()),
    (IntDistribution(1, 9, step=2), Whole(1, 9, 2)),
    (FloatDistribution(0.0, 1.0, step=0.25), Real(0.0, 1.0, 0.25)),
    (CategoricalDistribution(["a", 1]), Choice(["a", 1])),
]


@pytest.mark.parametrize(("given", "dimension"), DIMENSIONS, ids=[type(one).__name__ for _, one in DIMENSIONS])
def test_what_users_write_is_a_dimension(given: Any, dimension: Any) -> None:
    space = given_space({"a": given}).space

    assert space.branches[0]["a"] == dimension
    again = Space.from_json(space.to_json())
    assert again.to_json() == space.to_json()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "param_distributions is an empty space; give at least one hyperparameter"),
        ([], "param_distributions is an empty space; give at least one hyperparameter"),
        ([{"a": [1]}, {}], "param_distributions is an empty space; give at least one hyperparameter"),
        (3, "param_distributions is a int; give a dict, or a list of dicts"),
        ({"a": []}, r"param_distributions\['a'\] has no values to try; give at least one"),
        ({"a": "adam"}, r"param_distributions\['a'\] is 'adam', which has no values to propose; give a list of values"),
        ({"a": 3}, r"param_distributions\['a'\] is 3, which has no values to propose"),
        ({1: [1]}, "param_distributions has the name 1; a hyperparameter's name is a text"),
        ({"a": stats.norm(0, -1)}, r"param_distributions\['a'\] has arguments of which norm makes no values"),
        ({"a": list(range(10_001))}, r"param_distributions\['a'\] has 10001 values; a list may have 10000"),
    ],
)
def test_what_is_no_space_is_refused_in_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidSearchError, match=sentence):
        given_space(given)


SPACE = given_space(
    [
        {"a": ["x", "y"], "b": stats.randint(1, 4)},
        {"c": stats.uniform(0, 1), "d": FloatDistribution(0, 1, step=0.25), "e": stats.poisson(3)},
    ]
).space


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        ({"branch": 0, "values": {"a": 1, "b": 3}}, {"a": "y", "b": 3}),
        ({"branch": 1, "values": {"c": 0.5, "d": 0.75, "e": 0.5}}, {"c": 0.5, "d": 0.75, "e": 3}),
        ({"branch": 1, "values": {"c": 1, "d": 0, "e": 0.5}}, {"c": 1.0, "d": 0.0, "e": 3}),  # as jsonb has them
    ],
)
def test_points_of_a_space_are_shown(sample: Any, shown: Any) -> None:
    assert SPACE.shown(sample) == shown
    assert list(map(type, SPACE.shown(sample).values())) == list(map(type, shown.values()))


@pytest.mark.parametrize(
    "sample",
    [
        None,
        [],
        {"branch": 0},
        {"branch": 2, "values": {}},
        {"branch": -1, "values": {"a": 0, "b": 1}},
        {"branch": 0, "values": {"a": -1, "b": 1}},
        {"branch": 0, "values": {"a": 2, "b": 1}},
        {"branch": 0, "values": {"a": True, "b": 1}},
        {"branch": 0, "values": {"a": 0, "b": 4}},
        {"branch": 0, "values": {"a": 0, "b": 1.0}},
        {"branch": 0, "values": {"a": 0}},
        {"branch": 0, "values": {"a": 0, "b": 1, "c": 1}},
        {"branch": 1, "values": {"c": float("nan"), "d": 0, "e": 0.5}},
        {"branch": 1, "values": {"c": 10**400, "d": 0, "e": 0.5}},
        {"branch": 1, "values": {"c": 0.5, "d": 0.3, "e": 0.5}},
        {"branch": 1, "values": {"c": 0.5, "d": 0, "e": 0}},
        {"branch": 0, "values": {"a": 0, "b": 1}, "more": 1},
    ],
)
def test_what_is_no_point_of_a_space_is_refused(sample: Any) -> None:
    with pytest.raises(SampleError):
        SPACE.require(sample)


def test_a_distribution_that_only_its_owner_knows_is_shown_by_its_quantile() -> None:
    space = given_space({"a": Halves()}).space

    assert space.shown({"branch": 0, "values": {"a": 0.25}}) == {"a": "ppf(0.25)"}


def test_examples_have_each_value_and_both_ends() -> None:
    given = given_space([{"a": ["x", "y", "z"], "b": stats.randint(1, 4)}, {"c": [1]}])

    assert [sample["values"] for sample in examples(given)] == [
        {"a": 0, "b": 1},
        {"a": 1, "b": 3},
        {"a": 2, "b": 1},
        {"c": 0},
    ]


@pytest.mark.parametrize(
    ("given", "n_points"),
    [
        ({"a": [1, 2], "b": stats.randint(0, 3)}, 6),
        ([{"a": [1, 2]}, {"b": FloatDistribution(0, 1, step=0.1)}], 13),
        ({"a": [1, 2], "b": stats.uniform(0, 1)}, None),
        ({"a": stats.poisson(1)}, None),
    ],
)
def test_points_are_counted(given: Any, n_points: int | None) -> None:
    assert combinations(given_space(given).space) == n_points
