"""Compiled fits leave what Keras' own leave: every family of models, optimizer and option of `selfcheck`."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.selfcheck import command, registries
from gridfleet.worker.compiled_fit.selfcheck.cases import (
    IN_PRODUCTS,
    OPTIMIZERS,
    Case,
    data_cases,
    joint_registry_cases,
    other_cases,
    registry_cases,
)
from gridfleet.worker.compiled_fit.selfcheck.command import main
from gridfleet.worker.compiled_fit.selfcheck.comparison import Verdict, _expected_mode, check, difference
from gridfleet.worker.compiled_fit.selfcheck.families import FAMILIES
from gridfleet.worker.compiled_fit.selfcheck.options import DATA_OPTIONS, OTHER_OPTIONS
from gridfleet.worker.compiled_fit.selfcheck.training import train


def case_of(family: str, optimizer: str, option: str) -> Case:
    families = {one.name: one for one in FAMILIES}
    options = {one.name: one for one in (*DATA_OPTIONS, *OTHER_OPTIONS)}
    return Case(families[family], optimizer, options[option])


def _one_of_each_family(cases: list[Case], *names: str) -> list[Case]:
    """Take a case of each family named, with as many optimizers and options as there are families."""
    chosen: list[Case] = []
    for name in names:
        had = {part for case in chosen for part in (case.optimizer, case.option.name)}
        of_family = [case for case in cases if case.family.name == name]
        chosen.append(max(of_family, key=lambda case: len({case.optimizer, case.option.name} - had)))
    return chosen


#: A handful, for XLA takes seconds to compile each: random layers, a loop in the loop, a step of the user's own.
CASES_IN_XLA = [
    pytest.param(case_of("mlp", "adam", "validation_split"), marks=pytest.mark.complete),
    case_of("batch_normalization", "adam", "remainder"),
    pytest.param(case_of("own_train_step", "nadam", "validation_data"), marks=pytest.mark.complete),
    pytest.param(case_of("gru", "rmsprop", "no_shuffle"), marks=pytest.mark.complete),
    pytest.param(case_of("embedding", "adamw", "class_weight"), marks=pytest.mark.complete),
]
#: Of a case that is in order.
GOOD = Verdict(0.0, "predict", 0.0, FitMode.EXACT, FitMode.EXACT, None, ())


#: In every run: what no situation of every run has (test_training_situations.py).
FEW_CASES = _one_of_each_family(data_cases(), "multi_output", "lstm")
#: Of those that are tried with one family: several callbacks at once, and an epoch that is cut.
FEW_OTHER_CASES = ("callbacks", "terminated_on_nan")
#: In a complete one.
MORE_CASES = [case for case in data_cases() if case not in FEW_CASES]


@pytest.fixture(
    scope="module",
    params=[
        *FEW_CASES,
        *(case for case in other_cases() if case.option.name in FEW_OTHER_CASES),
        *(
            pytest.param(case, marks=pytest.mark.complete)
            for case in (
                *MORE_CASES,
                *(case for case in other_cases() if case.option.name not in FEW_OTHER_CASES),
                *joint_registry_cases(),
                *registry_cases(),
            )
        ),
    ],
    ids=str,
)
def exact(request: pytest.FixtureRequest) -> Verdict:
    return check(request.param, FitMode.EXACT)


@pytest.fixture(scope="module", params=CASES_IN_XLA, ids=str)
def in_xla(request: pytest.FixtureRequest) -> Verdict:
    return check(request.param, FitMode.XLA)


def test_the_result_is_bit_for_bit_that_of_keras(exact: Verdict) -> None:
    assert exact.difference == 0, str(exact)


def test_nothing_falls_back(exact: Verdict) -> None:
    assert exact.mode is exact.expected_mode
    assert not exact.fell_back, str(exact)


def test_the_result_in_xla_is_that_of_keras_but_for_rounding(in_xla: Verdict) -> None:
    assert not in_xla.differs, str(in_xla)


def test_xla_compiles_what_it_is_asked_to(in_xla: Verdict) -> None:
    assert (in_xla.mode, in_xla.fallback_reason) == (FitMode.XLA, None)


# The cases


def test_the_cases_cover_each_pair_of_family_optimizer_and_option() -> None:
    cases = data_cases()
    options = {option.name for option in DATA_OPTIONS} - {"remainder"}  # all others but one have one too

    assert {(case.family.name, case.optimizer) for case in cases} == set(
        product([family.name for family in FAMILIES], OPTIMIZERS)
    )
    assert {(case.family.name, case.option.name) for case in cases} >= {
        (family.name, option)
        for family, option in product(FAMILIES, options)
        if family.takes_class_weight or option != "class_weight"
    }
    assert {(case.optimizer, case.option.name) for case in cases} >= set(product(OPTIMIZERS, options))


def test_each_activation_optimizer_loss_and_metric_of_the_installed_keras_has_a_case() -> None:
    cases = registry_cases()
    families = {case.family.name.partition("_")[::2] for case in cases}
    registered = {
        "activation": registries.keras_activations,
        "loss": registries.keras_losses,
        "metric": registries.keras_metrics,
    }

    for kind, module in registered.items():
        names = {one.__name__ for one in module.ALL_OBJECTS}
        assert {name for of, name in families if of == kind} == names - registries.ABSTRACT
    optimizers = {one.__name__ for one in registries.keras_optimizers.ALL_OBJECTS}
    assert {case.optimizer for case in cases if case.family.name == "mlp"} | IN_PRODUCTS == (
        optimizers - registries.ABSTRACT
    )
    for case in cases:  # made, though not trained
        case.family.build()


@pytest.mark.parametrize(("optimizer", "mode"), [("rmsprop", FitMode.EXACT), ("adam", FitMode.XLA)])
def test_lookups_whose_gradients_are_scattered_are_expected_in_the_graph(optimizer: str, mode: FitMode) -> None:
    assert _expected_mode(case_of("embedding", optimizer, "plain"), FitMode.XLA, FitMode.EXACT) is mode


def test_the_loss_that_is_not_finite_ends_an_epoch_before_its_last_batch() -> None:
    outcome = train(case_of("mlp", "adam", "terminated_on_nan"), FitMode.KERAS)

    assert "Batch 1: Invalid loss, terminating training" in outcome.texts[-1]
    assert len(outcome.values["history loss"]) == 1


# What the tool says


@pytest.mark.parametrize(
    ("expected", "found", "by"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], 0.0),
        ([1.0, 0.25], [1.0, 0.5], 0.25),
        ([100.0, 0.0], [101.0, 0.0], 0.01),
        ([1.0, np.nan], [1.5, np.nan], 0.5),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        (np.uint32(2**32 - 1), np.uint32(0), 1.0),
    ],
)
def test_differences_are_relative_to_what_is_larger_than_one(expected: object, found: object, by: float) -> None:
    assert difference(expected, found) == pytest.approx(by)


@pytest.mark.parametrize(
    ("verdict", "status", "line", "counts"),
    [
        (GOOD, 0, "ok exact", "2 ok, 0 differ, 0 fell back"),
        (
            replace(GOOD, difference=1e-7),
            1,
            "DIFFERS 1.0e-07 in predict (exact; None)",
            "0 ok, 2 differ, 0 fell back",
        ),
        (
            replace(GOOD, mode=FitMode.KERAS, fallback_reason="the model runs eagerly"),
            1,
            "fell back: the model runs eagerly",
            "0 ok, 0 differ, 2 fell back",
        ),
        (replace(GOOD, fallback_reason="steps is set"), 1, "fell back", "0 ok, 0 differ, 2 fell back"),
        (replace(GOOD, fallback_reason="known", known_fallbacks=("known",)), 0, "ok exact", "2 ok"),
        (
            replace(GOOD, expected_mode=FitMode.XLA, fallback_reason="not in XLA: no kernel"),
            1,
            "fell back: not in XLA: no kernel",
            "2 fell back",
        ),
        (
            replace(GOOD, expected_mode=FitMode.XLA, mode=FitMode.XLA, difference=1e-7, tolerance=1e-6),
            0,
            "ok xla 1.0e-07",
            "2 ok",
        ),
    ],
)
def test_the_tool_prints_a_line_for_each_case_and_fails_if_one_is_not_in_order(
    verdict: Verdict,
    status: int,
    line: str,
    counts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "check", lambda _case, _mode: verdict)

    assert main(["--family", "mlp", "gru", "--optimizer", "sgd", "--quick"]) == status

    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["mlp", "sgd"]
    assert all(line in one for one in lines)
    assert counts in last
