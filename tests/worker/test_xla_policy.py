"""When a fit is trained in XLA and how many epochs at once, as tables of what is known and what is decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.xla_policy import (
    XlaPolicy,
    epochs_until_return,
    is_faster_in_xla,
    repays,
    surely_repays,
)

#: A small model's fit in ``auto``, half-way through its first trials: nothing speaks against XLA.
SMALL = XlaPolicy(
    mode=FitMode.AUTO,
    obstacle=None,
    has_checked_indices=True,
    watches_for_nan=False,
    keras_uses_xla=False,
    has_full_batch=True,
    is_compiled=False,
    n_operations=200,
    n_multiplications=0,
    steps_per_epoch=10,
    n_graph_steps=0,
    graph_step_s=0.0005,
    xla_step_s=None,
)
#: Epochs of `SMALL` that just repay 0.5 s of compilation: one of 10 steps spares 0.7 ms.
ENOUGH = 715


@pytest.mark.parametrize(
    ("known", "may_use_xla"),
    [
        ({}, True),
        ({"mode": FitMode.XLA}, True),
        ({"mode": FitMode.EXACT}, False),
        ({"mode": FitMode.KERAS}, False),
        ({"obstacle": "XLA has no PyFunc"}, False),
        ({"has_checked_indices": False}, False),
        ({"watches_for_nan": True}, False),
        ({"keras_uses_xla": True}, False),
        ({"has_full_batch": False}, False),
    ],
)
def test_xla_is_ruled_out_where_it_gives_another_result_or_has_nothing_to_do(
    known: dict[str, Any], may_use_xla: bool
) -> None:
    policy = replace(SMALL, **known)

    assert policy.may_use_xla is may_use_xla
    assert may_use_xla or not policy.uses_xla(10**9)


@pytest.mark.parametrize(
    ("known", "n_epochs_to_come", "uses_xla"),
    [
        # as asked for, whatever it costs
        ({"mode": FitMode.XLA}, 1, True),
        ({"mode": FitMode.XLA, "graph_step_s": None}, 1, True),
        # … but for what was measured to be slower there
        ({"mode": FitMode.XLA, "is_compiled": True, "xla_step_s": 0.0006}, 1, False),
        ({"mode": FitMode.XLA, "is_compiled": True, "xla_step_s": 0.0004}, 1, True),
        ({"mode": FitMode.EXACT}, 10**9, False),
        # compiled once the steps to come repay it, those that came included
        ({}, ENOUGH - 2, False),
        ({}, ENOUGH, True),
        ({"n_graph_steps": 10}, ENOUGH - 1, True),
        # more operations take longer to compile, and spare more
        ({"n_operations": 400}, ENOUGH - 2, False),
        ({"n_operations": 400}, ENOUGH, True),
        ({"steps_per_epoch": 20}, ENOUGH // 2 + 1, True),
        # a step of arithmetic does not gain more than its overhead
        ({"graph_step_s": 1.0}, ENOUGH - 2, False),
        ({"graph_step_s": 0.00005}, ENOUGH, False),
        ({"n_multiplications": 2_000_000}, ENOUGH, True),
        ({"n_multiplications": 2_400_000}, ENOUGH, False),
        ({"n_multiplications": 2_500_000}, 10**9, False),
        # not before its speed is known
        ({"graph_step_s": None}, 10**9, False),
        # … unless it is sure whatever it is
        ({"graph_step_s": None, "starts_in_xla": True}, 1, True),
        ({"graph_step_s": None, "starts_in_xla": True, "obstacle": "XLA has no PyFunc"}, 1, False),
        # a compiled program is used unless it was measured to be slower
        ({"is_compiled": True}, 1, True),
        ({"is_compiled": True, "xla_step_s": 0.0001}, 1, True),
        ({"is_compiled": True, "xla_step_s": 0.0006}, 10**9, False),
        ({"is_compiled": True, "graph_step_s": None, "xla_step_s": 0.0006}, 1, True),
    ],
)
def test_auto_compiles_what_repays_and_keeps_what_is_faster(
    known: dict[str, Any], n_epochs_to_come: int, uses_xla: bool
) -> None:
    assert replace(SMALL, **known).uses_xla(n_epochs_to_come) is uses_xla


@pytest.mark.parametrize(
    ("known", "is_first", "n_epochs"),
    [
        # a second's worth, of 5 ms in the graph and 1 ms in XLA
        ({}, False, 200),
        ({"is_compiled": True, "xla_step_s": 0.0001}, False, 1000),
        ({"is_compiled": True, "xla_step_s": 0.0001, "mode": FitMode.EXACT}, False, 200),
        ({"graph_step_s": 1.0}, False, 1),
        ({"is_compiled": True, "xla_step_s": 0.1}, False, 200),  # slower in XLA, and so not there
        # one and then a few while the speed is not known
        ({"graph_step_s": None}, True, 1),
        ({"graph_step_s": None}, False, 8),
        ({"is_compiled": True}, True, 1),
        ({"is_compiled": True}, False, 8),
        # one to look at the indices, but for the mode that needs no look
        ({"has_checked_indices": False}, False, 1),
        ({"has_checked_indices": False, "mode": FitMode.EXACT}, False, 200),
    ],
)
def test_a_run_returns_to_python_about_every_second(known: dict[str, Any], is_first: bool, n_epochs: int) -> None:
    policy = replace(SMALL, **known)

    assert policy.epochs_of_next_run(10**6, is_first=is_first) == n_epochs
    assert policy.epochs_of_next_run(1, is_first=is_first) == 1


@pytest.mark.parametrize(
    ("n_steps", "step_s", "n_operations", "n_multiplications", "expected"),
    [
        (0, 1.0, 1, 0, False),
        (10**6, 1e-9, 200, 0, False),
        # measured: Pima's two layers repay it after 5,000 to 6,000 steps, of which a trial of three splits has 15,600
        (15_600, 0.00016, 381, 1_210, True),
        (4_000, 0.00016, 381, 1_210, False),
        # the digits' 3,420 of a trial do not, where they took 2.9 s and 3.2 in XLA
        (3_420, 0.00035, 381, 551_232, False),
        # nor does a few trials' worth, once Adam updates all variables at once
        (10_000, 0.00017, 381, 551_232, False),
        # large layers never do
        (10**6, 0.01, 400, 50_000_000, False),
    ],
)
def test_a_compilation_is_repaid_by_the_overhead_of_many_steps(
    n_steps: int, step_s: float, n_operations: int, n_multiplications: int, expected: bool
) -> None:
    assert repays(n_steps, step_s, n_operations, n_multiplications) is expected


@pytest.mark.parametrize(
    ("n_steps", "n_multiplications", "is_recurrent", "expected"),
    [
        (15_600, 1_210, False, True),
        (11_000, 1_210, False, False),
        (15_600, 545_000, False, False),
        (15_600, 1_210, True, False),
    ],
)
def test_the_many_steps_of_a_small_model_repay_xla_for_sure(
    n_steps: int, n_multiplications: int, is_recurrent: bool, expected: bool
) -> None:
    assert surely_repays(n_steps, n_multiplications, is_recurrent=is_recurrent) is expected


@pytest.mark.parametrize(
    ("graph_step_s", "xla_step_s", "expected"),
    [(None, None, True), (None, 1.0, True), (1.0, None, True), (2.0, 1.0, True), (1.0, 2.0, False), (1.0, 1.0, False)],
)
def test_a_compiled_program_is_preferred_until_both_speeds_are_known(
    graph_step_s: float | None, xla_step_s: float | None, expected: bool
) -> None:
    assert is_faster_in_xla(graph_step_s=graph_step_s, xla_step_s=xla_step_s) is expected


@pytest.mark.parametrize(("step_s", "steps", "expected"), [(0.001, 10, 100), (0.5, 1, 2), (3.0, 1, 1), (0.4, 1, 2)])
def test_a_second_holds_as_many_whole_epochs_as_fit_and_at_least_one(step_s: float, steps: int, expected: int) -> None:
    assert epochs_until_return(step_s, steps) == expected
