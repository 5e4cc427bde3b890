"""What storage's tests share: stored searches without a scheduler, and the rows of their trials."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Row, delete, func, insert, select, update

from gridfleet.storage import models, refits, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.payloads.store import KEY_CHECK, PayloadStore
from gridfleet.storage.schema import Attempt, Lease, Payload, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trial_results import ModelResult, SplitResult, TrialResult
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Claim, Held
from gridfleet.storage.versions import installed_versions
from tests.forked import forked
from tests.stored_searches import switch_triggers_off

#: The digest of a payload that nobody loads.
DIGEST = "0" * 64
N_SPLITS = 2
#: What signs the models of these tests.
MODELS = Signer(b"a key of workers")
#: A token that nobody was given.
OLD_TOKEN = "f" * 32
#: Seconds that processes on a busy machine may take to be ready for a race.
READY_S = 90

#: The columns of a trial, in which the end of its lease stands for the column of before.
TRIAL_WITH_LEASE = [
    Lease.expires_at.label(column.name) if column.name == "lease_expires_at" else column
    for column in Trial.__table__.columns
]

_numbers = itertools.count()


@dataclass(frozen=True)
class StoredSearch:
    """A search in the database, all its trials queued."""

    database: Database
    id: int
    name: str
    trial_ids: list[int]

    def row(self) -> Row[Any]:
        """Return the search."""
        with self.database.read() as connection:
            return connection.execute(select(*Search.__table__.columns).where(Search.id == self.id)).one()

    def trial(self, number: int = 0) -> Row[Any]:
        """Return a trial by its number, with the end of its lease."""
        statement = select(*TRIAL_WITH_LEASE).outerjoin(Lease, Lease.trial_id == Trial.id)
        with self.database.read() as connection:
            return connection.execute(statement.where(Trial.search_id == self.id, Trial.number == number)).one()

    def claim(self, number: int = 0, *, worker_id: str = "node/1", lease_s: float = 60) -> Claim | None:
        """Claim a trial by its number."""
        return claims.claim(self.database, self.trial_ids[number], worker_id, lease_s=lease_s, max_runtime_s=3_600)

    def held(self, number: int = 0, **options: Any) -> Held:
        """Claim a trial, which must succeed."""
        claim = self.claim(number, **options)
        assert claim is not None, f"trial {number} can't be claimed"
        return Held(claim.trial_id, claim.token)


def store_search(
    database: Database,
    candidates: Sequence[dict[str, Any]] | int = 1,
    *,
    name: str | None = None,
    signer: Signer | None = None,
    session: str | None = None,
    needs_python: str | None = None,
) -> StoredSearch:
    """Store a search whose payloads exist in name only; without a signature, as older releases did, or with one."""
    if isinstance(candidates, int):
        candidates = [{"units": number} for number in range(candidates)]
    name = name or f"search {next(_numbers)}"
    with database.write() as connection:
        if connection.execute(select(Payload.digest).where(Payload.digest == DIGEST)).first() is None:
            connection.execute(
                insert(Payload).values(digest=DIGEST, kind="none", size=0, signature=DIGEST, created_at=now())
            )
        digests: dict[str, str | None] = dict.fromkeys(
            ("evaluation_digest", "x_digest", "y_digest", "splits_digest", "candidates_digest"), DIGEST
        )
        if signer is not None:  # a table of an older release has no such column, and signs nothing
            digests["sources_digest"] = None
        if needs_python is not None:
            digests["needs_python"] = needs_python
        facts = {
            "name": name,
            "strategy": "GridSearchCV",
            "scoring": None,
            "refit_metric": "score",
            "n_trials": len(candidates),
            "n_splits": N_SPLITS,
            "fit_mode": "exact",
            "estimator": "Estimator()",
            "submitted_by": "somebody@host",
            **digests,
            **installed_versions(),
        }
        if signer is None:
            search_id = connection.execute(insert(Search).values(facts).returning(Search.id)).scalar_one()
        else:
            search_id, _ = searches.create_search(connection, name, {**facts, "session": session}, signer)
        queue.create_trials(connection, search_id, candidates)
        ids = connection.execute(select(Trial.id).where(Trial.search_id == search_id).order_by(Trial.number)).scalars()
        return StoredSearch(database, search_id, name, list(ids))


#: What is proposed in `store_asking`.
SPACE = '[{"a":{"kind":"whole","low":1,"high":9,"step":1,"log":false}}]'


def store_asking(database: Database, n_trials: int = 3, **facts: Any) -> StoredSearch:
    """Store a search whose trials are proposed; it has none yet."""
    search = store_search(database, 1)
    columns: dict[str, Any] = {
        "space": SPACE,
        "sampler": '{"name":"random"}',
        "seed": 7,
        "lookahead": 2,
        "asks_in_order": True,
        "n_trials": n_trials,
        "n_asked": 0,
        **facts,
    }
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(delete(Trial).where(Trial.search_id == search.id))
        connection.execute(update(Search).where(Search.id == search.id).values(columns))
    return search


def store_refit(search: StoredSearch, signer: Signer) -> StoredSearch:
    """Store the refit of a search, which waits for its end."""
    row = search.row()._mapping
    kept = (*searches.SIGNED_COLUMNS, "estimator", *installed_versions())
    name = refits.name_of(search.id)
    with search.database.write() as connection:
        columns = refits.columns_of({column: row[column] for column in kept}, search.id, MODELS.public_key)
        del columns["name"]
        refit_id, _ = searches.create_search(connection, name, columns, signer)
        queue.create_trials(connection, refit_id, [{}])
        ids = connection.execute(select(Trial.id).where(Trial.search_id == refit_id)).scalars()
        return StoredSearch(search.database, refit_id, name, list(ids))


def model_result(refit: StoredSearch, content: bytes = b"model", *, number: int = 0, signer: Signer = MODELS) -> Any:
    """Return what a worker records of a refit: a model that nobody loads."""
    digest = hashlib.sha256(content).hexdigest()
    facts = {"number": number, "digest": digest, "size": len(content)}
    signature = models.sign(signer, refit.id, refit.trial_ids[0], **facts)
    return TrialResult(
        splits=[], mean_fit_time=3.5, model=ModelResult([memoryview(content)], signature=signature, **facts)
    )


def result_of(score: float, *, error: str | None = None, n_splits: int = N_SPLITS) -> TrialResult:
    """Return what a worker records about a trial with equal scores on all splits."""
    splits = [
        SplitResult(
            split=split,
            metric="score",
            test_score=score,
            train_score=None,
            fit_time=0.5,
            score_time=0.1,
            n_train=8,
            n_test=4,
            error=error,
        )
        for split in range(n_splits)
    ]
    return TrialResult(
        splits=splits,
        mean_test_score=score,
        std_test_score=0.0,
        mean_fit_time=0.5,
        error_type=None if error is None else "ValueError",
        error=error,
    )


def attempts_of(database: Database, trial_id: int) -> list[Row[Any]]:
    """Return the attempts at a trial, the first one first."""
    with database.read() as connection:
        statement = select(*Attempt.__table__.columns).where(Attempt.trial_id == trial_id).order_by(Attempt.attempt)
        return list(connection.execute(statement))


def set_trial(database: Database, trial_id: int, **values: Any) -> None:
    """Put times of a trial or of its lease elsewhere, as if the clock had moved."""
    expires_at = values.pop("lease_expires_at", None)
    with database.write() as connection:
        if expires_at is not None:
            connection.execute(update(Lease).where(Lease.trial_id == trial_id).values(expires_at=expires_at))
        if values:
            connection.execute(update(Trial).where(Trial.id == trial_id).values(**values))


def ago(seconds: float) -> datetime:
    """Return a time in the past."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def reap(database: Database, held: Held, *, max_failures: int = 3, **options: Any) -> bool:
    """Take a trial back whose process died."""
    return transitions.reap(
        database, held, outcome=Outcome.WORKER_LOST, error="the process died", max_failures=max_failures, **options
    )


def _race(settings: Settings, action: Callable[[Database, Any], Any], argument: Any, start: Any, answers: Any) -> None:
    with closing(Database(settings)) as database:
        database.check()  # connected: what follows is the race alone
        start.wait(READY_S)
        try:
            answers.put(action(database, argument))
        except Exception as error:
            answers.put(RuntimeError(f"{type(error).__name__}: {error}"))


def race(settings: Settings, action: Callable[[Database, Any], Any], arguments: list[Any]) -> list[Any]:
    """Let as many processes as arguments do something at the same moment; returns their answers."""
    context = forked()
    start, answers = context.Barrier(len(arguments)), context.Queue()
    racers = [
        context.Process(target=_race, args=(settings, action, argument, start, answers)) for argument in arguments
    ]
    for racer in racers:
        racer.start()
    try:
        found = [answers.get(timeout=READY_S) for _ in racers]
    finally:
        for racer in racers:
            racer.join(60)
    for answer in found:
        if isinstance(answer, RuntimeError):
            raise answer
    assert [racer.exitcode for racer in racers] == [0] * len(racers)
    return found


def put_array(database: Database, arguments: tuple[Settings, int]) -> str:
    """Store an array of 2 MB; here, so that racing processes need not import what a test file does."""
    settings, seed = arguments
    return PayloadStore(database, settings).put("X", np.random.default_rng(seed).normal(size=(500, 500)), what="X")


def get_sum(database: Database, arguments: tuple[Settings, str]) -> float:
    """Load an array and add it up."""
    settings, digest = arguments
    return float(PayloadStore(database, settings).get("X", digest).sum())


@pytest.fixture
def search(database: Database) -> StoredSearch:
    """Store a search of three trials."""
    return store_search(database, 3)


@pytest.fixture
def store(database: Database, database_settings: Settings) -> PayloadStore:
    """The submitter's store."""
    return PayloadStore(database, database_settings)


@pytest.fixture
def another_store(database: Database, database_settings: Settings) -> Callable[..., PayloadStore]:
    """Make the store of another process: the same database and cache, nothing loaded yet."""
    return lambda **changes: PayloadStore(database, database_settings.replace(**changes))


def cache_files(settings: Settings) -> list[Path]:
    """List the payloads in a worker's cache."""
    return sorted(file for file in settings.cache_dir.glob("*") if len(file.name) == 64)


def count(database: Database, table: Any) -> int:
    """Count the rows of a table; of payloads, those that somebody put there."""
    rows = select(func.count()).select_from(table)
    if table is Payload:
        rows = rows.where(Payload.digest != KEY_CHECK)
    with database.read() as connection:
        return connection.execute(rows).scalar_one()
