"""An optimizer's update of all variables at once leaves what Keras' updates one by one leave, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import compiled_fit, scope
from gridfleet.worker.compiled_fit.programs import joint_update
from gridfleet.worker.compiled_fit.programs.train import TrainProgram
from gridfleet.worker.compiled_fit.selfcheck.cases import Case
from gridfleet.worker.compiled_fit.selfcheck.comparison import check
from gridfleet.worker.compiled_fit.selfcheck.families import FAMILIES
from gridfleet.worker.compiled_fit.selfcheck.options import DATA_OPTIONS, OTHER_OPTIONS
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 6)).astype("float32"), RNG.integers(0, 2, (50, 1)).astype("float32")

FAMILY = {one.name: one for one in FAMILIES}
OPTION = {one.name: one for one in (*DATA_OPTIONS, *OTHER_OPTIONS)}
#: In every run: the optimizers that have it, and some of what is done to gradients and variables around its update.
CASES = [
    Case(FAMILY["mlp"], "adam", OPTION["amsgrad"]),
    Case(FAMILY["mlp"], "nadam", OPTION["gradient_accumulation"]),
    pytest.param(Case(FAMILY["mlp"], "adamw", OPTION["ema_overwrites"]), marks=pytest.mark.complete),
]
#: All else that is done around it, and all kinds of models.
MORE_CASES = [
    *(
        Case(FAMILY["mlp"], optimizer, option)
        for optimizer in ("adam", "nadam")
        for option in OTHER_OPTIONS
        if option.name not in ("amsgrad", "traces_step_anew", "jit_compile") or optimizer == "adam"
    ),
    *(Case(family, optimizer, DATA_OPTIONS[0]) for family in FAMILIES for optimizer in ("adam", "nadam")),
]


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> ProgramCache:
    """Have all variables updated at once however short a training is; returns the programs."""
    cache = ProgramCache()
    monkeypatch.setattr(scope, "programs", cache)
    monkeypatch.setattr(joint_update, "MIN_UPDATES", 0)
    return cache


def training_programs(programs: ProgramCache) -> list[TrainProgram]:
    kept = [entry.program for entry in programs._entries.values()]
    return [program for program in kept if isinstance(program, TrainProgram)]


def mlp(optimizer: Any = "adam", *inner: Any, loss: str = "binary_crossentropy") -> Any:
    inner = inner or (layers.Dense(5, activation="relu"),)
    model = keras.Sequential([keras.Input((6,)), *inner, layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer, loss, metrics=["mae"])
    return model


def everything(mode: FitMode, build: Callable[[], Any], **arguments: Any) -> list[Any]:
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    model = build()
    with compiled_fit(mode):
        history = model.fit(X, Y, **{"batch_size": 16, "epochs": 2, "verbose": 0, **arguments}).history
    return [*model.get_weights(), *(one.numpy() for one in model.optimizer.variables), *history.values()]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_variables_at_once_are_updated_as_one_by_one(case: Case, programs: ProgramCache) -> None:
    verdict = check(case, FitMode.EXACT)

    assert [program.updates_at_once for program in training_programs(programs)] == [True]
    assert verdict.difference == 0, str(verdict)


@pytest.mark.complete
@pytest.mark.parametrize("case", MORE_CASES, ids=str)
def test_each_family_and_each_option_is_updated_as_one_by_one(case: Case) -> None:
    verdict = check(case, FitMode.EXACT)

    assert verdict.difference == 0, str(verdict)


@pytest.mark.parametrize(
    "build",
    [
        # a gradient that is sparse, for rows of the words that a batch has
        lambda: mlp("adam", layers.Embedding(9, 3), layers.Flatten()),
        # TensorFlow computes reciprocal square roots otherwise at the end of an array
        lambda: mlp("rmsprop"),
        # as it does swish in a loop, and sums with a constant
        pytest.param(lambda: mlp("adam", layers.Dense(5, activation="silu")), marks=pytest.mark.complete),
        pytest.param(lambda: mlp("adam", loss="dice"), marks=pytest.mark.complete),
    ],
)
def test_what_is_not_known_to_be_equal_is_updated_one_by_one(build: Callable[[], Any], programs: ProgramCache) -> None:
    x = np.abs(X * 2).astype(int) if isinstance(build().layers[0], layers.Embedding) else X

    def outcome(mode: FitMode) -> list[Any]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        model = build()
        with compiled_fit(mode):
            model.fit(x, Y, batch_size=16, verbose=0)
        return list(model.get_weights())

    assert_equal(outcome(FitMode.EXACT), outcome(FitMode.KERAS))
    assert not any(program.updates_at_once for program in training_programs(programs))


def test_keras_goes_on_with_the_optimizers_own_variables() -> None:
    def outcome(mode: FitMode) -> list[Any]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        model = mlp()
        for one in (mode, FitMode.KERAS):
            with compiled_fit(one):
                model.fit(X, Y, batch_size=16, verbose=0)
        return [*model.get_weights(), *(one.numpy() for one in model.optimizer.variables)]

    assert_equal(outcome(FitMode.EXACT), outcome(FitMode.KERAS))


def test_a_model_trains_on_as_it_began_when_another_has_its_program_update_at_once(
    programs: ProgramCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(mode: FitMode) -> list[Any]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        first = mlp()
        keras.utils.clear_session(free_memory=False)  # names of layers begin anew
        second = mlp()
        with compiled_fit(mode):
            monkeypatch.setattr(joint_update, "MIN_UPDATES", 10**9)
            first.fit(X, Y, batch_size=16, verbose=0)
            monkeypatch.setattr(joint_update, "MIN_UPDATES", 0)
            second.fit(X, Y, batch_size=16, verbose=0)
            first.fit(X, Y, batch_size=16, verbose=0)
        return [*first.get_weights(), *second.get_weights()]

    assert_equal(outcome(FitMode.EXACT), outcome(FitMode.KERAS))
    assert [program.updates_at_once for program in training_programs(programs)] == [True]


def test_a_short_training_is_not_traced_twice(programs: ProgramCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_update, "MIN_UPDATES", 20_000)

    everything(FitMode.EXACT, mlp)

    assert [program.updates_at_once for program in training_programs(programs)] == [False]
