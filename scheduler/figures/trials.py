"""The trials that a figure draws: all of a small search; of a large one the best, and a fair sample by number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.figures import count
from gridfleet.scheduler.reports.tables import metric_of
from gridfleet.scheduler.reports.trial_reader import best_first
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.schema import Trial, TrialState

#: Trials that a figure draws at most: half of them are the best, half a sample.
MOST = 2_000

_COLUMNS = (
    Trial.id,
    Trial.number,
    Trial.state,
    Trial.params,
    Trial.mean_test_score,
    Trial.std_test_score,
    Trial.mean_fit_time,
    Trial.started_at,
    Trial.finished_at,
    Trial.iter,
    Trial.pruned_split,
    Trial.pruned_epoch,
    Trial.pruned_value,
)


@dataclass(frozen=True, slots=True)
class DrawnTrial:
    """A trial as the table ``trials`` has it."""

    id: int
    number: int
    state: str
    params: dict[str, Any]
    mean_test_score: float | None
    std_test_score: float | None
    mean_fit_time: float | None
    started_at: datetime | None
    finished_at: datetime | None
    iter: int | None = None
    pruned_split: int | None = None
    pruned_epoch: int | None = None
    pruned_value: float | None = None

    @property
    def place(self) -> tuple[int, float, int]:
        """What is greatest of the best: of a halving search one of the last round, the lower number among equals."""
        return self.iter or 0, self.mean_test_score or 0.0, -self.number


@dataclass(frozen=True, slots=True)
class Drawn:
    """A search and those of its trials that are drawn, by number.

    Of a large search the best are among them, so that the best so far is right from the first of these on.
    """

    search: reader.SearchSummary
    trials: Sequence[DrawnTrial]
    #: Of a large search, the numbers that were drawn by chance; None: all trials are there.
    sampled: frozenset[int] | None = None

    @property
    def scored(self) -> list[DrawnTrial]:
        """Those with a score, by number."""
        return [trial for trial in self.trials if trial.mean_test_score is not None]

    @property
    def pruned(self) -> list[DrawnTrial]:
        """Those that were pruned, by number."""
        return [trial for trial in self.trials if trial.state == TrialState.PRUNED]

    @property
    def is_sample(self) -> bool:
        """Whether these are not all."""
        return self.sampled is not None

    @property
    def fair(self) -> list[DrawnTrial]:
        """Those with a score, without what is there only because it is among the best."""
        return [trial for trial in self.scored if self.sampled is None or trial.number in self.sampled]

    @property
    def best(self) -> DrawnTrial | None:
        """The best of the search; the lower number among equals."""
        return max(self.scored, key=lambda trial: trial.place, default=None)

    @property
    def metric(self) -> str:
        """What ranks the trials, as its user gave it."""
        return metric_of(self.search)

    @property
    def note(self) -> str:
        """What a figure says of what it draws."""
        total = (
            count(self.search.n_trials, "trial") if self.search.n_trials < MOST else f"{self.search.n_trials:,} trials"
        )
        if self.is_sample:
            return f"{len(self.trials):,} of {total}: the best, and a fair sample by number"
        failed = sum(trial.state == TrialState.FAILED for trial in self.trials)
        pruned = len(self.pruned)
        n_open = sum(trial.finished_at is None for trial in self.trials)
        facts = [total, f"{failed:,} failed" if failed else ""]
        facts += [f"{pruned:,} pruned" if pruned else "", f"{n_open:,} not done" if n_open else ""]
        return ", ".join(filter(None, facts))

    def require_scored(self, least: int = 1) -> list[DrawnTrial]:
        """Return the trials that have a score.

        Raises
        ------
        NothingToDrawError
            If there are fewer than `least`.
        """
        scored = self.scored
        if len(scored) < least:
            has = f"has {count(len(scored), 'scored trial')}" if scored else "has no scored trial"
            raise NothingToDrawError(f"search {self.search.name!r} {has}; this figure needs {least} or more")
        return scored


def drawn(database: Database, search_id: int, most: int = MOST) -> Drawn:
    """Read the trials of a search that figures draw.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    most : int, default=2000
        Half of them are the best, the others one of each of as many equal parts of the numbers, up to the last that
        is scored: drawn by chance, or a grid whose last hyperparameter has ten values might show one of them only; by
        the same chance each time.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, search_id)
    of_search = select(*_COLUMNS).where(Trial.search_id == search_id)
    with database.read() as connection:
        if search.n_trials <= most:
            return Drawn(search, _read(connection, of_search.order_by(Trial.number)))
        found = {trial.number: trial for trial in _read(connection, _best(search_id, most // 2))}
        last = connection.execute(
            select(func.max(Trial.number)).where(Trial.search_id == search_id, Trial.mean_test_score.is_not(None))
        ).scalar()
        numbers = sample((last or search.n_trials - 1) + 1, most - most // 2, seed=search_id)
        # by their numbers, each a step in an index: a condition on each row would read a million of them
        found |= {trial.number: trial for trial in _read(connection, of_search.where(Trial.number.in_(numbers)))}
    return Drawn(search, [found[number] for number in sorted(found)], frozenset(numbers))


def sample(n: int, most: int, *, seed: int) -> list[int]:
    """Choose numbers below `n`, one of each of `most` equal parts; all of them if there are no more.

    Examples
    --------
    >>> sample(3, 5, seed=1)
    [0, 1, 2]
    """
    if n <= most:
        return list(range(n))
    chance = random.Random(seed)  # noqa: S311 - a figure, and the same one each time
    edges = [n * place // most for place in range(most + 1)]
    return [chance.randrange(edges[place], edges[place + 1]) for place in range(most)]


def _best(search_id: int, most: int) -> Select[Any]:
    return best_first(search_id).with_only_columns(*_COLUMNS).limit(most)


def _read(connection: Connection, query: Select[Any]) -> list[DrawnTrial]:
    return [DrawnTrial(**row._mapping) for row in connection.execute(query)]
