"""From the ``space`` of a search file to values: a table of what is taken, and of what is refused and how."""

from __future__ import annotations

import pytest

from gridfleet.scheduler.search_file.space import is_distribution, parse_values


def test_a_list_is_taken_as_it_is():
    values = parse_values([1, "adam", None, 0.5, True])

    assert values == [1, "adam", None, 0.5, True]
    assert not is_distribution(values)


@pytest.mark.parametrize(
    ("raw", "low", "high"),
    [
        ({"uniform": [2, 3]}, 2, 3),
        ({"loguniform": [1e-4, 1e-1]}, 1e-4, 1e-1),
        ({"randint": [5, 8]}, 5, 7),
    ],
)
def test_a_distribution_draws_between_its_bounds(raw, low, high):
    distribution = parse_values(raw)
    drawn = distribution.rvs(size=500, random_state=0)

    assert is_distribution(distribution)
    assert low <= drawn.min()
    assert drawn.max() <= high
    assert drawn.max() - drawn.min() > 0.9 * (high - low)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([], "has no values to try"),
        ("adam", "write a list of values, as in ['adam']"),
        (3, "write a list of values, as in [3]"),
        (None, "write a list of values"),
        ({}, "a distribution has one name"),
        ({"uniform": [0, 1], "randint": [0, 1]}, "a distribution has one name"),
        ({"loguniforn": [1, 2]}, "did you mean 'loguniform'?"),
        ({"xyz": [1, 2]}, "there are uniform, loguniform, randint"),
        ({"uniform": 3}, "write two numbers, as in {uniform: [0, 1]}"),
        ({"uniform": [1, 2, 3]}, "write two numbers"),
        ({"uniform": ["a", 2]}, "write two numbers"),
        ({"uniform": [True, 2]}, "write two numbers"),
        ({"uniform": [0, float("inf")]}, "write two numbers"),
        ({"uniform": [2, 1]}, "the first bound must be below the second"),
        ({"loguniform": [0, 1]}, "bounds must be above 0"),
        ({"randint": [1, 2.5]}, "bounds must be integers"),
    ],
)
def test_what_is_no_space_is_refused_in_one_sentence(raw, sentence):
    with pytest.raises(ValueError, match=r".+") as error:
        parse_values(raw)

    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
