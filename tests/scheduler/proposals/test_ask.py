"""Proposals are functions of rows: they equal those of a live study, whoever asks, and after any crash."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
import pytest
from scipy import stats

from gridfleet.scheduler.proposals.ask import Proposer, Pruned, Row, propose, seed_of
from gridfleet.scheduler.proposals.samplers import Sampler, fresh_sampler, given_sampler
from gridfleet.scheduler.proposals.spaces import given_space
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.spaces import Space

SPACE = given_space(
    {"a": ["x", "y", "z"], "b": stats.randint(4, 65), "c": stats.loguniform(1e-4, 1e-1), "d": stats.norm(0, 1)}
).space
CONDITIONAL = given_space(
    [
        {"kind": ["linear"], "C": stats.loguniform(1e-2, 1e2)},
        {"kind": ["rbf", "poly"], "C": stats.loguniform(1e-2, 1e2), "gamma": stats.uniform(0, 1)},
    ]
).space
SMALL = given_space({"a": [1, 2, 3], "b": [True, False]}).space
SAMPLERS = ["tpe", "random", "qmc", "cmaes"]
LOOKAHEAD = 3


def score_of(sample: Any) -> float | None:
    """Return a score that proposals can learn from; now and then a trial fails."""
    values = sample["values"]
    if seed_of(7, int(1e6 * sum(values.values()))) % 11 == 0:
        return None
    return -abs(values.get("c", values.get("C", 0.1)) - 0.01) - values.get("a", 0)


def unknown_of(number: int) -> range:
    return range(max(0, number - LOOKAHEAD + 1), number)


def run(space: Space, sampler: Sampler, n_trials: int, *, kept: bool, seed: int = 3) -> list[Row]:
    rows: list[Row] = []
    proposer = Proposer(space, sampler, seed)
    for number in range(n_trials):
        unknown = unknown_of(number)
        sample = proposer.ask(rows, unknown) if kept else propose(space, sampler, seed, rows, unknown)
        if sample is None:
            break
        rows.append(Row(sample, is_final=True, score=score_of(sample), unknown=unknown))
    return rows


@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["one", "conditional"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_study_that_was_built_of_rows_proposes_as_the_one_that_was_kept(name: str, space: Space) -> None:
    sampler = given_sampler(name, space)

    kept, built = (run(space, sampler, 25, kept=kept) for kept in (True, False))

    assert [row.sample for row in kept] == [row.sample for row in built]
    assert len(kept) == 25
    for row in kept:
        space.require(row.sample)


def test_with_multivariate_tpe_too() -> None:
    sampler = given_sampler({"name": "tpe", "multivariate": True, "group": True, "n_startup_trials": 4}, CONDITIONAL)

    kept, built = (run(CONDITIONAL, sampler, 20, kept=kept) for kept in (True, False))

    assert [row.sample for row in kept] == [row.sample for row in built]


@pytest.mark.parametrize("name", ["tpe", "cmaes", "random"])
def test_they_are_those_of_a_live_study_of_optuna(name: str) -> None:
    space = given_space({"b": stats.randint(4, 65), "c": stats.loguniform(1e-4, 1e-1)}).space
    sampler = given_sampler(name, space)
    rows = run(space, sampler, 30, kept=False)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    trials: list[optuna.Trial] = []
    for number in range(len(rows)):
        if (known := number - LOOKAHEAD) >= 0:
            score = rows[known].score
            state = optuna.trial.TrialState.FAIL if score is None else None
            study.tell(trials[known], score, state=state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.sampler = fresh_sampler(sampler, seed=seed_of(3, number), number=number, distributions={})
            trial = study.ask()
        trials.append(trial)
        asked = {"b": trial.suggest_int("b", 4, 64), "c": trial.suggest_float("c", 1e-4, 1e-1, log=True)}
        assert asked == rows[number].sample["values"], number


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_seed_gives_others(name: str) -> None:
    sampler = given_sampler(name, SPACE)

    some, others = (run(SPACE, sampler, 5, kept=True, seed=seed) for seed in (1, 2))

    assert [row.sample for row in some] != [row.sample for row in others]


def test_what_it_may_not_know_changes_nothing() -> None:
    sampler = given_sampler("tpe", SPACE)
    rows = run(SPACE, sampler, 24, kept=True)

    later = [Row(row.sample) if number in unknown_of(24) else row for number, row in enumerate(rows)]

    assert propose(SPACE, sampler, 3, rows, unknown_of(24)) == propose(SPACE, sampler, 3, later, unknown_of(24))
    assert propose(SPACE, sampler, 3, rows) != propose(SPACE, sampler, 3, rows, range(24))


@pytest.mark.parametrize("name", [*SAMPLERS, "grid"])
def test_no_proposal_is_made_twice_and_a_small_space_ends(name: str) -> None:
    rows = run(SMALL, given_sampler(name, SMALL), 50, kept=True)

    assert len({str(row.sample) for row in rows}) == len(rows) == 6
    assert [row.sample for row in rows] == [
        row.sample for row in run(SMALL, given_sampler(name, SMALL), 50, kept=False)
    ]


def test_a_discrete_distribution_ends_when_nothing_new_comes() -> None:
    space = given_space({"a": stats.bernoulli(0.5)}).space

    rows = run(space, given_sampler("random", space), 50, kept=True)

    assert sorted(space.shown(row.sample)["a"] for row in rows) == [0, 1]


def test_pruned_trials_are_in_the_study_as_optuna_has_them() -> None:
    """The proposals are those of a live study whose trials were reported and pruned at the same places."""
    space = given_space({"a": stats.uniform(0, 1)}).space
    sampler = Sampler("tpe", {"n_startup_trials": 2, "constant_liar": False})
    places = {1: Pruned(0, 3, 0.5), 2: Pruned(0, 9, 0.1), 4: Pruned(1, None, None), 5: Pruned(0, None, 0.3)}
    live = optuna.create_study(direction="maximize")
    rows: list[Row] = []
    for number in range(12):
        expected = propose(space, sampler, 7, rows)
        live.sampler = fresh_sampler(sampler, seed=seed_of(7, number), number=number, distributions={})
        trial = live.ask()
        assert expected is not None
        assert trial.suggest_float("a", 0, 1) == expected["values"]["a"]
        if number in places:
            pruned = places[number]
            trial.report(math.nan if pruned.value is None else pruned.value, pruned.step)
            live.tell(trial, state=optuna.trial.TrialState.PRUNED)
            rows.append(Row(expected, is_final=True, pruned=pruned))
        else:
            score = -abs(expected["values"]["a"] - 0.4)
            live.tell(trial, score)
            rows.append(Row(expected, is_final=True, score=score))
    assert [place.step for place in places.values()] == [3, 9, 2_000_000, 1_000_000]


def test_a_grid_has_scikit_learns_order() -> None:
    from sklearn.model_selection import ParameterGrid

    grid = {"b": [1, 2], "a": ["x", "y", "z"]}
    space = given_space(grid).space

    assert [space.shown(row.sample) for row in run(space, Sampler("grid"), 50, kept=True)] == list(ParameterGrid(grid))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("tpee", "sampler='tpee' is unknown; did you mean 'tpe'?"),
        (3, "sampler=3 must be a name"),
        ({"n_startup_trials": 3}, "must be a name, as 'tpe', or a dict"),
        (
            {"name": "tpe", "n_startup_trial": 3},
            "'n_startup_trial' is no setting of 'tpe'; did you mean 'n_startup_tri",
        ),
        ({"name": "random", "seed": 3}, "'seed' is no setting of 'random', which has none"),
        ({"name": "tpe", "n_startup_trials": [3]}, "n_startup_trials=\\[3\\] must be a number"),
        ({"name": "qmc", "qmc_type": "sobl"}, "is refused by Optuna: .*sobl"),
        ("grid", "sampler='grid' tries all combinations, and a distribution has no end of them; give lists"),
        (optuna.samplers.TPESampler(), "must be a name"),
    ],
)
def test_what_is_no_sampler_is_refused_in_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidSearchError, match=sentence):
        given_sampler(given, SPACE)


def test_gp_says_what_it_needs() -> None:
    pytest.importorskip("optuna")
    try:
        import torch  # noqa: F401
    except ImportError:
        with pytest.raises(InvalidSearchError, match="sampler='gp' needs PyTorch here and where the scheduler runs"):
            given_sampler("gp", SPACE)


def test_samplers_travel_as_json() -> None:
    sampler = given_sampler({"name": "tpe", "n_startup_trials": 4}, SPACE)

    assert Sampler.from_json(sampler.to_json()) == sampler
