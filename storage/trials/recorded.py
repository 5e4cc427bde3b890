"""What workers recorded of a search's trials, row by row: of it all else is made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, SplitScore, Trial


class SearchGoesOnError(Exception):
    """A refit was claimed while its search was opened again: another trial may be the best one in the end."""


def recorded_of_ended(database: Database, search_id: int | None) -> tuple[Sequence[Any], str | None]:
    """Return the rows of the search that a refit is of, and why that was stopped before its end, if it was.

    Raises
    ------
    SearchGoesOnError
        If it has not ended.
    """
    with database.read() as connection:
        ended = connection.execute(
            select(Search.error).where(Search.id == search_id, Search.finished_at.is_not(None))
        ).one_or_none()
    if ended is None or search_id is None:
        raise SearchGoesOnError
    return trial_rows(database, search_id), ended.error


def trial_rows(database: Database, search_id: int, *, finished_since: datetime | None = None) -> Sequence[Any]:
    """Return one row per trial, split and metric, in the order of ``cv_results_``.

    Trials without scores have one row, whose split is None. `finished_since` leaves out those that ended before.
    """
    query = (
        select(
            Trial.number,
            Trial.state,
            Trial.error_type,
            Trial.error.label("trial_error"),
            Trial.exception,
            Trial.finished_at,
            SplitScore.split,
            SplitScore.metric,
            SplitScore.test_score,
            SplitScore.train_score,
            SplitScore.test_score_reason,
            SplitScore.train_score_reason,
            SplitScore.fit_time,
            SplitScore.score_time,
            SplitScore.n_test,
            SplitScore.error,
        )
        .select_from(Trial)
        .outerjoin(SplitScore, SplitScore.trial_id == Trial.id)
        .where(Trial.search_id == search_id)
        .order_by(Trial.number, SplitScore.split, SplitScore.metric)
    )
    if finished_since is not None:
        query = query.where(Trial.finished_at >= finished_since)
    with database.read() as connection:
        return connection.execute(query).all()
