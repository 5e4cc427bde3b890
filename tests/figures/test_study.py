"""A search as a study of Optuna: the same trials, values, hyperparameters and best one."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest

from gridfleet.scheduler.figures.study import Space, study
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.figures.searches import kinds_of_searches, run_one, store
from tests.stored_searches import store_pima

STATES = optuna.trial.TrialState


def test_a_study_has_the_trials_of_its_search(database_settings: Settings, database: Database) -> None:
    made = study(database, store_pima(database_settings, database))

    assert made.study_name == "pima"
    assert made.best_trial.number == 1
    assert made.best_value == 0.75
    assert made.best_params == {"batch_size": 20, "optimizer": "adam"}
    assert [trial.value for trial in made.trials] == [0.703125, 0.75, 0.6875, 0.65625, None]
    assert [trial.state for trial in made.trials] == [*[STATES.COMPLETE] * 4, STATES.FAIL]
    assert made.trials[4].user_attrs["error"].endswith("Could not interpret optimizer identifier: adan")
    assert made.trials[0].user_attrs["split_test_scores"] == {"score": [0.6875, 0.71875]}
    assert made.trials[0].user_attrs["number"] == 0
    assert made.trials[0].distributions == made.trials[3].distributions
    assert set(made.trials[0].distributions["optimizer"].choices) == {"adam", "rmsprop", "adan"}
    assert made.trials[0].duration is not None
    assert made.user_attrs["metric"] == "score"


def test_what_runs_and_what_waits_are_in_a_study(database_settings: Settings, database: Database) -> None:
    made = study(database, run_one(database_settings, database, "svc"))

    assert [trial.state for trial in made.trials] == [STATES.COMPLETE, STATES.RUNNING]
    assert made.trials[1].params == {"C": 10.0}


@pytest.mark.filterwarnings("error")
def test_each_kind_of_search_becomes_a_study(database_settings: Settings, database: Database) -> None:
    for kind, search in kinds_of_searches().items():
        made = study(database, store(database_settings, database, kind, **search))

        assert len(made.trials) == len(search["trials"])
        for trial, (params, score) in zip(made.trials, search["trials"], strict=True):
            if trial.state != STATES.PRUNED:
                assert trial.value == score, kind
            assert trial.params.keys() == params.keys(), kind


def test_a_pruned_trial_has_what_it_was_compared_by(database_settings: Settings, database: Database) -> None:
    search = kinds_of_searches()["pruned"]

    made = study(database, store(database_settings, database, "pruned", **search))

    pruned = {trial.number: trial for trial in made.trials if trial.state == STATES.PRUNED}
    assert {number: trial.value for number, trial in pruned.items()} == {3: 0.2, 5: 0.3, 6: None}
    assert pruned[3].intermediate_values == {3: 0.2}
    assert pruned[5].intermediate_values == {5: 0.3}, "behind the most epochs, 3, and the split before"
    assert list(pruned[6].intermediate_values) == [1]
    assert pruned[3].user_attrs["pruned_epoch"] == 3
    assert made.best_trial.number == 7


def test_values_of_hyperparameters_stay_apart(database_settings: Settings, database: Database) -> None:
    search = kinds_of_searches()["odd-values"]

    made = study(database, store(database_settings, database, "odd", **search))

    # [64] and (64,) are the same in JSON
    assert [trial.params["layers"] for trial in made.trials][:6] == [
        "[64, 32]",
        "[64]",
        "(64,)",
        "[64]",
        "{'a': [1]}",
        "nan",
    ]
    assert len({trial.params["layers"] for trial in made.trials}) == 7
    assert [trial.params["flag"] for trial in made.trials][:3] == ["True", "False", "'True'"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2.5], [1.0, 2.5]),
        ([True, False], [True, False]),
        ([None, "a"], [None, "a"]),
        ([None, 1, 2], [None, 1, 2]),
        ([1, True], ["1", "True"]),
        ([0.5, 1, None], ["0.5", "1", "None"]),
        ([[1, 2], "[1, 2]"], ["[1, 2]", "'[1, 2]'"]),
        ([2**62, 2**62 + 1], [2**62, 2**62 + 1]),
        ([1e-300, 1e300], [1e-300, 1e300]),
        ([7], [7]),
        (["nan", 0.5], ["nan", "0.5"]),
    ],
)
def test_optuna_gets_values_as_they_are_where_it_takes_them(values: list[Any], expected: list[Any]) -> None:
    space = Space.of(lambda: [{"a": value} for value in values])

    assert [space.params({"a": value})["a"] for value in values] == expected
    distribution = space.distributions()["a"]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in expected)
    json.dumps(expected)
