"""The checker of histories: it finds each violation that is planted, and nothing in a history without any."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests import history
from tests.history import Expected, Witness
from tests.storage.conftest import StoredSearch, model_result, result_of, store_refit, store_search

MAX_FAILURES = 2
#: What the estimator gives the trials of the search: the second is tried three times, the third's fit raises, the
#: fourth is never evaluated to its end.
SCORES = (0.5, 0.75, math.nan, 0.25)


def claimed(search: StoredSearch, number: int, worker_id: str) -> Held:
    with search.database.write() as connection:  # no waiting before another try
        connection.execute(text("UPDATE trials SET not_before = NULL"))
    return search.held(number, worker_id=worker_id)


def reap(database: Database, held: Held) -> None:
    assert transitions.reap(database, held, outcome=Outcome.WORKER_LOST, error="killed", max_failures=MAX_FAILURES)


@pytest.fixture
def search(database: Database) -> StoredSearch:
    """Store a search with all that may happen to a trial, and a cancelled one."""
    stored = store_search(database, len(SCORES), name="eventful")
    assert transitions.record(database, claimed(stored, 0, "a/1"), result_of(SCORES[0]))
    assert transitions.release(database, claimed(stored, 1, "a/1"))
    reap(database, claimed(stored, 1, "b/1"))
    assert transitions.record(database, claimed(stored, 1, "a/2"), result_of(SCORES[1]))
    assert transitions.record(database, claimed(stored, 2, "a/1"), result_of(math.nan, error="the fit raised"))
    for worker_id in ("a/1", "b/1"):
        reap(database, claimed(stored, 3, worker_id))
    cancelled = store_search(database, 2, name="cancelled")
    running = claimed(cancelled, 0, "a/1")
    assert searches.cancel_search(database, cancelled.id)
    assert transitions.cancel(database, running)
    return stored


@pytest.fixture
def expected(search: StoredSearch) -> list[Expected]:
    def params(n_trials: int) -> list[dict[str, Any]]:
        return [{"units": number} for number in range(n_trials)]

    return [
        Expected(search.id, params(len(SCORES)), [(score, score) for score in SCORES]),
        Expected(search.id + 1, params(2), [(1.0, 1.0)] * 2),
    ]


def change(database: Database, *statements: str) -> None:
    """Write what no code of ours writes, past the constraints that refuse it."""
    with closing(sqlite3.connect(database.url.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement


def test_a_history_without_violations_is_found_to_be_one(
    database: Database, search: StoredSearch, expected: list[Expected]
) -> None:
    assert history.check(database, expected, max_failures=MAX_FAILURES) == []

    totals = history.totals(database, expected)
    assert (totals.searches, totals.lost, totals.doubled) == (2, 0, 0)
    assert totals.trials == {"completed": 2, "failed": 2, "cancelled": 2}
    assert totals.attempts == {"completed": 2, "failed": 1, "released": 1, "worker_lost": 3, "cancelled": 1}


#: The trials have the ids 1 to 6 in the order of `search`, the searches 1 and 2.
VIOLATIONS = {
    "is queued and not final": "UPDATE trials SET state = 'queued', finished_at = NULL WHERE id = 4",
    "has not ended, it is completed": "UPDATE searches SET finished_at = NULL WHERE id = 1",
    "has ended though its trials 3 have not": "UPDATE trials SET state = 'queued', finished_at = NULL WHERE id = 4",
    "ended before its last trial": "UPDATE searches SET finished_at = '2020-01-01 00:00:00.000+00:00' WHERE id = 1",
    "has ended, but is running": "UPDATE searches SET state = 'running' WHERE id = 1",
    "is completed and has token": "UPDATE trials SET token = 'x' WHERE id = 1",
    "and finished_at is None": "UPDATE trials SET finished_at = NULL WHERE id = 1",
    "is cancelled, which nobody asked for": "UPDATE trials SET cancel_requested = 0 WHERE id = 6",
    "has attempts numbered 1, 3, with gaps": "DELETE FROM attempts WHERE trial_id = 2 AND attempt = 2",
    "says that it was tried 7 times": "UPDATE trials SET attempt = 7 WHERE id = 1",
    "two attempts with the same token": "UPDATE attempts SET token = 'x' WHERE trial_id = 2",
    "with the attempts 1 open": (
        "UPDATE attempts SET ended_at = NULL, outcome = NULL WHERE trial_id = 2 AND attempt = 1"
    ),
    "which ended before it began": (
        "UPDATE attempts SET ended_at = '2020-01-01 00:00:00.000+00:00' WHERE trial_id = 1"
    ),
    "which began after the trial had ended as cancelled": (
        "INSERT INTO attempts (trial_id, attempt, token, worker_id, started_at, ended_at, outcome) VALUES "
        "(6, 1, 'x', 'a/1', '2120-01-01 00:00:00.000+00:00', '2120-01-01 00:00:00.000+00:00', 'cancelled')"
    ),
    "has attempts 1 and 2 at the same time": (
        "UPDATE attempts SET ended_at = '2120-01-01 00:00:00.000+00:00' WHERE trial_id = 2 AND attempt = 1"
    ),
    "was tried again after attempt 1, which had ended with a result": (
        "UPDATE attempts SET outcome = 'failed' WHERE trial_id = 2 AND attempt = 1"
    ),
    "has 2 attempts that recorded a result": (
        "UPDATE attempts SET outcome = 'completed' WHERE trial_id = 2 AND attempt = 1"
    ),
    "counts 0 failures, its attempts 1": "UPDATE trials SET failures = 0 WHERE id = 2",
    "failed 3 times, the budget is 2": "UPDATE attempts SET outcome = 'timeout' WHERE trial_id = 2",
    "is failed after 1 of 2 failures": ("UPDATE attempts SET outcome = 'released' WHERE trial_id = 4 AND attempt = 1"),
    "is completed, but no attempt recorded a result": "UPDATE attempts SET outcome = 'released' WHERE trial_id = 1",
    "has scores that no attempt recorded": "UPDATE trials SET mean_test_score = 0.1 WHERE id = 4",
    "is failed, its last attempt ended as completed": "UPDATE trials SET state = 'failed' WHERE id = 1",
    "was recorded by b/9, its last attempt was that of a/2": "UPDATE trials SET worker_id = 'b/9' WHERE id = 2",
    "has other times than its last attempt": (
        "UPDATE trials SET started_at = '2120-01-01 00:00:00.000+00:00' WHERE id = 2"
    ),
    "is completed without a score of its splits": "DELETE FROM split_scores WHERE trial_id = 1",
    "has score of the splits 0, not of 2": "DELETE FROM split_scores WHERE trial_id = 1 AND split = 1",
    "is completed with the mean score None": "UPDATE trials SET mean_test_score = NULL WHERE id = 1",
    "has the mean score 0.625, its splits' is 0.5": "UPDATE trials SET mean_test_score = 0.625 WHERE id = 1",
    "has 0.125 on split 1, its model gives 0.5": (
        "UPDATE split_scores SET test_score = 0.125 WHERE trial_id = 1 AND split = 1"
    ),
    "is completed, though its fit or its score can't be": "UPDATE trials SET state = 'completed' WHERE id = 3",
    "is failed, though its model gives [0.5, 0.5]": "UPDATE trials SET state = 'failed' WHERE id = 1",
    "has the params": "UPDATE trials SET params = '{\"units\": 99}' WHERE id = 1",
    "has the trials 0, 1, 2, not the 4 that were accepted": "DELETE FROM trials WHERE id = 4",
    "'eventful' has 3 trials of 4 accepted": "DELETE FROM trials WHERE id = 4",
    "was accepted and is not there": "DELETE FROM searches WHERE id = 1",
}


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("sentence", VIOLATIONS)
def test_each_violation_that_is_planted_is_found(
    database: Database, search: StoredSearch, expected: list[Expected], sentence: str
) -> None:
    change(database, VIOLATIONS[sentence])

    found = history.check(database, expected, max_failures=MAX_FAILURES)

    assert any(sentence in violation for violation in found), found


def test_a_search_that_nobody_submitted_is_found(
    database: Database, search: StoredSearch, expected: list[Expected]
) -> None:
    found = history.check(database, expected[:1], max_failures=MAX_FAILURES)

    assert found == ["search 'cancelled' was never submitted (I7)"]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_reporter_that_names_another_best_trial_is_found(
    database: Database, search: StoredSearch, expected: list[Expected], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history.reader, "best_trial", lambda *_: None)

    found = history.check(database, expected, max_failures=MAX_FAILURES)

    assert found == ["search 'eventful' has the best trial 1, the reporter says None (I13)"]


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "lost", "doubled"),
    [
        ("DELETE FROM trials WHERE id = 1", 1, 0),
        ("UPDATE trials SET state = 'queued', finished_at = NULL WHERE id = 4", 1, 0),
        ("UPDATE attempts SET outcome = 'completed' WHERE trial_id = 2", 0, 1),
        ("UPDATE split_scores SET trial_id = 1, split = split + 2 WHERE trial_id = 2", 0, 1),
    ],
)
def test_what_is_lost_and_what_is_doubled_is_counted(
    database: Database, search: StoredSearch, expected: list[Expected], statement: str, lost: int, doubled: int
) -> None:
    change(database, statement)

    totals = history.totals(database, expected)

    assert (totals.lost, totals.doubled) == (lost, doubled)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_witness_tells_which_trial_changed_after_its_end(database: Database, search: StoredSearch) -> None:
    witness = Witness()
    witness.look(database)
    late = store_search(database, 1, name="late")
    assert transitions.record(database, claimed(late, 0, "a/1"), result_of(1.0))
    witness.look(database)
    assert witness.changes(database) == []

    change(
        database,
        "UPDATE trials SET mean_test_score = 0.9 WHERE id = 1",
        "DELETE FROM split_scores WHERE trial_id = 7",
        "DELETE FROM attempts WHERE trial_id = 7",
        "DELETE FROM trials WHERE id = 7",
    )

    assert witness.changes(database) == [
        "trial 0 of search 1 changed after its end: mean_test_score was 0.5, is 0.9",
        "trial 0 of search 3 changed after its end: it is gone",
    ]


REFIT = "(SELECT t.id FROM trials t JOIN searches s ON s.id = t.search_id WHERE s.refit_of IS NOT NULL)"
OF_REFITS = {
    f"DELETE FROM best_models WHERE trial_id = {REFIT}": "is completed and has no model",
    f"UPDATE best_models SET number = 0 WHERE trial_id = {REFIT}": "has the model of trial 0, the best one is 1",
    f"DELETE FROM best_model_chunks WHERE trial_id = {REFIT}": "has a model of 5 bytes, and 0 of it",
    f"UPDATE trials SET started_at = '2020-01-01 00:00:00.000+00:00' WHERE id = {REFIT}": "began before its search had",
    "UPDATE searches SET state = 'cancelled' WHERE refit_of IS NULL": "is completed, though its search has nothing",
    "UPDATE searches SET refit_of = 77 WHERE refit_of IS NOT NULL": "is the refit of search 77, which is not there",
}


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("statement", OF_REFITS)
def test_a_refit_that_is_none_is_found(database: Database, database_settings: Settings, statement: str) -> None:
    signer = Signer(database_settings.key())
    refitted = store_search(database, 2, signer=signer)
    refit = store_refit(refitted, signer)
    for number, score in enumerate((0.5, 0.75)):
        assert transitions.record(database, refitted.held(number), result_of(score))
    assert transitions.record(database, refit.held(), model_result(refit, number=1))
    assert history.check(database) == []

    change(database, statement)

    assert any(OF_REFITS[statement] in found for found in history.check(database))
