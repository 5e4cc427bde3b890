"""Which trial a worker takes at a message, and which trials messages are due for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import params_digest, params_to_json
from gridfleet.storage.schema import Trial
from gridfleet.storage.trials import queue, transitions
from tests.storage.conftest import StoredSearch, ago, set_trial, store_search
from tests.storage.conftest import count as count_rows

MIXED = [
    {"units": units, "learning_rate": rate, "epochs": epochs}
    for epochs, (units, rate) in enumerate([(8, 0.1), (12, 0.1), (8, 0.2), (12, 0.2)])
]


@pytest.fixture
def mixed(database: Database) -> StoredSearch:
    """Two structures, two trials each: 0 and 2, 1 and 3."""
    return store_search(database, MIXED)


def structure_of(search: StoredSearch, number: int) -> str:
    return search.trial(number).structure_digest


def test_learning_rate_and_epochs_make_no_other_structure(mixed: StoredSearch) -> None:
    assert structure_of(mixed, 0) == structure_of(mixed, 2) != structure_of(mixed, 1) == structure_of(mixed, 3)


#: Combinations with values of all kinds, of which JSON has not all.
ODD = [
    {"a": None, "b": [1, "x"]},
    {"a": math.nan, "b": 'quo"te\\, {brace} \x00 \N{SNOWMAN}'},
    {},
    {"a": 2**70, "b": True},
]


def test_new_trials_are_queued_in_the_order_of_their_combinations(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "ROWS_PER_STATEMENT", 3)

    search = store_search(database, ODD)

    for number, params in enumerate(ODD):
        row, shown = search.trial(number), params_to_json(params)
        assert (row.params, row.params_digest, row.structure_digest) == (
            shown,
            params_digest(shown),
            params_digest(shown),
        )
        assert (row.state, row.attempt, row.failures, row.cancel_requested, row.publish_count) == (
            "queued",
            0,
            0,
            False,
            0,
        )
        assert abs(datetime.now(UTC) - row.created_at) < timedelta(minutes=5)
    assert search.trial_ids == sorted(search.trial_ids)


def test_trials_that_can_not_all_be_stored_leave_none(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ROWS_PER_STATEMENT", 2)
    search = store_search(database, 5)
    with database.write() as connection:
        connection.execute(delete(Trial).where(Trial.number < 4))

    with pytest.raises(IntegrityError), database.write() as connection:
        queue.create_trials(connection, search.id, [{"units": number} for number in range(5)])

    assert count_rows(database, Trial) == 1


def test_messages_are_sent_for_different_structures_first(database: Database) -> None:
    candidates = [{"units": units, "learning_rate": number} for number, units in enumerate([8, 8, 12, 8, 16])]
    search = store_search(database, candidates)
    first, second, third, fourth, fifth = search.trial_ids

    assert queue.in_turn(database, search.id) == [first, third, fifth, second, fourth]


def test_a_worker_stays_with_the_structure_that_it_has_programs_for(database: Database, mixed: StoredSearch) -> None:
    first, second, third, _ = mixed.trial_ids

    assert queue.choose(database, second, [structure_of(mixed, 0)]) == first
    mixed.claim(0)
    assert queue.choose(database, second, [structure_of(mixed, 0)]) == third
    mixed.claim(2)
    assert queue.choose(database, second, [structure_of(mixed, 0)]) == second


def test_a_worker_without_programs_takes_the_trial_of_the_message(database: Database, mixed: StoredSearch) -> None:
    assert queue.choose(database, mixed.trial_ids[1], []) == mixed.trial_ids[1]


def test_a_message_about_a_trial_that_is_taken_leads_to_one_that_waits(database: Database, mixed: StoredSearch) -> None:
    mixed.claim(1)

    assert queue.choose(database, mixed.trial_ids[1], []) == mixed.trial_ids[0]
    assert queue.choose(database, mixed.trial_ids[1], [structure_of(mixed, 1)]) == mixed.trial_ids[3]


def test_nothing_is_chosen_where_nothing_waits(database: Database, mixed: StoredSearch) -> None:
    other = store_search(database, MIXED)
    for number in range(4):
        mixed.claim(number)

    assert queue.choose(database, mixed.trial_ids[0], [structure_of(other, 0)]) is None
    assert queue.choose(database, 10**9, []) is None


def test_queued_trials_are_due_until_they_are_published(search: StoredSearch) -> None:
    first, second, third = search.trial_ids
    search.held(0)
    assert queue.due_for_publishing(search.database, republish_s=60) == [second, third]
    assert queue.due_for_publishing(search.database, republish_s=60, limit=1) == [second]
    assert queue.count_queued(search.database) == 2

    queue.mark_published(search.database, [first, second, third])

    assert queue.due_for_publishing(search.database, republish_s=60) == []
    assert search.trial(0).publish_count == 0  # running: nothing to note
    assert search.trial(1).publish_count == 1


def test_the_wait_before_publishing_again_doubles_up_to_an_hour(search: StoredSearch) -> None:
    trial_id = search.trial_ids[0]
    queue.mark_published(search.database, search.trial_ids)
    waits = []
    for count in (1, 2, 3, 7, 8, 40, 200):
        set_trial(search.database, trial_id, publish_count=count)
        for wait in (61, 121, 241, 3_601, 7_201):
            set_trial(search.database, trial_id, published_at=ago(wait))
            if trial_id in queue.due_for_publishing(search.database, republish_s=60):
                waits.append(wait)
                break
    assert waits == [61, 121, 241, 3_601, 3_601, 3_601, 3_601]


def test_the_wait_does_not_double_where_all_messages_are_lost(search: StoredSearch) -> None:
    set_trial(search.database, search.trial_ids[0], publish_count=9, published_at=ago(20))

    due = queue.due_for_publishing(search.database, republish_s=15, backs_off=False, among=search.trial_ids[:1])

    assert due == search.trial_ids[:1]
    assert queue.due_for_publishing(search.database, republish_s=15, among=search.trial_ids[:1]) == []


def test_a_trial_given_back_is_due_at_once(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)

    transitions.release(search.database, search.held(1))

    assert queue.due_for_publishing(search.database, republish_s=60) == [search.trial_ids[1]]


def test_a_trial_that_backs_off_is_not_due(search: StoredSearch) -> None:
    set_trial(search.database, search.trial_ids[0], not_before=ago(-60))

    assert search.trial_ids[0] not in queue.due_for_publishing(search.database, republish_s=60)


def test_parameters_are_stored_as_json_with_a_digest(database: Database) -> None:
    search = store_search(database, [{"units": 3, "rate": 0.5}, {"rate": 0.5, "units": 3}, {"units": 4}])

    assert search.trial(0).params == {"units": 3, "rate": 0.5}
    assert search.trial(0).params_digest == search.trial(1).params_digest != search.trial(2).params_digest
