"""Keeps searches coming, a bounded number of trials open at a time, and knows what each must give.

Each is known by its tag: it may be renamed.
"""

from __future__ import annotations

import math
import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

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
from gridfleet.storage.schema import OPEN_STATES, Search, Tag, Trial
from tests.history import Expected
from tests.soak import script
from tests.soak.data import N_SPLITS, TAG, X, Y, own_rows
from tests.soak.models import Telling, create_model

#: Scripts that submit in turn.
N_SCRIPTS = 3
#: The share of searches that are refitted.
REFITTED = 0.3
#: The share of searches that take results that are there.
REUSING = 0.25
#: The share of searches without real models that have rows of their own.
WITH_OWN_ROWS = 0.4
#: Trials that are open at a time at most, those of the newest search not counted.
MAX_OPEN = 30
#: Seconds between looks at how many are open.
LOOK_S = 0.5
#: How far Keras' scores may be from those of this process, which has other numbers of threads.
KERAS_TOLERANCE = 1e-6
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


@dataclass(slots=True)
class Submitted:
    """A search that was handed over, by one process or by several: what it is, and what was done with it."""

    number: int
    kind: Kind
    name: str
    rows: Any
    refit: bool
    scores: Sequence[Sequence[float]]
    #: of those that were stored for certain; one that met a broken part may be there as well
    ids: set[int] = field(default_factory=set)
    n_resumes: int = 0
    is_script: bool = False


class Searches:
    """Submits searches as long as few trials are open, and goes on with them.

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
        self._look_at = 0.0
        self.submitted: list[Submitted] = []
        self.refused = 0
        #: what was done to a search since it was stored, by its id, as far as it is certain
        self.told: dict[int, dict[str, Any]] = {}

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

    def submit(self, name: str) -> None:
        """Submit one search of a kind."""
        number, kind = len(self.submitted) + 1, self._kinds[name]
        has_own_rows = isinstance(kind.estimator, Telling) and self._random.random() < WITH_OWN_ROWS
        rows = own_rows(number) if has_own_rows else X
        one = Submitted(
            number,
            kind,
            f"soak-{number}-{name.replace(' ', '-')}",
            rows,
            # some have their best model fitted on the fleet
            self._random.random() < REFITTED,
            scores_of(kind, rows) if has_own_rows else self._scores[name],
        )
        self.submitted.append(one)
        # as if scripts took turns, whose trials are for processes of their own
        session._ids[os.getpid()] = f"script {number % N_SCRIPTS}"
        one.ids.add(self._submit(one, one.name, reuse=self._random.random() < REUSING))

    def resume(self, one: Submitted, name: str) -> int:
        """Go on with a search under its name of now; returns the id of the search that it is."""
        one.n_resumes += 1
        search_id = self._submit(one, name, load_if_exists=True)
        one.ids.add(search_id)
        return search_id

    def _submit(self, one: Submitted, name: str, **options: bool) -> int:
        grid = GridSearchCV(one.kind.estimator, one.kind.space, cv=N_SPLITS, refit=one.refit, verbose=0)
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            return submit(grid, one.rows, Y, name=name, tags={TAG: str(one.number)}, **options).id

    def of_script(self) -> Submitted:
        """Note a search that a script of its own is going to submit."""
        number = len(self.submitted) + 1
        kind = Kind(0, Telling(), script.SPACE)
        rows = own_rows(number)
        one = Submitted(number, kind, f"soak-{number}-script", rows, True, scores_of(kind, rows), is_script=True)
        self.submitted.append(one)
        return one

    def expected(self, deleted: set[int]) -> list[Expected]:
        """Return the searches that were accepted and not deleted; of one that met a broken part the database tells."""
        tagged = select(Tag.search_id, Tag.value).where(Tag.key == TAG)
        with self._fleet.database.read() as connection:
            for row in connection.execute(tagged):
                self.submitted[int(row.value) - 1].ids.add(row.search_id)
        return [expected for one in self.submitted for expected in self._expected(one, deleted)]

    def _expected(self, one: Submitted, deleted: set[int]) -> Iterator[Expected]:
        for search_id in sorted(one.ids - deleted):
            yield Expected(
                search_id,
                list(ParameterGrid(one.kind.space)),
                one.scores,
                one.kind.tolerance,
                n_resumes=one.n_resumes,
                told=self.told.get(search_id, {}),
            )


def open_trials(fleet: Fleet) -> int:
    """Count the trials that have not ended."""
    with fleet.database.read() as connection:
        return connection.execute(select(func.count()).where(Trial.state.in_(OPEN_STATES))).scalar_one()


def open_searches(fleet: Fleet) -> list[str]:
    """Name the searches that have not ended."""
    with fleet.database.read() as connection:
        return list(connection.execute(select(Search.name).where(Search.finished_at.is_(None))).scalars())


def scores_of(kind: Kind, rows: Any = X) -> list[list[float]]:
    """Return what scikit-learn's own search scores, split by split; NaN where a fit raises or the score is NaN."""
    estimator = clone(kind.estimator)
    if isinstance(estimator, Telling):
        estimator.set_params(seconds=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ScikitLearnGridSearchCV(estimator, dict(kind.space), cv=N_SPLITS, refit=False, error_score=math.nan)
        results = search.fit(rows, Y).cv_results_
    splits = [results[f"split{split}_test_score"] for split in range(N_SPLITS)]
    return [[float(score) for score in scores] for scores in zip(*splits, strict=True)]
