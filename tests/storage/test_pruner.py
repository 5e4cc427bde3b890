"""Which trials go on: a table of cases, and the same decisions as Optuna's pruners on drawn races."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
import pytest

from gridfleet.storage.pruner import Pruner, Standing, cut_between, place_of_cut

ASHA = Pruner("asha")
MEDIAN = Pruner("median", settings={"n_startup_trials": 2})


@pytest.mark.parametrize(
    ("pruner", "value", "standing", "goes_on"),
    [
        (ASHA, 0.5, Standing(0, 0), True),
        (ASHA, 0.5, Standing(1, 1), False),
        (ASHA, 0.5, Standing(1, 0), True),
        (ASHA, 0.5, Standing(5, 1), True),
        (ASHA, 0.5, Standing(5, 2), False),
        (ASHA, 0.5, Standing(6, 2), False),
        (ASHA, 0.5, Standing(8, 2), True),
        (ASHA, None, Standing(0, 0), False),
        (Pruner("asha", settings={"bootstrap_count": 2}), 0.5, Standing(1, 0), False),
        (Pruner("asha", settings={"bootstrap_count": 2}), 0.5, Standing(2, 0), True),
        (Pruner("asha", settings={"reduction_factor": 2}), 0.5, Standing(3, 1), True),
        (MEDIAN, 0.5, Standing(5, 5, 1, 0.9), True),
        (MEDIAN, 0.5, Standing(5, 3, 5, 0.6), False),
        (MEDIAN, 0.5, Standing(5, 3, 5, 0.5), True),
        (MEDIAN, 0.5, Standing(0, 0, 5, None), True),
        (MEDIAN, None, Standing(0, 0, 1), True),
        (MEDIAN, None, Standing(0, 0, 2), False),
        (Pruner("median", settings={"n_startup_trials": 0}), 0.5, Standing(0, 0, 0), True),
        (Pruner("median", settings={"n_min_trials": 3}), 0.5, Standing(2, 2, 9, 0.9), True),
    ],
)
def test_who_goes_on(pruner: Pruner, value: float | None, standing: Standing, goes_on: bool) -> None:
    assert pruner.goes_on(value, standing) is goes_on


@pytest.mark.parametrize(
    ("pruner", "rungs"),
    [
        (ASHA, [1, 3, 9, 27, 81]),
        (Pruner("asha", 2, {"reduction_factor": 2}), [2, 4, 8, 16, 32, 64]),
        (Pruner("asha", 1, {"min_early_stopping_rate": 2}), [9, 27, 81]),
        (Pruner("median"), [1, 3, 9, 27, 81]),
        (Pruner("median", 5), [5, 15, 45]),
        (Pruner("percentile", 1, {"percentile": 25, "n_warmup_steps": 20, "interval_steps": 30}), [20, 50, 80]),
        (Pruner("median", 4, {"interval_steps": 25}), [25, 50, 75, 100]),
        (Pruner("median", 1, {"n_warmup_steps": 10}), [27, 81]),
    ],
)
def test_at_which_epochs_trials_are_compared(pruner: Pruner, rungs: list[int]) -> None:
    assert [epoch for epoch in range(1, 101) if pruner.is_rung(epoch, 0)] == rungs
    assert [pruner.next_rung(epoch, 0) for epoch in (0, *rungs[:-1])] == rungs


def test_brackets_of_hyperband_are_of_optuna_s_sizes_and_mixed() -> None:
    pruner = Pruner("hyperband", settings={"max_resource": 27})
    brackets = [pruner.bracket_of(number).number for number in range(98)]

    assert [brackets[:49].count(bracket) for bracket in range(4)] == [27, 12, 6, 4]
    assert brackets[:49] == brackets[49:]
    assert all(len(set(brackets[start : start + 8])) >= 2 for start in range(90))
    assert [pruner.next_rung(0, brackets.index(bracket)) for bracket in range(4)] == [1, 3, 9, 27]


def test_a_pruner_is_what_was_stored_of_it() -> None:
    pruner = Pruner("percentile", 3, {"percentile": 25.0, "n_min_trials": 2})

    assert Pruner.from_json(pruner.to_json()) == pruner


def test_a_cut_is_what_numpy_s_percentile_is() -> None:
    draw = random.Random(1)
    for _ in range(2_000):
        values = sorted(round(draw.uniform(-1, 1), draw.choice([1, 17])) for _ in range(draw.randint(1, 9)))
        quantile = (100 - draw.choice([0, 25, 33.3, 50, 90, 100])) / 100
        below, part = place_of_cut(len(values), quantile)

        found = cut_between(values[below], values[min(below + 1, len(values) - 1)], part)

        assert found == np.percentile(values, quantile * 100) or found == np.quantile(values, quantile)


# What follows holds decisions against Optuna's own on races that are drawn: trials of some steps, in whose order each
# step of each comes at random.


class Race:
    """Values of trials by step, kept as our tables keep them and as Optuna's storage does."""

    def __init__(self, ours: Pruner, theirs: Any) -> None:
        self.ours = ours
        self.study = optuna.create_study(direction="maximize", pruner=theirs)
        self.reported: dict[int, dict[int, float]] = {}
        self.completed: set[int] = set()

    def standing(self, number: int, step: int, value: float) -> Standing:
        others = {other: values for other, values in self.reported.items() if other != number}
        if not self.ours.compares_completed:
            bracket = self.ours.bracket_of(number)
            there = [
                values[step]
                for other, values in others.items()
                if step in values and bracket.has(other) and not math.isnan(values[step])
            ]
            return Standing(len(there), sum(other > value for other in there))
        there = [others[other].get(step, math.nan) for other in self.completed]
        values = sorted(value for value in there if not math.isnan(value))
        cut = None
        if values:
            below, part = place_of_cut(len(values), self.ours.keeps_quantile)
            cut = cut_between(values[below], values[min(below + 1, len(values) - 1)], part)
        return Standing(len(values), sum(other > value for other in values), len(self.completed), cut)

    def goes_on(self, number: int, step: int, value: float) -> bool:
        self.reported.setdefault(number, {})[step] = value
        so_far = [value for value in self.reported[number].values() if not math.isnan(value)]
        compared = value
        if self.ours.compares_completed:
            compared = max(so_far, default=math.nan)
        return self.ours.goes_on(None if math.isnan(compared) else compared, self.standing(number, step, compared))


def steps_in_any_order(draw: random.Random, n_trials: int, n_steps: int) -> Iterator[tuple[int, int]]:
    at = dict.fromkeys(range(n_trials), 0)
    while at:
        number = draw.choice(list(at)[:4])  # of those that are open beside each other
        at[number] += 1
        if (yield number, at[number]) or at[number] == n_steps:
            del at[number]


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ASHA, lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)),
        (
            Pruner("asha", 2, {"reduction_factor": 2, "bootstrap_count": 1, "min_early_stopping_rate": 1}),
            lambda: optuna.pruners.SuccessiveHalvingPruner(
                min_resource=2, reduction_factor=2, bootstrap_count=1, min_early_stopping_rate=1
            ),
        ),
        (
            Pruner("hyperband", 1, {"max_resource": 9}),
            lambda: _Hyperband(min_resource=1, max_resource=9, reduction_factor=3),
        ),
        (
            Pruner("median", 1, {"n_startup_trials": 2, "interval_steps": 1}),
            lambda: optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0, interval_steps=1),
        ),
        (
            Pruner(
                "percentile", 1, {"percentile": 30.0, "n_startup_trials": 1, "n_warmup_steps": 2, "interval_steps": 3}
            ),
            lambda: optuna.pruners.PercentilePruner(30.0, n_startup_trials=1, n_warmup_steps=2, interval_steps=3),
        ),
    ],
    ids=["asha", "asha of two", "hyperband", "median", "percentile"],
)
def test_decisions_are_optuna_s(ours: Pruner, theirs: Callable[[], Any], seed: int) -> None:
    draw = random.Random(seed)
    race = Race(ours, theirs())
    trials = [race.study.ask() for _ in range(40)]
    decided: list[bool] = []
    steps = steps_in_any_order(draw, len(trials), n_steps=9)
    number, step = next(steps)
    while True:
        value = math.nan if draw.random() < 0.02 else round(draw.gauss(0, 1) + number / 20, 1)
        trials[number].report(value, step)
        pruned = bool(trials[number].should_prune())
        if ours.is_rung(step, number):
            decided.append(race.goes_on(number, step, value))
            assert decided[-1] is not pruned, (number, step, value)
        else:
            race.reported.setdefault(number, {})[step] = value
        if pruned or step == 9:
            race.study.tell(number, **({"state": optuna.trial.TrialState.PRUNED} if pruned else {"values": 0.0}))
            if not pruned:
                race.completed.add(number)
        try:
            number, step = steps.send(pruned)
        except StopIteration:
            break
    assert min(decided.count(True), decided.count(False)) > 2


class _Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna's, with our brackets: its own are drawn by the study's name."""

    def _get_bracket_id(self, study: Any, trial: Any) -> int:
        return Pruner("hyperband", 1, {"max_resource": 9}).bracket_of(trial.number).number


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:WilcoxonPruner is experimental")
@pytest.mark.parametrize("seed", range(4))
def test_wilcoxon_decides_as_optuna_s(seed: int) -> None:
    draw = random.Random(seed)
    ours = Pruner("wilcoxon", settings={"p_threshold": 0.2})
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.2))
    best: Sequence[float] = []
    decisions = []
    for _ in range(40):
        trial, scores = study.ask(), [round(draw.gauss(0, 0.1), 2) for _ in range(6)]
        pruned = False
        for split in range(6):
            trial.report(scores[split], split)
            pruned = bool(trial.should_prune())
            if best:
                goes_on = ours.goes_on_beside(scores[: split + 1], best[: split + 1], sum(best) / 6)
                decisions.append(goes_on)
                assert goes_on is not pruned
            if pruned:
                break
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, sum(scores) / 6)
            best = scores if not best or sum(scores) > sum(best) else best
    assert {True, False} <= set(decisions)
