"""What is known of one trial: its hyperparameters, its scores split by split, its attempts, its whole traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text
from sqlalchemy import Row, select

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.as_json import attempt
from gridfleet.scheduler.reports.attempts import lines
from gridfleet.scheduler.reports.figures import score, with_deviation
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.scheduler.reports.pruning import REPORT_COLUMNS, how_pruned, reports_of
from gridfleet.scheduler.reports.tables import console, table
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import TrialNotFoundError
from gridfleet.storage.schema import SplitScore, Trial


def print_trial(database: Database, name: str | int, number: int) -> None:
    """Print what is known of one trial of a search.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        The search's name, or its id.
    number : int
        The trial's, its index in ``cv_results_``.

    Raises
    ------
    SearchNotFoundError
        If there is no such search.
    TrialNotFoundError
        If the search has no such trial.
    """
    search = reader.find_search(database, name)
    trial, splits = trial_and_splits(database, search, number)
    out = console()
    out.print(Text(f"{plain(search.name)}, trial {number}: {plain(trial.state)}", style="bold"))
    reports = reports_of(database, trial.id)
    pruned = how_pruned(trial, reports)
    for label, fact in [*_facts(trial), *([] if pruned is None else [("pruned", pruned)])]:
        out.print(Text(f"  {label:<12} {plain(fact)}"))
    if reports:
        rows = [
            [one.split, one.step or "end", score(one.value), one.rank, one.n_compared + 1, one.decision]
            for one in reports
        ]
        out.print(table(["split", "epochs", "value", "rank", "of", "decision"], rows))
    if splits:
        header = ["split", "metric", "test_score", "train_score", "fit_time", "score_time"]
        rows = [
            [
                one.split,
                one.metric,
                one.test_score_reason or score(one.test_score),
                one.train_score_reason or score(one.train_score),
                f"{one.fit_time:.3f}",
                f"{one.score_time:.3f}",
            ]
            for one in splits
        ]
        out.print(table(header, [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]))
    tried = trial_reader.attempts(database, search.id, number=number)
    if tried:
        for line in lines(tried, out.width):
            out.print(Text(line))
    if trial.error is not None:
        out.print(Text(plain_lines(trial.error.strip())))


#: Columns of ``trials`` and ``split_scores`` that a program gets.
TRIAL_COLUMNS = (
    "number",
    "state",
    "params",
    "attempt",
    "worker_id",
    "mean_test_score",
    "std_test_score",
    "mean_fit_time",
    "fit_mode",
    "fit_fallback_reason",
    "peak_memory_mb",
    "error_type",
    "error",
    "seed",
    "pruned_split",
    "pruned_epoch",
    "pruned_value",
)
SPLIT_COLUMNS = (
    "split",
    "metric",
    "test_score",
    "test_score_reason",
    "train_score",
    "train_score_reason",
    "fit_time",
    "score_time",
)


def trial_as_json(database: Database, name: str | int, number: int) -> dict[str, Any]:
    """Return what is known of one trial as JSON types, with the keys of SQL; raises as `print_trial` does."""
    search = reader.find_search(database, name)
    trial, splits = trial_and_splits(database, search, number)
    return {
        "search": search.name,
        **{column: getattr(trial, column) for column in TRIAL_COLUMNS},
        "split_scores": [{column: getattr(one, column) for column in SPLIT_COLUMNS} for one in splits],
        "reports": [
            {column: getattr(one, column) for column in REPORT_COLUMNS} for one in reports_of(database, trial.id)
        ],
        "attempts": [attempt(one) for one in trial_reader.iterate_attempts(database, search.id, number=number)],
    }


def trial_and_splits(
    database: Database, search: reader.SearchSummary, number: int
) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """Read the row of one trial, and those of its splits; raises TrialNotFoundError without such a trial."""
    with database.read() as connection:
        trial = connection.execute(
            select(Trial).where(Trial.search_id == search.id, Trial.number == number)
        ).one_or_none()
        if trial is None:
            raise TrialNotFoundError(
                f"search {search.name} has no trial {number}; its trials are 0 to {search.n_trials - 1}"
            )
        splits = connection.execute(
            select(SplitScore).where(SplitScore.trial_id == trial.id).order_by(SplitScore.split, SplitScore.metric)
        ).all()
    return trial, splits


def _facts(trial: Row[Any]) -> list[tuple[str, str]]:
    facts = [("params", ", ".join(f"{name}={value!r}" for name, value in trial.params.items()))]
    if trial.mean_test_score is not None:
        facts.append(("score", with_deviation(trial.mean_test_score, trial.std_test_score)))
    if trial.fit_mode is not None:
        reason = f": {trial.fit_fallback_reason}" if trial.fit_fallback_reason else ""
        facts.append(("training", trial.fit_mode + reason))
    if trial.worker_id is not None:
        facts.append(("worker", trial.worker_id))
    if trial.reused_from is not None:
        facts.append(("reused", f"the result of trial id {trial.reused_from}"))
    return facts
