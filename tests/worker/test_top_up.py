"""The queue of messages: never longer than its bound, filled again as it empties, fairly, and nothing sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import text

from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import queue
from gridfleet.worker.broker import publisher as publisher_module
from gridfleet.worker.broker.message import trial_of
from gridfleet.worker.broker.publisher import Publisher
from gridfleet.worker.broker.top_up import TOP_UP_LOCK, top_up
from tests.conftest import KEYS
from tests.storage.conftest import ago, set_trial, store_search

MOST = 6


@pytest.fixture
def publisher(database_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """The way to a real broker, whose queue is short."""
    monkeypatch.setattr(publisher_module, "MAX_MESSAGES", MOST)
    with closing(Publisher(database_settings, KEYS)) as opened:
        yield opened


def waiting(publisher: Publisher) -> list[int | None]:
    """Return the trials of the messages that wait, the next one first."""
    return [trial_of(raw) for raw in reversed(publisher._redis.lrange(KEYS.queue, 0, -1))]


def test_a_large_search_fills_the_queue_to_its_bound_and_no_further(
    database: Database, database_settings: Settings, publisher: Publisher
) -> None:
    search = store_search(database, 20)

    assert top_up(database_settings, database, publisher) == MOST
    assert waiting(publisher) == search.trial_ids[:MOST]
    for trial_id in search.trial_ids[:MOST]:  # long ago, and still they wait
        set_trial(database, trial_id, published_at=ago(7_200))
    assert top_up(database_settings, database, publisher) == 0

    publisher._redis.rpop(KEYS.queue, 2)  # workers take some
    assert top_up(database_settings, database, publisher) == 2
    assert waiting(publisher) == search.trial_ids[2 : MOST + 2]


def test_a_small_search_does_not_wait_for_all_of_a_large_one(
    database: Database, database_settings: Settings, publisher: Publisher
) -> None:
    large = store_search(database, 20)
    top_up(database_settings, database, publisher)
    small = store_search(database, 2)

    publisher._redis.rpop(KEYS.queue, 4)
    top_up(database_settings, database, publisher)

    first, second = zip(large.trial_ids[MOST:], small.trial_ids, strict=False)
    assert waiting(publisher) == [*large.trial_ids[4:MOST], *first, *second]


def test_lost_messages_are_sent_again_and_those_that_wait_are_not(
    database: Database, database_settings: Settings, publisher: Publisher
) -> None:
    search = store_search(database, 4)
    top_up(database_settings, database, publisher)
    assert publisher.oldest() == search.trial_ids[0]
    for number, trial_id in enumerate(search.trial_ids):
        set_trial(database, trial_id, published_at=ago(7_200 - 100 * number))

    publisher._redis.rpop(KEYS.queue, 2)  # a worker took them, and died with them
    assert top_up(database_settings, database, publisher) == 2
    assert waiting(publisher) == [*search.trial_ids[2:], *search.trial_ids[:2]]

    assert top_up(database_settings, database, publisher) == 0
    publisher._redis.delete(KEYS.queue)
    assert publisher.oldest() is None
    set_trial(database, search.trial_ids[3], published_at=ago(1))
    set_trial(database, search.trial_ids[0], published_at=ago(20))
    assert top_up(database_settings, database, publisher) == 2  # those that were sent longer ago than a pass takes
    assert waiting(publisher) == [search.trial_ids[2], search.trial_ids[0]]


def test_what_is_no_message_keeps_the_queue_from_nothing(
    database: Database, database_settings: Settings, publisher: Publisher
) -> None:
    search = store_search(database, 1)
    publisher._redis.rpush(KEYS.queue, b"{}", b"x" * 10_000)

    assert publisher.oldest() == 0
    assert top_up(database_settings, database, publisher) == 1
    assert waiting(publisher) == [None, None, *search.trial_ids]


def test_of_several_that_fill_the_queue_one_does(
    database: Database, database_settings: Settings, publisher: Publisher
) -> None:
    store_search(database, 20)
    if database.dialect == "sqlite":
        pytest.skip("has no lock that tells who fills the queue")
    with database.read() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": TOP_UP_LOCK})
        assert top_up(database_settings, database, publisher) == 0
    assert top_up(database_settings, database, publisher) == MOST
    assert queue.count_queued(database) == 20
