"""The trainings of the self-check: families of models with optimizers and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.selfcheck import registries
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
        A key of `OPTIMIZERS`, or the name of another one of Keras'.
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
#: Those that are tried as part of a product, by the names of Keras' classes.
IN_PRODUCTS = frozenset(("Adam", "AdamW", "RMSprop", "SGD", "Adagrad", "Nadam", "Lion", "Ftrl"))
#: The family that `OTHER_OPTIONS` are tried with, and the optimizer.
OTHER_FAMILY, OTHER_OPTIMIZER = FAMILIES[0], "adam"


def make_optimizer(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return a new optimizer of a case."""
    return OPTIMIZERS[name](**arguments) if name in OPTIMIZERS else registries.make_optimizer(name, **arguments)


def data_cases() -> list[Case]:
    """Return cases that cover all pairs of families, optimizers and `DATA_OPTIONS`.

    All triples would be nine times as many, and take hours. The remainder is part of most of these options, and has no
    case of its own where there are enough others.
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


def registry_cases() -> list[Case]:
    """Return a case for each activation, optimizer, loss and metric of the installed Keras."""
    return [*_of_other_optimizers(), *(_in_registry(family) for family in registries.families())]


def joint_registry_cases() -> list[Case]:
    """Return a case for each of those optimizers, and few that have all the rest together."""
    return [*_of_other_optimizers(), *(_in_registry(family) for family in registries.joint_families())]


def _of_other_optimizers() -> list[Case]:
    names = [name for name in registries.optimizers() if name not in IN_PRODUCTS]
    return [Case(OTHER_FAMILY, name, DATA_OPTIONS[0]) for name in names]


def _in_registry(family: Family) -> Case:
    return Case(family, OTHER_OPTIMIZER, DATA_OPTIONS[0])


def _keras_takes(case: Case) -> bool:
    return case.family.takes_class_weight or case.option.name != "class_weight"
