"""Which trial a worker takes at a message, and which trials messages are due for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, event, select, update
from sqlalchemy.exc import IntegrityError

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import params_digest, params_to_json
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.versions import THIS_PYTHON
from tests.storage.conftest import StoredSearch, ago, set_trial, store_search
from tests.storage.conftest import count as count_rows
from tests.stored_searches import switch_triggers_off

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


def take(database: Database, trial_id: int, structures: Sequence[str] = (), *, python: str = THIS_PYTHON) -> int | None:
    """Claim what a message leads to, as a worker does; returns the trial."""
    hint = queue.look(database, trial_id, python=python)
    if hint is None:
        return None
    limits = {"lease_s": 60, "max_runtime_s": 3_600}
    claim = claims.claim_at_message(database, hint, "node/1", structures=structures, **limits)
    return None if claim is None else claim.trial_id


def test_a_worker_stays_with_the_structure_that_it_has_programs_for(database: Database, mixed: StoredSearch) -> None:
    first, second, third, fourth = mixed.trial_ids
    known = [structure_of(mixed, 0)]

    assert [take(database, second, known) for _ in range(4)] == [first, third, second, fourth]


def test_a_worker_without_programs_takes_the_trial_of_the_message(database: Database, mixed: StoredSearch) -> None:
    assert take(database, mixed.trial_ids[1]) == mixed.trial_ids[1]


def test_a_message_about_a_trial_that_is_taken_leads_to_one_that_waits(database: Database, mixed: StoredSearch) -> None:
    mixed.claim(1)

    assert take(database, mixed.trial_ids[1], [structure_of(mixed, 1)]) == mixed.trial_ids[3]
    assert take(database, mixed.trial_ids[1]) == mixed.trial_ids[0]  # behind the one that was taken last none waits


def test_nothing_is_taken_where_nothing_waits(database: Database, mixed: StoredSearch) -> None:
    hint = queue.look(database, mixed.trial_ids[0])
    for number in range(4):
        mixed.claim(number)

    assert take(database, mixed.trial_ids[0], [structure_of(mixed, 0)]) is None
    other = store_search(database, MIXED)
    assert take(database, 10**9) is None
    searches.pause_search(database, other.id)
    assert take(database, other.trial_ids[0]) is None
    assert hint is not None
    assert claims.claim_at_message(database, hint, "node/1", lease_s=60, max_runtime_s=60) is None


def test_a_message_leads_to_the_facts_that_a_claim_by_id_gives(database: Database, search: StoredSearch) -> None:
    by_id, hint = search.claim(0), queue.look(database, search.trial_ids[1])
    assert hint is not None
    statements: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2].split()[0])
    )

    claim = claims.claim_at_message(database, hint, "node/1", lease_s=60, max_runtime_s=3_600)

    assert [one for one in statements if one != "BEGIN"] == [
        "UPDATE",
        "INSERT",
        "INSERT",
        "SELECT",
    ]  # choice and claim are one
    own = {"trial_id": search.trial_ids[1], "number": 1, "token": search.trial(1).token}
    assert claim == replace(by_id, structure_digest=search.trial(1).structure_digest, **own)
    assert search.trial(1).state == "running"


def test_what_another_transaction_holds_is_passed_over_and_not_waited_for(
    make_settings: Callable[..., Settings],
) -> None:
    with closing(Database(make_settings("postgresql"))) as database:
        search = store_search(database, MIXED)
        first, second, third, fourth = search.trial_ids
        known = [structure_of(search, 1)]
        with database.write() as other:  # as one that claims them, or notes that they were published
            other.execute(select(Trial.id).where(Trial.id.in_([first, second])).with_for_update())

            assert take(database, first) == third
            assert take(database, first, known) == fourth
            assert take(database, first) is None
            assert queue.look(database, first) is not None  # a worker looks again
        assert take(database, first) == first


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


def test_where_no_message_waits_those_are_lost_that_were_sent_long_ago(search: StoredSearch) -> None:
    queue.mark_published(search.database, search.trial_ids)
    set_trial(search.database, search.trial_ids[0], published_at=ago(59))
    set_trial(search.database, search.trial_ids[2], published_at=ago(61))

    assert queue.due_for_publishing(search.database, republish_s=60) == [search.trial_ids[2]]


def test_where_messages_wait_those_are_lost_that_were_sent_long_before_the_oldest(search: StoredSearch) -> None:
    first, second, third = search.trial_ids
    queue.mark_published(search.database, search.trial_ids)
    set_trial(search.database, first, published_at=ago(5_000 + 59))
    set_trial(search.database, second, published_at=ago(5_000))
    set_trial(search.database, third, published_at=ago(5_000 + 61))

    assert queue.due_for_publishing(search.database, republish_s=60, oldest=second) == [third]
    assert queue.due_for_publishing(search.database, republish_s=60, oldest=third) == []
    for unknown in (0, 10**9):
        assert queue.due_for_publishing(search.database, republish_s=60, oldest=unknown) == []


def test_searches_are_published_in_turns_and_by_their_priority(database: Database) -> None:
    large, small = store_search(database, 6), store_search(database, 2)
    urgent, other = store_search(database, 3), store_search(database, 3)
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == urgent.id).values(priority=1))
    set_trial(database, other.trial_ids[0], not_before=ago(-60))
    queue.mark_published(database, other.trial_ids[1:])

    def due(limit: int) -> list[int]:
        return queue.due_for_publishing(database, republish_s=60, limit=limit)

    first, second = zip(large.trial_ids, small.trial_ids, strict=False)
    assert due(2) == urgent.trial_ids[:2]
    assert due(100) == [*urgent.trial_ids, *first, *second, *large.trial_ids[2:]]
    queue.mark_published(database, urgent.trial_ids)
    assert due(4) == [*first, *second]
    searches.pause_search(database, large.id)
    assert due(100) == small.trial_ids


def test_what_is_due_is_found_without_a_look_at_all_that_is_queued(make_settings: Callable[..., Settings]) -> None:
    with closing(Database(make_settings("sqlite"))) as database:
        search = store_search(database, 3)
        asked: list[tuple[str, object]] = []
        event.listen(database.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2:4]))
        queue.due_for_publishing(database, republish_s=60, oldest=search.trial_ids[0])
        set_trial(database, search.trial_ids[0], published_at=ago(60))
        queue.due_for_publishing(database, republish_s=60)
        with database.engine.connect() as connection:
            plans = [
                row[-1]
                for statement, parameters in list(asked)
                if statement.startswith("SELECT")
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]

    of_trials = [line for line in plans if "trials" in line]
    assert len(of_trials) > 5
    assert not [line for line in of_trials if line.startswith("SCAN")], plans
    assert [line for line in of_trials if "ix_trials_queued_published" in line], plans


def test_queued_trials_are_counted_up_to_a_bound(search: StoredSearch) -> None:
    assert queue.count_queued(search.database) == 3
    assert queue.count_queued(search.database, most=2) == 2


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
