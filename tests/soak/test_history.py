"""The checker of histories: it finds each violation that is planted, and nothing in a history without any."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.deletions import delete_search
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Search
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests import history, stored_searches
from tests.history import Expected, Gone, Witness
from tests.storage.conftest import StoredSearch, model_result, result_of, store_refit, store_search
from tests.storage.test_reuse import store_with_keys

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
    monkeypatch.setattr(history.trial_reader, "best_trial", lambda *_: None)

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


def end(search: StoredSearch, *scores: float) -> None:
    for number, score in enumerate(scores):
        assert transitions.record(search.database, claimed(search, number, "a/1"), result_of(score))


@pytest.fixture
def resumed(database: Database, search: StoredSearch) -> int:
    """Go on with the search that was cancelled, and end it."""
    searches.open_again(database, search.id + 1)
    with database.read() as connection:
        ids = connection.execute(text(f"SELECT id FROM trials WHERE search_id = {search.id + 1} ORDER BY id")).scalars()
        end(StoredSearch(database, search.id + 1, "cancelled", list(ids)), 1.0, 1.0)
    return search.id + 1


def test_what_was_cancelled_and_ran_when_its_search_was_gone_on_with_is_no_violation(
    database: Database, search: StoredSearch, expected: list[Expected]
) -> None:
    witness = Witness()
    witness.look(database)
    with database.read() as connection:
        ids = connection.execute(text("SELECT id FROM trials WHERE search_id = 2 ORDER BY id")).scalars().all()
    searches.open_again(database, 2)
    end(StoredSearch(database, 2, "cancelled", list(ids)), 1.0, 1.0)
    witness.look(database)

    assert history.check(database, expected, max_failures=MAX_FAILURES) == []
    assert witness.changes(database, resumed={2}) == []
    assert len(witness.changes(database)) == 2
    totals = history.totals(database, expected)
    assert (totals.lost, totals.doubled) == (0, 0)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_what_was_done_and_ran_once_more_when_its_search_was_gone_on_with_is_found(
    database: Database, search: StoredSearch, expected: list[Expected], resumed: int
) -> None:
    witness = Witness()
    witness.look(database)
    change(
        database,
        "INSERT INTO attempts (trial_id, attempt, token, worker_id, started_at, ended_at, outcome) SELECT trial_id, 9, "
        "'x', worker_id, ended_at, ended_at, 'completed' FROM attempts WHERE trial_id = 5 AND outcome = 'completed'",
        "UPDATE attempts SET attempt = 3 WHERE attempt = 9",
        "UPDATE trials SET attempt = 3 WHERE id = 5",
    )

    found = history.check(database, [expected[0], replace(expected[1], n_resumes=1)], max_failures=MAX_FAILURES)

    assert "trial 0 of search 'cancelled' has 2 attempts that recorded a result" in found
    assert any("was tried again after attempt 2, which had ended with a result" in violation for violation in found)
    assert history.totals(database, expected).doubled == 1
    assert witness.changes(database, resumed={resumed}) == [
        "trial 0 of search 2 changed after its end: attempt was 2, is 3"
    ]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_refit_runs_once_more_only_where_its_search_was_gone_on_with(
    database: Database, database_settings: Settings
) -> None:
    signer = Signer(database_settings.key())
    refitted = store_search(database, 2, signer=signer)
    refit = store_refit(refitted, signer)
    end(refitted, 0.5, 0.75)
    assert transitions.record(database, refit.held(), model_result(refit, number=1))
    witness = Witness()
    witness.look(database)
    change(  # as if the second trial had been cancelled
        database,
        f"UPDATE trials SET state = 'cancelled', mean_test_score = NULL WHERE id = {refitted.trial_ids[1]}",
        f"DELETE FROM split_scores WHERE trial_id = {refitted.trial_ids[1]}",
        f"UPDATE attempts SET outcome = 'cancelled' WHERE trial_id = {refitted.trial_ids[1]}",
    )
    searches.open_again(database, refitted.id)
    assert transitions.record(database, refitted.held(1), result_of(0.75))
    assert transitions.record(database, refit.held(), model_result(refit, number=1))
    expected = Expected(refitted.id, [{"units": 0}, {"units": 1}], [(0.5, 0.5), (0.75, 0.75)])
    twice = f"search 'refit:{refitted.id}' has 2 attempts that recorded a result"

    assert history.check(database, [replace(expected, n_resumes=1)]) == []
    assert history.totals(database, [replace(expected, n_resumes=1)]).doubled == 0
    of_refit = [change for change in witness.changes(database, {refitted.id}) if f"search {refit.id} " in change]
    assert of_refit == []

    assert any(twice in violation for violation in history.check(database, [expected]))
    assert history.totals(database, [expected]).doubled == 1


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "INSERT INTO leases (trial_id, token, worker_id, expires_at) VALUES (1, 'x', 'a/1', '2020-01-01 00:00:00')",
            "there is a lease of trial 1, which is completed (I3)",
        ),
        (
            "INSERT INTO leases (trial_id, token, worker_id, expires_at) VALUES (99, 'x', 'a', '2020-01-01 00:00:00')",
            "there is a lease of trial 99, which is not there (I3)",
        ),
        (
            "UPDATE trials SET state = 'running', token = 'x', finished_at = NULL WHERE id = 4",
            "trial 4 runs without a lease (I3)",
        ),
    ],
)
def test_a_lease_of_what_does_not_run_is_found(
    database: Database, search: StoredSearch, statement: str, sentence: str
) -> None:
    change(database, statement)

    assert sentence in history.check(database)


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE searches SET priority = 3 WHERE id = 1", "has the priority 3, it was given 2"),
        ("UPDATE searches SET name = 'other' WHERE id = 1", "has the name 'other', it was given 'eventful'"),
        (
            "UPDATE tags SET value = 'eager'",
            "has the tags {'mood': 'eager', 'gone': None}, it was given {'mood': 'calm', 'gone': None}",
        ),
        ("DELETE FROM tags WHERE key = 'mood'", "has the tags {'mood': None, 'gone': None}, it was given"),
    ],
)
def test_a_search_that_is_not_what_it_was_told_to_be_is_found(
    database: Database, search: StoredSearch, expected: list[Expected], statement: str, sentence: str
) -> None:
    change(
        database,
        "UPDATE searches SET priority = 2 WHERE id = 1",
        "INSERT INTO tags VALUES (1, 'mood', 'calm'), (1, 'soak', '1')",
    )
    told = {"name": "eventful", "priority": 2, "tags": {"mood": "calm", "gone": None}}
    expected[0] = replace(expected[0], told=told)
    assert history.check(database, expected, max_failures=MAX_FAILURES) == []

    change(database, statement)

    assert any(sentence in violation for violation in history.check(database, expected, max_failures=MAX_FAILURES))


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE split_scores SET test_score = 0.4 WHERE trial_id = 4", "has other scores than trial 2, whose result"),
        ("UPDATE split_scores SET score_time = 9 WHERE trial_id = 2", "has other scores than trial 2, whose result"),
        ("UPDATE trials SET mean_test_score = 0.4 WHERE id = 4", "has other scores than trial 2, whose result it took"),
        ("UPDATE trials SET reuse_key = 'other' WHERE id = 2", "which is completed, or another computation"),
        ("UPDATE trials SET state = 'failed' WHERE id = 2", "took the result of trial 2, which is failed"),
    ],
)
def test_a_result_that_is_not_that_of_the_trial_it_was_taken_from_is_found(
    database: Database, statement: str, sentence: str
) -> None:
    end(store_with_keys(database, ["a" * 64])[0], 0.5)
    store_with_keys(database, ["a" * 64])
    for template in (1, 3):  # which that leaves
        searches.cancel_search(database, template)
    assert searches.finish_search(database, 4)
    assert history.check(database) == []
    assert history.totals(database, []).reused == 1

    change(database, statement)

    assert any(sentence in violation for violation in history.check(database))


@pytest.fixture
def deleted(database: Database, database_settings: Settings) -> Gone:
    """Delete a search with a refit, beside one that stays; their payloads are in part the same."""
    signer, store = Signer(database_settings.key()), PayloadStore(database, database_settings)
    goes, stays = (store_search(database, 2, name=name, signer=signer) for name in ("goes", "stays"))
    digests = {name: store.put("X", [name], what="X") for name in ("goes", "stays", "both")}
    for search in (goes, stays):
        with database.write() as connection:
            stored_searches.switch_triggers_off(connection)
            named = {"x_digest": digests[search.name], "y_digest": digests["both"]}
            connection.execute(update(Search).where(Search.id == search.id).values(**named))
            create_search_view(connection, search.id, search.name, {"units": "bigint"})
    refit = store_refit(goes, signer)
    end(goes, 0.5, 0.75)
    end(stays, 0.5, 0.75)
    assert transitions.record(database, refit.held(), model_result(refit, number=1))
    delete_search(database, goes.id)
    with database.read() as connection:
        at = connection.execute(select(now(60))).scalar_one()
    return Gone(
        {goes.id, refit.id}, {*goes.trial_ids, *refit.trial_ids}, dict.fromkeys((digests["goes"], digests["both"]), at)
    )


def test_nothing_is_found_where_a_search_was_deleted_and_all_others_are_whole(
    database: Database, deleted: Gone
) -> None:
    assert history.leftovers(database, deleted) == []


#: The deleted search has the id 1, its trials 1 and 2, its refit 3 and that one's trial 5; 2, with 3 and 4, stays.
LEFT = {
    "INSERT INTO split_scores (trial_id, split, metric, fit_time, score_time, n_train, n_test) VALUES "
    "(1, 0, 'score', 0, 0, 1, 1)": "of the deleted trial 1 there are rows in split_scores",
    "INSERT INTO curves VALUES (2, 0, 'loss', '[]')": "of the deleted trial 2 there are rows in curves",
    "INSERT INTO attempts (trial_id, attempt, token, worker_id, started_at) VALUES (1, 1, 'x', 'a', '2020')": (
        "of the deleted trial 1 there are rows in attempts"
    ),
    "INSERT INTO trial_warnings VALUES (1, 0, 'W', 'm', NULL, 1)": "deleted trial 1 there are rows in trial_warnings",
    "INSERT INTO leases (trial_id, token, worker_id, expires_at, search_id) VALUES (77, 'x', 'a', '2020', 1)": (
        "of the deleted search 1 there are rows in leases"
    ),
    "INSERT INTO best_model_chunks VALUES (5, 0, 'x')": "of the deleted trial 5 there are rows in best_model_chunks",
    "UPDATE trials SET id = 1 WHERE id = 3": "of the deleted trial 1 there are rows in trials",
    "UPDATE searches SET id = 1 WHERE id = 2": "of the deleted search 1 there are rows in searches",
    "UPDATE searches SET refit_of = 1 WHERE id = 2": "of the deleted search 1 there are rows in searches",
    "INSERT INTO tags VALUES (1, 'mood', 'calm')": "of the deleted search 1 there are rows in tags",
    "INSERT INTO sources VALUES (1, 'f', NULL)": "of the deleted search 1 there are rows in sources",
    "UPDATE searches SET deleted_at = '2020-01-01 00:00:00.000+00:00'": "the deletion of search 2 was begun and is not",
    "DELETE FROM trials WHERE id = 3": "split_scores has rows of the trial 3, which is not there",
    "UPDATE searches SET y_digest = x_digest": "of a deleted search is there, and nothing names it",
    "DELETE FROM payload_chunks": "of its",
    "DELETE FROM payloads WHERE kind = 'X'": "is named and not there",
    "UPDATE searches SET packages_digest = 'abcdefgh12'": "the text abcdefgh is named by Search.packages_digest and",
    "UPDATE trials SET environment_digest = 'abcdefgh'": "the text abcdefgh is named by Trial.environment_digest and",
}


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("statement", LEFT)
def test_what_a_deletion_left_or_took_from_another_search_is_found(
    database: Database, deleted: Gone, statement: str
) -> None:
    change(database, statement)

    found = history.leftovers(database, deleted)

    assert any(LEFT[statement] in sentence for sentence in found), found


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "CREATE VIEW goes AS SELECT id FROM trials WHERE search_id = 1",
            "there is the view 'goes' and no such search",
        ),
        ("DROP VIEW stays", "search 'stays' has no view"),
        (
            "DROP VIEW stays; CREATE VIEW stays AS SELECT id FROM trials WHERE search_id = 7",
            "the view of search 'stays' shows search 7, and not 2",
        ),
    ],
)
def test_a_view_that_was_left_and_one_that_is_missing_is_found(
    database: Database, deleted: Gone, statement: str, sentence: str
) -> None:
    with closing(sqlite3.connect(database.url.database, isolation_level=None)) as connection:
        connection.executescript(statement)

    assert history.leftovers(database, deleted) == [sentence]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_payload_that_was_stored_once_more_after_a_deletion_is_nobodys_rest(
    database: Database, database_settings: Settings, deleted: Gone
) -> None:
    PayloadStore(database, database_settings).put("X", ["goes"], what="X")
    early = dict.fromkeys(deleted.payloads, datetime(2020, 1, 1, tzinfo=UTC))

    assert history.leftovers(database, replace(deleted, payloads=early)) == []
    assert len(history.leftovers(database, deleted)) == 1


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_deleted_trial_has_not_changed(database: Database, search: StoredSearch) -> None:
    witness = Witness()
    witness.look(database)
    delete_search(database, search.id)

    assert witness.changes(database, deleted={search.id}) == []
    assert len(witness.changes(database)) == len(SCORES)
