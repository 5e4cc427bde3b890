"""Searches as workers leave them in the database: claimed and recorded by storage's own code, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.engine import Connection

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Report, Search, Trial
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import CurveResult, SplitResult, TrialResult
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Claim, Held
from gridfleet.storage.versions import installed_versions

#: The combinations of the search pima and what their two splits scored; the last one's fit raises.
PIMA: Sequence[tuple[dict[str, Any], tuple[float, float] | None]] = (
    ({"optimizer": "adam", "batch_size": 10}, (0.6875, 0.71875)),
    ({"optimizer": "adam", "batch_size": 20}, (0.734375, 0.765625)),
    ({"optimizer": "rmsprop", "batch_size": 10}, (0.65625, 0.71875)),
    ({"optimizer": "rmsprop", "batch_size": 20}, (0.625, 0.6875)),
    ({"optimizer": "adan", "batch_size": 10}, None),
)
WORKERS = ("host-a/101", "host-b/202")
TRACEBACK = "Traceback (most recent call last):\n  …\nValueError: Could not interpret optimizer identifier: adan"


def switch_triggers_off(connection: Connection) -> None:
    """Let a transaction change what is final, as a superuser can; SQLite has no triggers."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))


def store_pima(settings: Settings, database: Database) -> int:
    """Store the finished search ``pima``: five trials, one tried twice, one failed. Returns its id."""
    search_id = store_search(settings, database, "pima", [params for params, _ in PIMA])
    for number, worker_id in enumerate(WORKERS):
        workers.register(database, worker_id, hostname=worker_id.partition("/")[0], pid=100 + number)
    for number, (_, scores) in enumerate(PIMA):
        if number == 1:
            lost = claim(database, search_id, number, WORKERS[1])
            reap(database, lost, "the process ended with signal 9 (SIGKILL)")
        record(database, claim(database, search_id, number, WORKERS[number % 2]), scores)
    return search_id


def store_search(settings: Settings, database: Database, name: str, candidates: Sequence[dict[str, Any]]) -> int:
    """Store a search with its trials, all queued. Returns its id."""
    put = PayloadStore(database, settings).put
    kinds = ("evaluation", "candidates", "x", "y", "splits")
    digests = {f"{kind}_digest": put(kind, [kind], what=kind) for kind in kinds}
    with database.write() as connection:
        search_id = connection.execute(
            insert(Search)
            .values(
                name=name,
                strategy="GridSearchCV",
                refit_metric="score",
                n_trials=len(candidates),
                n_splits=2,
                random_state="42",
                estimator="KerasClassifier(model=create_model)",
                submitted_by="ada@host-a",
                **digests,
                **installed_versions(),
            )
            .returning(Search.id)
        ).scalar_one()
        queue.create_trials(connection, search_id, candidates)
        create_search_view(connection, search_id, name, column_kinds(map(params_to_json, candidates)))
    return search_id


def claim(database: Database, search_id: int, number: int, worker_id: str) -> Claim:
    """Take one trial of a search for a worker."""
    with database.read() as connection:
        trial_id = connection.execute(
            select(Trial.id).where(Trial.search_id == search_id, Trial.number == number)
        ).scalar_one()
    claimed = claims.claim(database, trial_id, worker_id, lease_s=60, max_runtime_s=600)
    assert claimed is not None
    return claimed


def record(database: Database, claimed: Claim, scores: tuple[float, float] | None) -> None:
    """Record a trial's scores and learning curves, or that its fit raised."""
    result = _failed() if scores is None else _scored(scores, claimed.number)
    assert transitions.record(database, Held(claimed.trial_id, claimed.token), result)


def reap(database: Database, claimed: Claim, error: str) -> None:
    """Take a trial back from a worker that died."""
    held = Held(claimed.trial_id, claimed.token)
    assert transitions.reap(database, held, outcome=Outcome.WORKER_LOST, error=error, max_failures=3)


def prune_two(database: Database, search_id: int) -> None:
    """Let two trials of ``pima`` have been pruned, among what the others reported."""
    with database.write() as connection:
        ids = connection.execute(select(Trial.id).where(Trial.search_id == search_id).order_by(Trial.number)).scalars()
        trial_ids = list(ids)
        switch_triggers_off(connection)
        for number, step, value, rank, n_compared, decision in (
            (0, 1, 0.6, 1, 0, "kept"),
            (1, 1, 0.7, 1, 1, "kept"),
            (2, 1, 0.7, 1, 2, "kept"),
            (0, 3, 0.65, 1, 0, "kept"),
            (1, 3, 0.75, 1, 1, "kept"),
            (2, 3, 0.625, 3, 2, "pruned"),
            (3, 1, 0.5, 4, 3, "pruned"),
        ):
            place = {"trial_id": trial_ids[number], "split": 0, "step": step}
            found = {"value": value, "rank": rank, "n_compared": n_compared, "decision": decision}
            connection.execute(insert(Report), {**place, **found})


def _scored(scores: tuple[float, float], number: int) -> TrialResult:
    mean = sum(scores) / len(scores)
    return TrialResult(
        splits=[
            SplitResult(
                split=split,
                metric="score",
                test_score=score,
                train_score=None,
                fit_time=1.5 + number / 4,
                score_time=0.25,
                n_train=384,
                n_test=384,
            )
            for split, score in enumerate(scores)
        ],
        curves=[
            CurveResult(split=split, metric=metric, values=[value / (epoch + 1) for epoch in range(3)])
            for split in range(len(scores))
            for metric, value in (("loss", 0.75 + split / 4), ("accuracy", 0.5))
        ],
        mean_test_score=mean,
        std_test_score=(sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5,
        mean_fit_time=1.5 + number / 4,
    )


def _failed() -> TrialResult:
    return TrialResult(splits=[], error_type="ValueError", error=TRACEBACK)
