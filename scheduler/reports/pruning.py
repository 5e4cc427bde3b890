"""Which trials were pruned, where, and how they stood among those that they were compared with. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select

from gridfleet.scheduler.reports.figures import count, score
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Report, Search, Trial, TrialState
from gridfleet.storage.trials.reports import AT_THE_END

#: Columns of ``reports`` that a program gets.
REPORT_COLUMNS = ("split", "step", "value", "n_compared", "rank", "decision")


def reports_of(database: Database, trial_id: int) -> Sequence[Row[Any]]:
    """Return the reports of a trial, in the order in which they were made."""
    columns = [getattr(Report, name) for name in REPORT_COLUMNS]
    query = select(*columns).where(Report.trial_id == trial_id)
    with database.read() as connection:
        # a split's end, 0, comes behind its epochs
        return connection.execute(query.order_by(Report.split, Report.step == AT_THE_END, Report.step)).all()


def place(split: int | None, epoch: int | None) -> str:
    """Say where a trial was compared: in a split after some epochs, or at its end."""
    if not epoch:
        return f"at the end of split {split}"
    return f"after {epoch:,} {'epoch' if epoch == 1 else 'epochs'} of split {split}"


def standing(report: Row[Any]) -> str:
    """Say how a trial stood."""
    if report.rank is None:
        return f"with no finite value, beside {count(report.n_compared, 'other')}"
    if not report.n_compared:
        return f"with {score(report.value)}, compared with no other"
    return f"with {score(report.value)}, place {report.rank} of {report.n_compared + 1}"


def how_pruned(trial: Row[Any], reports: Sequence[Row[Any]]) -> str | None:
    """Say where a trial was pruned and how it stood there; None: it was not."""
    if trial.state != TrialState.PRUNED:
        return None
    where = place(trial.pruned_split, trial.pruned_epoch)
    at = (trial.pruned_split, trial.pruned_epoch or AT_THE_END)
    last = next((one for one in reports if (one.split, one.step) == at), None)
    return where if last is None else f"{where}, {standing(last)}"


def pruner_of(database: Database, search_id: int) -> tuple[str, str] | None:
    """Return the pruner of a search, as JSON, and what is monitored; None: nothing is pruned."""
    with database.read() as connection:
        row = connection.execute(select(Search.pruner, Search.monitor).where(Search.id == search_id)).one_or_none()
    return None if row is None or row.pruner is None else (row.pruner, row.monitor)


def pruned_facts(database: Database, search_id: int, *, n_pruned: int) -> list[str]:
    """Say how many trials of a search were pruned, and where."""
    if not n_pruned:
        return []
    columns = (Trial.pruned_split, Trial.pruned_epoch)
    query = (
        select(*columns, func.count().label("n"))
        .where(Trial.search_id == search_id, Trial.state == TrialState.PRUNED)
        .group_by(*columns)
        .order_by(Trial.pruned_split, Trial.pruned_epoch.is_(None), Trial.pruned_epoch)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [f"{count(row.n, 'trial')} {place(row.pruned_split, row.pruned_epoch)}" for row in rows]
