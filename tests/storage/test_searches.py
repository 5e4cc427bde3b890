"""Cancelling, pausing, resuming, trying failed trials again, time limits, and the end of a search."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import OPEN_STATES, Attempt, Search, SplitScore, Trial, TrialState, TrialWarning
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import PHASES, RESULT_COLUMNS, WarningResult
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import expired
from tests.storage.conftest import StoredSearch, attempts_of, race, result_of, set_trial, store_search
from tests.stored_searches import switch_triggers_off


@pytest.fixture
def search(database: Database) -> StoredSearch:
    """Store a search of three trials."""
    return store_search(database, 3)


def set_search(search: StoredSearch, **values: object) -> None:
    with search.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(**values))


def states(search: StoredSearch) -> list[str]:
    return [search.trial(number).state for number in range(len(search.trial_ids))]


def fail(search: StoredSearch, number: int) -> None:
    transitions.record(search.database, search.held(number), result_of(-1.0, error="it raised"))


# pause and resume


def test_no_trial_of_a_paused_search_starts_and_those_that_run_end(search: StoredSearch) -> None:
    held = search.held(0)

    assert searches.pause_search(search.database, search.id)

    assert search.claim(1) is None
    assert queue.look(search.database, search.trial_ids[1]) is None
    assert queue.due_for_publishing(search.database, republish_s=60) == []
    assert queue.count_queued(search.database) == 0
    assert transitions.record(search.database, held, result_of(0.5))
    assert states(search) == ["completed", "queued", "queued"]


def test_a_resumed_search_is_published_again_and_goes_on(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)
    searches.pause_search(search.database, search.id)
    assert queue.due_for_publishing(search.database, republish_s=60) == []

    assert searches.resume_search(search.database, search.id)

    assert queue.due_for_publishing(search.database, republish_s=60) == search.trial_ids
    assert search.claim(0) is not None


def test_other_searches_are_not_paused(search: StoredSearch) -> None:
    other = store_search(search.database, 1)
    searches.pause_search(search.database, search.id)

    assert other.claim(0) is not None


def test_pausing_and_resuming_say_whether_there_was_anything_to_do(search: StoredSearch) -> None:
    assert not searches.resume_search(search.database, search.id)
    assert searches.pause_search(search.database, search.id)
    assert not searches.pause_search(search.database, search.id)
    searches.cancel_search(search.database, search.id)
    assert not searches.resume_search(search.database, search.id)
    assert not searches.pause_search(search.database, search.id)


def test_resuming_what_is_not_paused_sends_no_message_twice(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)

    searches.resume_search(search.database, search.id)

    assert queue.due_for_publishing(search.database, republish_s=60) == []


def test_a_paused_search_can_be_cancelled(search: StoredSearch) -> None:
    searches.pause_search(search.database, search.id)

    assert searches.cancel_search(search.database, search.id)

    assert states(search) == ["cancelled"] * 3
    assert search.row().finished_at is not None


# retry_failed


def test_failed_trials_begin_anew_and_their_story_stays(search: StoredSearch) -> None:
    fail(search, 0)
    transitions.record(search.database, search.held(1), result_of(0.5))
    for _ in range(3):
        set_due(search, 2)
        transitions.reap(search.database, search.held(2), outcome=Outcome.WORKER_LOST, error="it died", max_failures=3)
    assert search.row().state == "completed"

    assert searches.retry_failed(search.database, search.id) == 2

    assert states(search) == ["queued", "completed", "queued"]
    assert (search.row().state, search.row().finished_at) == ("running", None)
    again = search.trial(0)
    assert (again.mean_test_score, again.error, again.error_type, again.failures, again.attempt) == (
        (None, None, None, 0, 1)
    )
    assert scores_of(search, 0) == 0
    assert scores_of(search, 1) == 2
    with search.database.read() as connection:
        outcomes = connection.execute(select(Attempt.outcome).where(Attempt.trial_id == search.trial_ids[2]))
        assert list(outcomes.scalars()) == ["worker_lost"] * 3
    assert queue.due_for_publishing(search.database, republish_s=60) == [search.trial_ids[0], search.trial_ids[2]]


def test_nothing_of_the_failed_attempt_stays_in_a_trial_tried_again(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)
    failed = replace(
        result_of(-1.0, error="it raised"),
        fit_mode="keras",
        fit_fallback_reason="a callback that no graph can hold",
        exception="{}",
        peak_memory_mb=700,
        seed=5,
        environment_digest="0" * 64,
        warnings=[WarningResult("UserWarning", "mind this", "__main__", 2)],
        **dict.fromkeys(PHASES, 0.5),
    )
    transitions.record(search.database, search.held(0), failed)
    before = search.trial(0)
    of_pruned = {"pruned_split", "pruned_epoch", "pruned_value"}
    assert None not in [getattr(before, name) for name in {*RESULT_COLUMNS, "record_time"} - of_pruned]

    searches.retry_failed(search.database, search.id)

    # the same as a trial that never ran, but for who it is and how often it was tried
    again, new = search.trial(0)._asdict(), store_search(search.database, 1).trial()._asdict()
    own = ("id", "search_id", "created_at", "attempt")
    assert {name: again[name] for name in again if name not in own} == {
        name: new[name] for name in new if name not in own
    }
    with search.database.read() as connection:
        assert connection.execute(select(TrialWarning)).all() == []


def test_a_trial_tried_again_ends_with_one_result(search: StoredSearch) -> None:
    for number in range(3):
        fail(search, number)
    searches.retry_failed(search.database, search.id)

    for number in range(3):
        assert transitions.record(search.database, search.held(number), result_of(0.25))

    assert states(search) == ["completed"] * 3
    assert [search.trial(number).attempt for number in range(3)] == [2, 2, 2]
    assert scores_of(search, 0) == 2
    assert search.row().state == "completed"
    assert search.row().finished_at is not None


def test_a_trial_that_failed_while_its_search_was_stopped_is_not_told_to_stop_again(search: StoredSearch) -> None:
    set_search(search, search_timeout=60.0)
    running = search.held(0)
    searches.stop_search(search.database, search.id)
    transitions.record(search.database, running, result_of(-1.0, error="it raised"))

    set_search(search, started_at=now(-61))
    assert searches.retry_failed(search.database, search.id) == 1

    assert searches.overdue_searches(search.database) == []
    held = search.held(0)
    assert transitions.heartbeat(search.database, held, lease_s=60) is False
    transitions.record(search.database, held, result_of(0.5))
    assert states(search) == ["completed", "cancelled", "cancelled"]
    assert (search.row().state, search.row().error) == ("completed", "stopped after search_timeout=60 s")


def test_nothing_is_tried_again_where_nothing_failed_or_all_was_cancelled(search: StoredSearch) -> None:
    assert searches.retry_failed(search.database, search.id) == 0
    fail(search, 0)
    searches.cancel_search(search.database, search.id)

    assert searches.retry_failed(search.database, search.id) == 0

    assert states(search) == ["failed", "cancelled", "cancelled"]
    assert search.row().state == "cancelled"
    assert scores_of(search, 0) == 2


# time limits


def test_a_trial_timeout_sets_the_deadline_and_is_told_to_the_worker(search: StoredSearch) -> None:
    set_search(search, trial_timeout=100.0)

    claim = claims.claim(search.database, search.trial_ids[0], "node/1", lease_s=60, max_runtime_s=3_600, grace_s=7)

    assert claim is not None
    assert claim.trial_timeout == 100.0
    row = search.trial()
    assert timedelta(seconds=106) < row.deadline_at - row.started_at < timedelta(seconds=108)


def test_without_one_the_fleet_s_limit_counts(search: StoredSearch) -> None:
    claim = search.claim()

    assert claim is not None
    assert claim.trial_timeout is None
    row = search.trial()
    assert timedelta(seconds=3_599) < row.deadline_at - row.started_at < timedelta(seconds=3_601)


@pytest.mark.parametrize(("trial_timeout", "state"), [(100.0, "failed"), (None, "queued")])
def test_a_trial_that_takes_too_long_is_tried_again_only_if_the_search_did_not_set_the_limit(
    search: StoredSearch, trial_timeout: float | None, state: str
) -> None:
    set_search(search, trial_timeout=trial_timeout)
    search.held(0)
    with search.database.write() as connection:
        connection.execute(update(Trial).where(Trial.id == search.trial_ids[0]).values(deadline_at=now(-1)))
    (overdue,) = expired(search.database)

    assert overdue.is_overdue
    transitions.reap(
        search.database, overdue, outcome=Outcome.TIMEOUT, error="too long", max_failures=3, expired_only=True
    )

    assert (search.trial().state, search.trial().error_type) == (state, "timeout")


def test_a_lost_lease_is_not_taken_for_a_time_out(search: StoredSearch) -> None:
    search.held(0)
    set_trial(search.database, search.trial_ids[0], lease_expires_at=now(-1))

    (lost,) = expired(search.database)

    assert not lost.is_overdue


def test_a_search_that_takes_too_long_ends_with_what_is_there(search: StoredSearch) -> None:
    set_search(search, search_timeout=60.0)
    transitions.record(search.database, search.held(0), result_of(0.5))
    running = search.held(1)
    assert searches.overdue_searches(search.database) == []
    set_search(search, started_at=now(-61))

    assert searches.overdue_searches(search.database) == [search.id]
    assert searches.stop_search(search.database, search.id)

    assert states(search) == ["completed", "running", "cancelled"]
    assert transitions.heartbeat(search.database, running, lease_s=60) is True
    assert searches.overdue_searches(search.database) == []
    assert not searches.stop_search(search.database, search.id)
    transitions.cancel(search.database, running)
    row = search.row()
    assert (row.state, row.error) == ("completed", "stopped after search_timeout=60 s")
    assert row.finished_at is not None


def test_a_search_that_waits_for_its_first_worker_is_not_overdue(search: StoredSearch) -> None:
    set_search(search, search_timeout=60.0, created_at=now(-3_600))

    assert searches.overdue_searches(search.database) == []


def set_due(search: StoredSearch, number: int) -> None:
    with search.database.write() as connection:
        connection.execute(update(Trial).where(Trial.id == search.trial_ids[number]).values(not_before=None))


def scores_of(search: StoredSearch, number: int) -> int:
    with search.database.read() as connection:
        return connection.execute(
            select(func.count()).select_from(SplitScore).where(SplitScore.trial_id == search.trial_ids[number])
        ).scalar_one()


# cancel


def test_cancelling_a_queued_search_ends_it_at_once(search: StoredSearch) -> None:
    assert searches.cancel_search(search.database, search.id)

    assert {search.trial(number).state for number in range(3)} == {"cancelled"}
    assert search.row().state == "cancelled"
    assert search.row().finished_at is not None
    assert search.claim() is None


def test_cancelling_a_running_search_waits_for_its_workers(search: StoredSearch) -> None:
    held = search.held(0)

    searches.cancel_search(search.database, search.id)

    assert [search.trial(number).state for number in range(3)] == ["running", "cancelled", "cancelled"]
    assert (search.row().state, search.row().finished_at) == ("cancelled", None)

    assert transitions.cancel(search.database, held)
    assert search.trial().state == "cancelled"
    assert attempts_of(search.database, held.trial_id)[0].outcome == "cancelled"
    assert search.row().finished_at is not None


def test_a_result_that_comes_before_the_cancellation_is_kept(search: StoredSearch) -> None:
    held = search.held(0)
    searches.cancel_search(search.database, search.id)

    assert transitions.record(search.database, held, result_of(0.5))

    assert search.trial().state == "completed"
    assert search.row().state == "cancelled"
    assert search.row().finished_at is not None


def test_a_finished_search_can_not_be_cancelled(database: Database) -> None:
    search = store_search(database, 1)
    transitions.record(database, search.held(), result_of(0.5))
    before = search.row()

    assert not searches.cancel_search(database, search.id)
    assert search.row() == before
    assert search.trial().state == "completed"


def test_cancelling_twice_changes_nothing_more(search: StoredSearch) -> None:
    search.held(0)
    searches.cancel_search(search.database, search.id)
    before = [search.trial(number) for number in range(3)]

    assert searches.cancel_search(search.database, search.id)  # still open: one trial runs
    assert [search.trial(number) for number in range(3)] == before


def test_cancelling_one_search_leaves_others_alone(database: Database) -> None:
    mine, other = store_search(database, 2), store_search(database, 2)

    searches.cancel_search(database, mine.id)

    assert other.row().state == "queued"
    assert other.claim() is not None


# finish


def test_a_search_is_finished_with_its_last_trial(search: StoredSearch) -> None:
    for number in range(3):
        assert search.row().finished_at is None
        assert not searches.finish_search(search.database, search.id)
        assert searches.unfinished_searches(search.database) == [search.id]
        transitions.record(search.database, search.held(number), result_of(0.5))

    assert search.row().state == "completed"
    assert searches.unfinished_searches(search.database) == []
    assert not searches.finish_search(search.database, search.id)


def test_no_final_state_lies_between_the_open_ones() -> None:
    assert sorted(TrialState)[-2:] == sorted(OPEN_STATES)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_whether_a_search_is_at_its_end_is_read_off_the_end_of_an_index(search: StoredSearch) -> None:
    """At its beginning is what an old snapshot keeps of all trials that were claimed since."""
    statement = searches._OPEN_TRIAL.compile(dialect=search.database.engine.dialect)
    with search.database.read() as connection:
        for other in ("seqscan", "bitmapscan"):  # as in a table of many trials
            connection.execute(text(f"SET LOCAL enable_{other} = off"))
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", statement.construct_params({"wanted_id": search.id}))
        plan = "\n".join(rows.scalars())

    assert "Scan Backward using ix_trials_search_id_state" in plan
    assert "Sort" not in plan


def test_a_search_left_unfinished_by_a_killed_worker_is_finished_later(search: StoredSearch) -> None:
    for number in range(3):
        transitions.record(search.database, search.held(number), result_of(0.5))
    with search.database.write() as connection:  # as if the worker had died between its two transactions
        connection.execute(update(Search).values(state="running", finished_at=None))

    assert searches.finish_search(search.database, search.id)
    assert search.row().state == "completed"


# open again


def test_a_cancelled_search_that_is_opened_again_evaluates_what_is_missing(search: StoredSearch) -> None:
    transitions.record(search.database, search.held(0), result_of(0.5))
    fail(search, 1)
    searches.cancel_search(search.database, search.id)
    assert (search.row().state, states(search)) == ("cancelled", ["completed", "failed", "cancelled"])
    before = [search.trial(number) for number in range(2)]

    searches.open_again(search.database, search.id)

    assert (search.row().state, search.row().finished_at) == ("running", None)
    assert states(search) == ["completed", "failed", "queued"]
    assert [search.trial(number) for number in range(2)] == before
    assert queue.in_turn(search.database, search.id) == [search.trial_ids[2]]
    transitions.record(search.database, search.held(2), result_of(0.75))
    assert (search.row().state, scores_of(search, 2)) == ("completed", 2)


def test_what_is_running_or_queued_or_done_is_left_alone_when_a_search_is_opened_again(search: StoredSearch) -> None:
    held = search.held(0)
    queue.mark_published(search.database, search.trial_ids)
    before = [search.row(), *(search.trial(number) for number in range(3))]

    searches.open_again(search.database, search.id)

    assert [search.row(), *(search.trial(number) for number in range(3))] == before
    assert queue.in_turn(search.database, search.id) == []
    transitions.record(search.database, held, result_of(0.5))
    for number in (1, 2):
        transitions.record(search.database, search.held(number), result_of(0.5))
    done = search.row()
    searches.open_again(search.database, search.id)
    assert search.row() == done


def test_a_worker_that_was_told_to_cancel_puts_a_trial_back_whose_search_goes_on(search: StoredSearch) -> None:
    held, other = search.held(0), search.held(1)
    searches.cancel_search(search.database, search.id)
    assert transitions.heartbeat(search.database, held, lease_s=60) is True

    searches.open_again(search.database, search.id)

    assert transitions.heartbeat(search.database, other, lease_s=60) is False
    assert transitions.cancel(search.database, held)
    assert states(search) == ["queued", "running", "queued"]
    assert search.row().state == "running"
    assert [attempt.outcome for attempt in attempts_of(search.database, held.trial_id)] == ["cancelled"]
    assert search.claim(0) is not None


def test_a_cancelled_search_of_which_every_trial_was_recorded_is_completed_by_it(database: Database) -> None:
    search = store_search(database, 1)
    held = search.held()
    searches.cancel_search(database, search.id)
    transitions.record(database, held, result_of(0.5))
    assert search.row().state == "cancelled"

    searches.open_again(database, search.id)

    assert search.row().state == "completed"


def test_one_that_never_ran_is_queued_again(search: StoredSearch) -> None:
    searches.cancel_search(search.database, search.id)

    searches.open_again(search.database, search.id)

    assert (search.row().state, search.row().started_at) == ("queued", None)
    search.held(0)
    assert search.row().state == "running"


def test_a_search_that_its_time_limit_stopped_has_that_time_once_more(search: StoredSearch) -> None:
    set_search(search, search_timeout=60.0)
    transitions.record(search.database, search.held(0), result_of(0.5))
    set_search(search, started_at=now(-61))
    assert searches.stop_search(search.database, search.id)

    searches.open_again(search.database, search.id)

    assert (search.row().state, search.row().error) == ("running", None)
    assert searches.overdue_searches(search.database) == []
    set_search(search, started_at=now(-61))
    searches.open_again(search.database, search.id)  # before anybody stopped it
    assert searches.overdue_searches(search.database) == []


def test_a_paused_search_goes_on_when_it_is_opened_again(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)
    searches.pause_search(search.database, search.id)

    searches.open_again(search.database, search.id)

    assert search.row().paused_at is None
    assert queue.in_turn(search.database, search.id) == search.trial_ids


def _open_again(database: Database, search_id: int) -> None:
    searches.open_again(database, search_id)


def test_many_may_open_a_search_again_at_once(database_settings: Settings, search: StoredSearch) -> None:
    transitions.record(search.database, search.held(0), result_of(0.5))
    searches.cancel_search(search.database, search.id)

    race(database_settings, _open_again, [search.id] * 4)

    assert states(search) == ["completed", "queued", "queued"]
    assert search.trial(0).attempt == 1
