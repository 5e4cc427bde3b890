"""The trainings of the self-check: families of models with optimizers and options."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.selfcheck.families import FAMILIES, Family
from gridfleet.worker.compiled_fit.selfcheck.options import DATA_OPTIONS, OTHER_OPTIONS, Option
from gridfleet.worker.compiled_fit.selfcheck.tolerances import XLA_TOLERANCE, XLA_TOLERANCE_OF_FTRL


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Parameters
    ----------
    family : Family
    optimizer : str
        A key of `OPTIMIZERS`.
    option : Option
    """

    family: Family
    optimizer: str
    option: Option

    def __str__(self) -> str:
        return f"{self.family.name}-{self.optimizer}-{self.option.name}"

    def tolerance(self, mode: FitMode) -> float:
        """Return the difference to Keras' own result that is in order."""
        if mode is FitMode.EXACT:
            return 0.0
        of_optimizer = XLA_TOLERANCE_OF_FTRL if self.optimizer == "ftrl" else XLA_TOLERANCE
        return max(of_optimizer, self.family.xla_tolerance.get(self.optimizer, 0.0), self.option.xla_tolerance)


#: Makers of optimizers, by name.
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    "adagrad": keras.optimizers.Adagrad,
    "nadam": keras.optimizers.Nadam,
    "lion": keras.optimizers.Lion,
    "ftrl": keras.optimizers.Ftrl,
}
#: The family that `OTHER_OPTIONS` are tried with, and the optimizer.
OTHER_FAMILY, OTHER_OPTIMIZER = FAMILIES[0], "adam"


def data_cases() -> list[Case]:
    """Return all families, each with all optimizers and all of `DATA_OPTIONS`."""
    cases = itertools.starmap(Case, itertools.product(FAMILIES, OPTIMIZERS, DATA_OPTIONS))
    return [case for case in cases if _keras_takes(case)]


def quick_data_cases() -> list[Case]:
    """Return cases that cover each family with each optimizer, and each family with each of `DATA_OPTIONS`.

    The remainder is part of most of these options, and has no case of its own where there are enough others.
    """
    names, cases = list(OPTIMIZERS), []
    for shift, family in enumerate(FAMILIES):
        options = [option for option in DATA_OPTIONS if _keras_takes(Case(family, names[0], option))]
        cases += [
            Case(family, names[(place + shift) % len(names)], option)
            for place, option in enumerate(options[-len(names) :])
        ]
    return cases


def other_cases() -> list[Case]:
    """Return a case for each of `OTHER_OPTIONS`."""
    return [Case(OTHER_FAMILY, OTHER_OPTIMIZER, option) for option in OTHER_OPTIONS]


def _keras_takes(case: Case) -> bool:
    return case.family.takes_class_weight or case.option.name != "class_weight"
