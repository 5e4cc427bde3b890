"""Keeps searches coming, a bounded number of trials open at a time, and knows what each must give."""

from __future__ import annotations

import math
import os
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from redis.exceptions import RedisError
from scikeras.wrappers import KerasClassifier
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV as ScikitLearnGridSearchCV
from sklearn.model_selection import ParameterGrid
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import session
from gridfleet.storage.schema import OPEN_STATES, Search, Trial
from tests.history import Expected
from tests.soak.models import Telling, create_model

N_SPLITS = 2
#: Scripts that submit in turn.
N_SCRIPTS = 3
#: The share of searches that are refitted.
REFITTED = 0.3
#: Trials that are open at a time at most, those of the newest search not counted.
MAX_OPEN = 30
#: Seconds between looks at how many are open.
LOOK_S = 0.5
#: How far Keras' scores may be from those of this process, which has other numbers of threads.
KERAS_TOLERANCE = 1e-6

_RNG = np.random.default_rng(0)
#: Whole numbers, so that their sum is the same in every order.
X, Y = _RNG.integers(-8, 8, (60, 8)).astype("float32"), _RNG.integers(0, 2, 60)
KERAS_SPACE = {"model__units": [3, 4], "random_state": [1, 2]}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of search: how often it is drawn, and what it is."""

    weight: int
    estimator: Any
    space: Mapping[str, Sequence[Any]]
    tolerance: float = 0.0


def kinds() -> dict[str, Kind]:
    """Return what searches are drawn from: most are quick, some longer than a lease, some real, some bad."""
    return {
        "quick": Kind(6, Telling(seconds=0.2), {"value": list(range(12))}),
        "longer than a lease": Kind(1, Telling(seconds=6.0), {"value": [1, 2]}),
        "keras": Kind(3, keras_model(), KERAS_SPACE, KERAS_TOLERANCE),
        "bad": Kind(1, Telling(seconds=0.2), {"value": [1, 2], "then": ["", "raise", "nan"]}),
    }


def keras_model() -> KerasClassifier:
    """Return a real model that trains for a moment."""
    return KerasClassifier(model=create_model, epochs=3, batch_size=8, verbose=0)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A search that was handed over; whether it was accepted, the database knows."""

    name: str
    params: Sequence[Mapping[str, Any]]
    scores: Sequence[Sequence[float]]
    tolerance: float


class Searches:
    """Submits searches as long as few trials are open.

    Parameters
    ----------
    fleet : Fleet
        Where they go.
    seed : int
        The same seed draws the same searches.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(f"{seed}: searches")
        self._kinds = kinds()
        self._scores = {name: scores_of(kind) for name, kind in self._kinds.items()}
        self._submitted: list[Submitted] = []
        self._look_at = 0.0
        self.refused = 0

    def tick(self) -> None:
        """Submit a search if few trials are open; one that a broken part refuses is not tried again."""
        if time.monotonic() < self._look_at:
            return
        try:
            if open_trials(self._fleet) < MAX_OPEN:
                self.submit(self._random.choices(list(self._kinds), [kind.weight for kind in self._kinds.values()])[0])
        except (SQLAlchemyError, RedisError, ConnectionError):
            self.refused += 1
        self._look_at = time.monotonic() + LOOK_S

    def submit(self, kind: str) -> None:
        """Submit one search."""
        wanted = self._kinds[kind]
        name = f"soak-{len(self._submitted) + 1}-{kind.replace(' ', '-')}"
        params = list(ParameterGrid(wanted.space))
        self._submitted.append(Submitted(name, params, self._scores[kind], wanted.tolerance))
        # as if scripts took turns, whose trials are for processes of their own
        session._ids[os.getpid()] = f"script {len(self._submitted) % N_SCRIPTS}"
        # some have their best model fitted on the fleet
        refit = self._random.random() < REFITTED
        grid = GridSearchCV(wanted.estimator, wanted.space, cv=N_SPLITS, refit=refit, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            submit(grid, X, Y, name=name)

    def expected(self) -> list[Expected]:
        """Return the searches that were accepted; of one that met a broken part the database tells."""
        with self._fleet.database.read() as connection:
            ids = {row.name: row.id for row in connection.execute(select(Search.id, Search.name))}
        return [
            Expected(ids[one.name], one.params, one.scores, one.tolerance) for one in self._submitted if one.name in ids
        ]


def open_trials(fleet: Fleet) -> int:
    """Count the trials that have not ended."""
    with fleet.database.read() as connection:
        return connection.execute(select(func.count()).where(Trial.state.in_(OPEN_STATES))).scalar_one()


def open_searches(fleet: Fleet) -> list[str]:
    """Name the searches that have not ended."""
    with fleet.database.read() as connection:
        return list(connection.execute(select(Search.name).where(Search.finished_at.is_(None))).scalars())


def scores_of(kind: Kind) -> list[list[float]]:
    """Return what scikit-learn's own search scores, split by split; NaN where a fit raises or the score is NaN."""
    estimator = clone(kind.estimator)
    if isinstance(estimator, Telling):
        estimator.set_params(seconds=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ScikitLearnGridSearchCV(estimator, dict(kind.space), cv=N_SPLITS, refit=False, error_score=math.nan)
        results = search.fit(X, Y).cv_results_
    splits = [results[f"split{split}_test_score"] for split in range(N_SPLITS)]
    return [[float(score) for score in scores] for scores in zip(*splits, strict=True)]
