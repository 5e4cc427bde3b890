"""Trials that workers hand back for trouble of their own, and trials of another Python."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from gridfleet.storage import searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import DataNotThereError, MissingCodeError, PayloadError
from gridfleet.storage.schema import Search, Worker
from gridfleet.storage.trials import claims, handed_back, queue, transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.versions import THIS_PYTHON, installed_versions
from tests.storage.conftest import StoredSearch, ago, attempts_of, result_of, set_trial, store_search

FULL = "OSError: No space left on device"


def register(database: Database, worker_id: str, hostname: str, *, seen_s_ago: float = 0) -> None:
    with database.write() as connection:
        row = {"id": worker_id, "hostname": hostname, "pid": 1, "last_seen_at": ago(seen_s_ago)}
        connection.execute(insert(Worker).values(**row, **installed_versions()))


def hand_back(search: StoredSearch, worker_id: str, number: int = 0, *, reason: str = FULL) -> None:
    set_trial(search.database, search.trial_ids[number], not_before=None)
    held = search.held(number, worker_id=worker_id)
    assert transitions.hand_back(
        search.database, held, worker_id=worker_id, reason=reason, error=f"Traceback …\n{reason}: '/cache/part-x'"
    )


def test_a_trial_that_is_handed_back_is_as_it_was_at_once_and_the_attempt_says_who_and_why(
    search: StoredSearch,
) -> None:
    register(search.database, "healthy/1", "b")

    hand_back(search, "broken/1")

    trial, (attempt,) = search.trial(), attempts_of(search.database, search.trial_ids[0])
    assert (trial.state, trial.failures, trial.published_at, trial.token) == ("queued", 0, None, None)
    assert (attempt.outcome, attempt.worker_id) == ("handed_back", "broken/1")
    assert attempt.error.splitlines()[-1] == FULL
    assert search.claim(worker_id="healthy/1") is not None
    assert search.row().state == "running"


def test_a_trial_that_is_handed_back_again_waits_before_it_is_tried(search: StoredSearch) -> None:
    register(search.database, "healthy/1", "b")
    hand_back(search, "broken/1")

    hand_back(search, "broken/1")

    assert search.claim() is None
    set_trial(search.database, search.trial_ids[0], not_before=ago(1))
    assert search.claim() is not None


def test_a_trial_that_three_different_workers_hand_back_for_one_reason_is_failed_with_it(search: StoredSearch) -> None:
    for host in "abcd":
        register(search.database, f"{host}/1", host)
    for host in "ab":
        hand_back(search, f"{host}/1")
    assert search.trial().state == "queued"

    hand_back(search, "c/1")

    trial = search.trial()
    assert (trial.state, trial.failures, trial.error_type) == ("failed", 0, "handed_back")
    assert trial.error.splitlines()[-1] == FULL


def test_different_reasons_are_no_agreement_but_nothing_circles_for_ever(search: StoredSearch) -> None:
    for host in "abcd":
        register(search.database, f"{host}/1", host)
    for time in range(handed_back.MOST - 1):
        hand_back(search, f"{'abc'[time % 3]}/1", reason=f"OSError: {time}")
    assert search.trial().state == "queued"

    hand_back(search, "c/1", reason="OSError: the last")

    assert search.trial().state == "failed"


def test_a_broken_worker_that_is_started_again_and_again_is_one_worker(search: StoredSearch) -> None:
    register(search.database, "healthy/1", "a")
    for again in range(5):
        register(search.database, f"broken-{again}/1", "b")
        hand_back(search, f"broken-{again}/1")

    assert search.trial().state == "queued"


@pytest.mark.parametrize("others", ["none", "gone", "stopped"])
def test_a_lone_worker_fails_a_trial_that_it_hands_back_three_times(search: StoredSearch, others: str) -> None:
    register(search.database, "lone/1", "a")
    if others != "none":
        register(search.database, "other/1", "b", seen_s_ago=3_600 if others == "gone" else 0)
    if others == "stopped":
        workers.stop(search.database, "other/1", "its disk is full")
    for _ in range(2):
        hand_back(search, "lone/1")
    assert search.trial().state == "queued"

    hand_back(search, "lone/1")

    assert search.trial().state == "failed"


def test_a_trial_of_a_cancelled_search_that_is_handed_back_is_cancelled(search: StoredSearch) -> None:
    held = search.held()
    searches.cancel_search(search.database, search.id)

    transitions.hand_back(search.database, held, worker_id="node/1", reason=FULL, error="")

    assert search.trial().state == "cancelled"
    assert search.row().finished_at is not None


def test_an_old_token_hands_nothing_back(search: StoredSearch) -> None:
    held = search.held()

    old = Held(held.trial_id, "f" * 32)
    assert not transitions.hand_back(search.database, old, worker_id="node/1", reason=FULL, error="")

    assert search.trial().token == held.token


def test_a_worker_that_hands_back_three_trials_in_a_row_has_to_stop(search: StoredSearch) -> None:
    register(search.database, "healthy/1", "b")
    hand_back(search, "broken/1", 0)
    hand_back(search, "broken/2", 1)
    hand_back(search, "healthy/1", 2)
    assert handed_back.why_to_stop(search.database, "broken/1") is None

    hand_back(search, "broken/1", 2)

    assert handed_back.why_to_stop(search.database, "broken/2") == (
        f"it handed back 3 trials in a row, the last for this reason: {FULL}"
    )
    assert handed_back.why_to_stop(search.database, "healthy/1") is None


def test_a_result_in_between_shows_that_a_worker_can_work(database: Database) -> None:
    search = store_search(database, 4)
    register(database, "healthy/1", "b")
    for number in (0, 1):
        hand_back(search, "node/1", number)
    held = search.held(2, worker_id="node/1")
    transitions.record(database, held, result_of(0.5, error="ValueError: the model's own"))
    hand_back(search, "node/1", 3)

    assert handed_back.why_to_stop(database, "node/1") is None


@pytest.mark.parametrize("error", [MissingCodeError("the module 'xgboost' is not installed"), KeyError("xgboost")])
def test_what_may_be_one_search_s_own_mistake_stops_no_worker_but_that_of_two_does(
    search: StoredSearch, error: Exception
) -> None:
    reason = handed_back.reason_of(error)
    register(search.database, "healthy/1", "b")
    for number in range(3):
        hand_back(search, "node/1", number, reason=reason)
    assert handed_back.why_to_stop(search.database, "node/1") is None

    hand_back(store_search(search.database, 1), "node/1", reason=reason)

    assert "xgboost" in str(handed_back.why_to_stop(search.database, "node/1"))


def test_data_by_reference_that_are_missing_stop_no_worker(search: StoredSearch) -> None:
    reason = handed_back.reason_of(DataNotThereError("/data/X.npy can't be read here: No such file or directory"))
    register(search.database, "healthy/1", "b")
    for number in range(2):
        hand_back(search, "node/1", number, reason=reason)
    hand_back(store_search(search.database, 1), "node/1", reason=reason)

    assert reason == (
        "this worker lacks data that the trial needs: /data/X.npy can't be read here: No such file or directory"
    )
    assert handed_back.why_to_stop(search.database, "node/1") is None


def test_a_reason_has_no_names_of_files_that_differ_from_worker_to_worker() -> None:
    assert handed_back.reason_of(OSError(28, "No space left on device", "/cache/part-abc")) == FULL
    assert handed_back.reason_of(PayloadError("two\nlines")) == "PayloadError: two"
    assert handed_back.reason_of(KeyError("x")) == "an error outside of the model's fits: KeyError: 'x'"


# trials of another Python


def of_python(search: StoredSearch, version: str) -> StoredSearch:
    with search.database.write() as connection:
        if search.database.dialect == "postgresql":
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(update(Search).where(Search.id == search.id).values(needs_python=version))
    return search


def test_a_worker_of_another_python_leaves_a_trial_alone(search: StoredSearch) -> None:
    of_python(search, "3.99")

    def claim(python: str) -> object:
        return claims.claim(search.database, search.trial_ids[0], "node/1", lease_s=60, max_runtime_s=60, python=python)

    assert claim(THIS_PYTHON) is None
    assert claim("3.9") is None
    assert search.trial().attempt == 0
    assert claim("3.99") is not None


def test_a_message_of_another_python_leads_to_a_trial_of_this_one_if_any_waits(database: Database) -> None:
    foreign, own = of_python(store_search(database, 2), "3.99"), store_search(database, 2)

    hint = queue.look(database, foreign.trial_ids[0])
    assert hint == queue.Hint(None, own.id, own.row().session)
    own.claim(0)
    hint = queue.look(database, own.trial_ids[0])
    assert hint == queue.Hint(own.trial_ids[0], own.id, own.row().session)
    own.claim(1)
    with pytest.raises(queue.WaitsForAnotherPythonError):
        queue.look(database, foreign.trial_ids[0])
    hint = queue.look(database, foreign.trial_ids[0], python="3.99")
    assert hint == queue.Hint(foreign.trial_ids[0], foreign.id, foreign.row().session)


def test_a_late_message_of_another_python_is_nothing_to_wait_for(database: Database) -> None:
    foreign = of_python(store_search(database, 2), "3.99")
    claims.claim(database, foreign.trial_ids[0], "node/1", lease_s=60, max_runtime_s=60, python="3.99")

    assert queue.look(database, foreign.trial_ids[0]) is None


# memory


def test_the_peak_of_memory_is_told_by_heartbeats_and_kept_of_each_attempt(search: StoredSearch) -> None:
    held = search.held()
    transitions.heartbeat(search.database, held, lease_s=60, memory_mb=700)
    transitions.heartbeat(search.database, held, lease_s=60)
    transitions.release(search.database, held)
    assert search.trial().peak_memory_mb == 700

    options = {"lease_s": 60, "max_runtime_s": 60, "memory_mb": 80}
    claim = claims.claim(search.database, held.trial_id, "node/1", **options)
    assert search.trial().peak_memory_mb == 80
    result = result_of(0.5)
    transitions.record(search.database, Held(claim.trial_id, claim.token), result)

    assert [attempt.peak_memory_mb for attempt in attempts_of(search.database, held.trial_id)] == [700, None]
