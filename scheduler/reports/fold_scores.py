"""Scores by fold: of one trial by each metric, of several side by side, and whether the winner leads beyond them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from gridfleet.scheduler.reports import trial_reader
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import SplitScore, Trial


@dataclass(frozen=True, slots=True)
class FoldScores:
    """What trials scored on each split by one metric.

    Parameters
    ----------
    metric : str
        As ``split_scores`` has it.
    splits : list of int
        From 0 on.
    test, train : dict of int to list of float or None
        By a trial's number, one a split; None: there is none.
    """

    metric: str
    splits: list[int]
    test: Mapping[int, list[float | None]]
    train: Mapping[int, list[float | None]]


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much the best trial leads the second, against how far that differs from split to split.

    Parameters
    ----------
    second : int
        The number of the second trial.
    difference : float
        Of the means; never negative.
    spread : float or None
        The standard deviation, over the splits, of what the first is better by; None with less than two splits.
    n_better, n_splits : int
        On how many splits the first is better, of how many.
    """

    second: int
    difference: float
    spread: float | None
    n_better: int
    n_splits: int

    @property
    def is_beyond(self) -> bool:
        """Whether the lead is larger than its spread over the splits."""
        return self.spread is not None and self.difference > self.spread


def fold_scores(database: Database, search_id: int, numbers: Sequence[int]) -> list[FoldScores]:
    """Read what trials scored, split by split, for each metric.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Their search's.
    numbers : sequence of int
        The trials', in the order in which they are returned.
    """
    columns = (SplitScore.split, SplitScore.metric, SplitScore.test_score, SplitScore.train_score)
    query = (
        select(Trial.number, *columns)
        .join(SplitScore, SplitScore.trial_id == Trial.id)
        .where(Trial.search_id == search_id, Trial.number.in_(list(numbers)))
        .order_by(SplitScore.metric, SplitScore.split)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    splits = sorted({row.split for row in rows})
    found = {(row.metric, row.number, row.split): row for row in rows}
    with_rows = [number for number in numbers if any(row.number == number for row in rows)]

    def side(metric: str, column: str) -> dict[int, list[float | None]]:
        return {
            number: [getattr(found.get((metric, number, split)), column, None) for split in splits]
            for number in with_rows
        }

    return [
        FoldScores(metric, splits, side(metric, "test_score"), side(metric, "train_score"))
        for metric in dict.fromkeys(row.metric for row in rows)
    ]


def lead(database: Database, search_id: int, metric: str) -> Lead | None:
    """Compare the two best trials of a search on its splits; None where there are not two.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        The search's.
    metric : str
        Which ranks its trials, as ``split_scores`` has it.
    """
    ranked = trial_reader.leaderboard(database, search_id, limit=2)
    if len(ranked) < 2:
        return None
    first, second = ranked
    by_metric = {one.metric: one for one in fold_scores(database, search_id, [first.number, second.number])}
    scores = by_metric.get(metric)
    both = () if scores is None else (scores.test.get(first.number, []), scores.test.get(second.number, []))
    ahead = [a - b for a, b in zip(*both, strict=False) if a is not None and b is not None] if both else []
    return Lead(
        second=second.number,
        difference=first.mean_test_score - second.mean_test_score,
        spread=statistics.stdev(ahead) if len(ahead) > 1 and all(map(math.isfinite, ahead)) else None,
        n_better=sum(one > 0 for one in ahead),
        n_splits=len(ahead),
    )
