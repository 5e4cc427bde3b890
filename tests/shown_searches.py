"""Searches of every kind, written into the tables row by row: what pages and figures show, without a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.params import column_kinds, digest_of, params_digest, params_to_json
from gridfleet.storage.schema import Attempt, Curve, Payload, Search, SplitScore, Trial, TrialState
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.versions import installed_versions
from tests.stored_searches import switch_triggers_off

#: When the first trial of each search began.
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: Rows of one statement.
ROWS = 1_000


@dataclass(frozen=True)
class ShownTrial:
    """A trial as the tables have it: scored if it has scores, failed if it has an error, else of its state."""

    params: Mapping[str, Any]
    scores: Sequence[float] = ()
    state: str = TrialState.QUEUED
    error: str | None = None
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ("score",)

    @property
    def shown_state(self) -> str:
        """Its state in SQL."""
        if self.scores:
            return TrialState.COMPLETED
        return TrialState.FAILED if self.error else self.state


def store_shown(
    database: Database, name: str, trials: Sequence[ShownTrial], *, is_final: bool = True, **columns: Any
) -> int:
    """Store a search with its trials as they are.

    Parameters
    ----------
    database : Database
        An empty fleet's.
    name : str
        The search's.
    trials : sequence of ShownTrial
        By number.
    is_final : bool, default=True
        Whether it has ended.
    **columns : dict
        Others of the table ``searches``.
    """
    with database.write() as connection:
        switch_triggers_off(connection)
        digest = digest_of(name)
        connection.execute(insert(Payload).values(digest=digest, kind="x", size=1, signature="0"))
        digests = dict.fromkeys(("evaluation", "candidates", "x", "y", "splits"), digest)
        n_splits = max([len(trial.scores) for trial in trials] + [2])
        row = {
            "name": name,
            "strategy": "GridSearchCV",
            "state": "completed" if is_final else "running",
            "refit_metric": "score",
            "n_trials": len(trials),
            "n_splits": n_splits,
            "estimator": "KerasClassifier(model=create_model)",
            "submitted_by": "ada@host-a",
            "created_at": BEGAN,
            "started_at": BEGAN,
            "finished_at": BEGAN + timedelta(minutes=5) if is_final else None,
            **{f"{kind}_digest": value for kind, value in digests.items()},
            **installed_versions(),
            **columns,
        }
        search_id = connection.execute(insert(Search).values(row).returning(Search.id)).scalar_one()
        shown = [params_to_json(trial.params) for trial in trials]
        create_search_view(connection, search_id, name, column_kinds(shown))
        rows = [_row(search_id, number, trial) for number, trial in enumerate(trials)]
        for first in range(0, len(rows), ROWS):
            some = trials[first : first + ROWS]
            ids = connection.execute(
                insert(Trial).returning(Trial.id, sort_by_parameter_order=True), rows[first : first + ROWS]
            ).scalars()
            numbered = list(zip(ids, some, strict=True))
            for table, found in (
                (SplitScore, [row for trial_id, trial in numbered for row in _splits(trial_id, trial)]),
                (Curve, [row for trial_id, trial in numbered for row in _curves(trial_id, trial)]),
                (Attempt, [row for trial_id, trial in numbered for row in _attempts(trial_id, trial)]),
            ):
                if found:
                    connection.execute(insert(table), found)
    return search_id


def _row(search_id: int, number: int, trial: ShownTrial) -> dict[str, Any]:
    state, is_scored = trial.shown_state, bool(trial.scores)
    mean = sum(trial.scores) / len(trial.scores) if is_scored else None
    is_open = state in (TrialState.QUEUED, TrialState.RUNNING)
    shown = params_to_json(trial.params)
    has_begun = state not in (TrialState.QUEUED, TrialState.CANCELLED)
    return {
        "search_id": search_id,
        "number": number,
        "params": shown,
        "params_digest": params_digest(shown),
        "state": state,
        "attempt": 1 if has_begun else 0,
        "worker_id": f"host-{'ab'[number % 2]}/10{number % 2}" if has_begun else None,
        "token": "t" if state == TrialState.RUNNING else None,
        "started_at": BEGAN + timedelta(seconds=number) if has_begun else None,
        "finished_at": None if is_open else BEGAN + timedelta(seconds=number + 2),
        "mean_test_score": mean,
        "std_test_score": (
            None if mean is None else (sum((one - mean) ** 2 for one in trial.scores) / len(trial.scores)) ** 0.5
        ),
        "mean_fit_time": 1.5 + number % 7 / 4 if is_scored else None,
        "error_type": trial.error.rpartition("\n")[2].partition(":")[0] if trial.error else None,
        "error": trial.error,
        **{
            column: trial.values.get(column)
            for column in (
                "fit_mode",
                "fit_fallback_reason",
                "build_time",
                "trace_time",
                "compile_time",
                "train_time",
                "score_time",
                "record_time",
                "peak_memory_mb",
                "seed",
            )
        },
    }


def _splits(trial_id: int, trial: ShownTrial) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "split": split,
            "metric": metric,
            "test_score": score - place / 8,
            "train_score": score + 0.125,
            "fit_time": 1.5,
            "score_time": 0.25,
            "n_train": 384,
            "n_test": 192,
        }
        for place, metric in enumerate(trial.metrics)
        for split, score in enumerate(trial.scores)
    ]


def _curves(trial_id: int, trial: ShownTrial) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "split": split, "metric": metric, "values": list(values)}
        for metric, values in trial.curves.items()
        for split in range(len(trial.scores))
    ]


def _attempts(trial_id: int, trial: ShownTrial) -> list[dict[str, Any]]:
    if trial.shown_state in (TrialState.QUEUED, TrialState.CANCELLED):
        return []
    is_open = trial.shown_state == TrialState.RUNNING
    return [
        {
            "trial_id": trial_id,
            "attempt": 1,
            "token": "t",
            "worker_id": "host-a/101",
            "started_at": BEGAN,
            "ended_at": None if is_open else BEGAN + timedelta(seconds=2),
            "outcome": None if is_open else Outcome(trial.shown_state),
            "error": trial.error,
        }
    ]
