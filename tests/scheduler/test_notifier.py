"""What people are told of searches: written with what happened, sent at least once, new bests once a minute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from gridfleet.scheduler.fleet.notifier import Notifier, describe
from gridfleet.storage import events, passes, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Event
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from tests.conftest import KEYS
from tests.receiver import Receiver, receiving
from tests.storage.conftest import StoredSearch, ago, result_of, store_search


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def notifier(database: Database, database_settings: Settings, receiver: Receiver) -> Notifier:
    """A sender to the receiver, on a database in which a scheduler said that somebody is told."""
    passes.note_pass(database, notifies=True)
    return Notifier(database_settings.replace(webhook_url=SecretStr(receiver.url)), database)


def record(search: StoredSearch, number: int, score: float, **result: Any) -> None:
    assert transitions.record(search.database, search.held(number), result_of(score, **result))


def rows(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(*Event.__table__.columns).order_by(Event.id)))


def set_events(database: Database, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(update(Event).values(**values))


def test_nothing_is_written_where_nobody_is_told(database: Database) -> None:
    search = store_search(database, 1)
    record(search, 0, 0.5)

    assert search.row().state == "completed"
    assert rows(database) == []


def test_a_search_that_ends_is_told_once(database: Database, notifier: Notifier, receiver: Receiver) -> None:
    search = store_search(database, 2)
    record(search, 0, 0.75)
    record(search, 1, 0.5)

    assert notifier.send_due() == 1
    assert notifier.send_due() == 0
    [message] = receiver.got
    [row] = rows(database)
    assert message == {
        "text": f"{search.name}: completed, score 0.75 ± 0 (trial 0), 2/2 scored",
        "id": f"{KEYS.fleet_id}-{row.id}",
        "event": "ended",
        "search": search.name,
        "state": "completed",
        "metric": "score",
        "best_score": 0.75,
        "std_test_score": 0.0,
        "best_params": {"units": 0},
        "number": 0,
        "total": 2,
        "completed": 2,
        "failed": 0,
        "cancelled": 0,
        "submitted_by": "somebody@host",
    }
    assert receiver.paths == ["/hook/a-token"]
    assert row.sent_at is not None


@pytest.mark.parametrize("end", ["failed", "cancelled", "timed out"])
def test_what_came_of_a_search_is_told(end: str, database: Database, notifier: Notifier, receiver: Receiver) -> None:
    search = store_search(database, 1)
    if end == "failed":
        transitions.record(database, search.held(0), result_of(0.0, error="ValueError: no", n_splits=0))
    elif end == "cancelled":
        searches.cancel_search(database, search.id)
    else:
        with database.write() as connection:
            why = "stopped after search_timeout=1 s"
            connection.exec_driver_sql(f"UPDATE searches SET error = '{why}' WHERE id = {search.id}")
        record(search, 0, 0.5)

    notifier.send_due()
    assert [(one["event"], one["state"]) for one in receiver.got] == [("failed" if end == "failed" else "ended", end)]


def test_a_new_best_is_told_once_a_minute_and_the_best_one_wins(
    database: Database, notifier: Notifier, receiver: Receiver
) -> None:
    search = store_search(database, 6)
    record(search, 0, 0.5)
    record(search, 1, 0.4)  # none
    assert notifier.send_due() == 1
    record(search, 2, 0.6)
    record(search, 3, 0.7)
    assert notifier.send_due() == 0

    with database.write() as connection:
        connection.execute(update(Event).where(Event.sent_at.is_not(None)).values(tried_at=ago(61)))
    assert notifier.send_due() == 1
    assert notifier.send_due() == 0

    assert [(one["event"], one["number"], one["state"] != "completed") for one in receiver.got] == [
        ("best", 0, True),
        ("best", 3, True),
    ]
    assert [row.trial_id for row in rows(database)] == [search.trial_ids[0], search.trial_ids[3]]


def test_a_receiver_that_is_down_gets_it_when_it_is_up(database: Database, database_settings: Settings) -> None:
    with receiving() as receiver:
        url = receiver.url
    passes.note_pass(database, notifies=True)
    notifier = Notifier(database_settings.replace(webhook_url=SecretStr(url)), database)
    search = store_search(database, 1)
    record(search, 0, 0.5)

    assert notifier.send_due() == 0
    assert rows(database)[0].error.startswith("it can't be reached")

    set_events(database, not_before=ago(1))
    with receiving(receiver.server.server_port) as again:
        assert notifier.send_due() == 1
    assert [one["event"] for one in again.got] == ["ended"]


def test_a_receiver_that_refuses_it_gets_it_later_with_the_same_id(
    database: Database, notifier: Notifier, receiver: Receiver
) -> None:
    receiver.status = 500
    search = store_search(database, 1)
    record(search, 0, 0.5)

    assert notifier.send_due() == 0
    [row] = rows(database)
    assert (row.n_tries, row.sent_at, row.error) == (1, None, "it answered with status 500")
    assert 15 < (row.not_before - row.tried_at).total_seconds() <= events.RETRY_S + 1

    receiver.status = 200
    assert notifier.send_due() == 0  # not yet
    set_events(database, not_before=ago(1))
    assert notifier.send_due() == 1
    assert len({one["id"] for one in receiver.got}) == 1
    assert len(receiver.got) == 2
    assert rows(database)[0].error is None


def test_a_sender_that_was_killed_before_it_marked_an_event_leaves_it_to_the_next_one(
    database: Database, notifier: Notifier, receiver: Receiver
) -> None:
    search = store_search(database, 1)
    record(search, 0, 0.5)
    taken = events.take_due(database)
    assert taken is not None
    message = describe(database, taken)  # sent, and then killed

    assert events.take_due(database) is None
    set_events(database, not_before=ago(1))
    assert notifier.send_due() == 1
    assert message is not None
    assert receiver.got[0]["id"] == message["id"]


def test_an_event_is_given_up_after_some_tries_and_removed_when_it_is_old(
    database: Database, notifier: Notifier, receiver: Receiver
) -> None:
    receiver.status = 404
    search = store_search(database, 1)
    record(search, 0, 0.5)
    for _ in range(events.MAX_TRIES + 2):
        notifier.send_due()
        set_events(database, not_before=ago(1))

    assert len(receiver.got) == events.MAX_TRIES
    assert events.prune(database) == 0
    set_events(database, created_at=ago(events.KEEP_S + 60))
    assert events.prune(database) == 1


def test_what_is_sent_goes_to_no_other_address(
    database: Database, notifier: Notifier, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 302
    receiver.headers = {"Location": receiver.url.replace("hook", "elsewhere")}
    search = store_search(database, 1)
    record(search, 0, 0.5)

    assert notifier.send_due() == 0
    assert receiver.paths == ["/hook/a-token"]
    assert "status 302" in caplog.text
    assert "a-token" not in caplog.text + str(rows(database))


def test_a_search_that_is_deleted_takes_its_events_along(database: Database, notifier: Notifier) -> None:
    from gridfleet.storage.deletions import delete_search

    search = store_search(database, 1)
    record(search, 0, 0.5)
    delete_search(database, search.id)

    assert rows(database) == []
    assert notifier.send_due() == 0
