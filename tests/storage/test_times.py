"""The database's clock, and times that come back as they were stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import UtcDateTime, now
from gridfleet.storage.schema import Trial
from tests.storage.conftest import store_search


def clock(database: Database, plus_s: float = 0) -> datetime:
    with database.read() as connection:
        return connection.execute(select(now(plus_s))).scalar_one()


def test_the_clock_is_the_database_s_in_utc(database: Database) -> None:
    found = clock(database)

    assert found.utcoffset() == timedelta(0)
    assert abs(found - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("plus_s", [-3_600, 0.5, 86_400, 1e8])
def test_seconds_can_be_added_to_the_clock(plus_s: float, database: Database) -> None:
    before, later, after = clock(database), clock(database, plus_s), clock(database)

    assert before <= later - timedelta(seconds=plus_s) + timedelta(milliseconds=2)
    assert later - timedelta(seconds=plus_s) <= after + timedelta(milliseconds=2)


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first = connection.execute(select(now())).scalar_one()
        while connection.execute(select(now())).scalar_one() == first:
            pass  # ends at the next tick, or at the test's time limit


def test_times_come_back_as_they_were_stored(database: Database) -> None:
    search = store_search(database, 1)
    stored = datetime(2026, 3, 29, 2, 30, 0, 123_000, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    with database.write() as connection:
        connection.execute(Trial.__table__.update().values(not_before=stored))

    assert search.trial().not_before == stored
    assert search.trial().not_before.utcoffset() == timedelta(0)


def test_times_sort_as_times_in_sqlite() -> None:
    from sqlalchemy.dialects import sqlite

    kind, dialect = UtcDateTime(), sqlite.dialect()
    moments = [
        datetime(2026, 1, 1, hour, tzinfo=UTC) + timedelta(milliseconds=ms) for hour in (9, 10) for ms in (0, 5, 50)
    ]

    texts = [kind.process_bind_param(moment, dialect) for moment in moments]

    assert texts == sorted(texts)
    assert [kind.process_result_value(one, dialect) for one in texts] == moments
