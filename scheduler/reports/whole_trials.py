"""All trials of a search with all their scores, some hundred at a time: there may be a million. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Report, SplitScore, Trial

#: Trials read at once, each time in a transaction of its own: who writes them somewhere may take an hour.
ROWS = 500

_COLUMNS = (
    Trial.id,
    Trial.number,
    Trial.state,
    Trial.params,
    Trial.mean_test_score,
    Trial.std_test_score,
    Trial.mean_fit_time,
    Trial.seed,
    Trial.attempt,
    Trial.worker_id,
    Trial.started_at,
    Trial.finished_at,
    Trial.fit_mode,
    Trial.error_type,
    Trial.error,
    Trial.pruned_split,
    Trial.pruned_epoch,
    Trial.pruned_value,
)
_REPORTS = (Report.trial_id, Report.split, Report.step, Report.value)
_SCORES = (SplitScore.trial_id, SplitScore.split, SplitScore.metric, SplitScore.test_score, SplitScore.train_score)


@dataclass(frozen=True, slots=True)
class WholeTrial:
    """A trial as the table ``trials`` has it, its scores by metric and split, and what it was compared by.

    The latter by split and step, as the table ``reports`` has it.
    """

    id: int
    number: int
    state: str
    params: dict[str, Any]
    mean_test_score: float | None
    std_test_score: float | None
    mean_fit_time: float | None
    seed: int | None
    attempt: int
    worker_id: str | None
    started_at: datetime | None
    finished_at: datetime | None
    fit_mode: str | None
    error_type: str | None
    error: str | None
    pruned_split: int | None = None
    pruned_epoch: int | None = None
    pruned_value: float | None = None
    test_scores: dict[str, dict[int, float | None]] = field(default_factory=dict)
    train_scores: dict[str, dict[int, float | None]] = field(default_factory=dict)
    reports: dict[tuple[int, int], float | None] = field(default_factory=dict)


def iterate(database: Database, search_id: int) -> Iterator[WholeTrial]:
    """Yield the trials of a search by number, whatever their states."""
    last = -1
    query = select(*_COLUMNS).where(Trial.search_id == search_id).order_by(Trial.number).limit(ROWS)
    while True:
        with database.read() as connection:
            trials = [WholeTrial(**row._mapping) for row in connection.execute(query.where(Trial.number > last))]
            by_id = {trial.id: trial for trial in trials}
            scores = select(*_SCORES).where(SplitScore.trial_id.in_(by_id)).order_by(*_SCORES[:2])
            for row in connection.execute(scores):
                trial = by_id[row.trial_id]
                trial.test_scores.setdefault(row.metric, {})[row.split] = row.test_score
                if row.train_score is not None:
                    trial.train_scores.setdefault(row.metric, {})[row.split] = row.train_score
            reports = select(*_REPORTS).where(Report.trial_id.in_(by_id)).order_by(*_REPORTS[:3])
            for trial_id, split, step, value in connection.execute(reports):
                by_id[trial_id].reports[split, step] = value
        yield from trials
        if len(trials) < ROWS:
            return
        last = trials[-1].number


def most_epochs(database: Database, search_id: int) -> int:
    """Return after how many epochs of a split one of a search's trials was compared, at most; 0: none was."""
    of_search = select(func.max(Report.step)).join(Trial, Trial.id == Report.trial_id)
    with database.read() as connection:
        return connection.execute(of_search.where(Trial.search_id == search_id)).scalar() or 0


def iterate_params(database: Database, search_id: int) -> Iterator[dict[str, Any]]:
    """Yield the hyperparameters of all trials of a search by number."""
    last = -1
    query = (
        select(Trial.number, Trial.params).where(Trial.search_id == search_id).order_by(Trial.number).limit(10 * ROWS)
    )
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(Trial.number > last)).all()
        for row in rows:
            yield row.params
        if len(rows) < 10 * ROWS:
            return
        last = rows[-1].number
