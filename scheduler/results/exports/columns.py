"""The columns of a search as a table: one for each hyperparameter and each score, under scikit-learn's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.whole_trials import WholeTrial, iterate_params
from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import Kind, column_kinds
from gridfleet.storage.schema import SplitScore, Trial

#: Columns before the hyperparameters, and behind the scores; with the names of the table ``trials``.
FIRST = ("number", "state")
LAST = (
    "mean_fit_time",
    "seed",
    "attempt",
    "worker_id",
    "started_at",
    "finished_at",
    "fit_mode",
    "error_type",
    "error",
)
MEANS = ("mean_test_score", "std_test_score")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a search, and a trial's cells in them.

    Parameters
    ----------
    params : dict of str to Kind
        Each hyperparameter's type in SQL.
    scores : sequence of (str, str, int)
        ``test`` or ``train``, metric and split.
    """

    params: dict[str, Kind]
    scores: Sequence[tuple[str, str, int]]

    @property
    def names(self) -> list[str]:
        """Their names, those of ``cv_results_`` where it has them."""
        params = [f"param_{name}" for name in self.params]
        scores = [f"split{split}_{kind}_{metric}" for kind, metric, split in self.scores]
        return [*FIRST, *params, *MEANS, *scores, *LAST]

    def cells(self, trial: WholeTrial) -> list[Any]:
        """Return a trial's values; None where it has none."""
        params = [trial.params.get(name) for name in self.params]
        of_kind = {"test": trial.test_scores, "train": trial.train_scores}
        scores = [of_kind[kind].get(metric, {}).get(split) for kind, metric, split in self.scores]
        own = [[getattr(trial, name) for name in names] for names in (FIRST, MEANS, LAST)]
        return [*own[0], *params, *own[1], *scores, *own[2]]


def columns_of(database: Database, search: reader.SearchSummary) -> Columns:
    """Return the columns of a search: its hyperparameters, and the scores that its first scored trial has."""
    first = (
        select(func.min(Trial.id))
        .join(SplitScore, SplitScore.trial_id == Trial.id)
        .where(Trial.search_id == search.id)
        .scalar_subquery()
    )
    has_train = func.count(SplitScore.train_score)
    query = (
        select(SplitScore.metric, has_train).where(SplitScore.trial_id == first).group_by(SplitScore.metric)
    ).order_by(SplitScore.metric)
    with database.read() as connection:
        metrics = connection.execute(query).all()
    splits = range(search.n_splits)
    kinds = [(kind, metric) for metric, n_train in metrics for kind in (("test", "train") if n_train else ("test",))]
    scores = [(kind, metric, split) for kind, metric in kinds for split in splits]
    return Columns(column_kinds(iterate_params(database, search.id)), scores)
