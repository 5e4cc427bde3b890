"""What takes the room: bytes of each search, and of the database."""

from __future__ import annotations

from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.room import room_of_database, room_of_searches
from gridfleet.storage.settings import Settings
from tests.stored_searches import store_pima, store_search


def test_the_room_of_each_search_is_told_by_its_parts(database: Database, database_settings: Settings) -> None:
    pima = store_pima(database_settings, database)
    queued = store_search(database_settings, database, "queued", [{"C": 1}])  # of the same payloads
    PayloadStore(database, database_settings).put("X", bytes(100_000), what="X")  # which nobody names

    first, second = room_of_searches(database)

    assert (first.search_id, first.name, first.state) == (pima, "pima", "completed")
    assert second.search_id == queued
    assert first.payloads == second.payloads > 500
    assert first.own_payloads == second.own_payloads == 0
    assert min(first.curves, first.scores, first.attempts, first.trials) > 100
    assert (second.curves, second.scores, second.attempts) == (0, 0, 0)
    assert first.freed == first.curves + first.scores + first.attempts + first.trials + first.warnings
    assert [room.search_id for room in room_of_searches(database, [queued])] == [queued]

    whole = room_of_database(database)
    assert whole.total > 100_000
    assert (whole.free is None) == (database.dialect == "postgresql")
    assert whole.payloads == first.payloads + whole.unnamed_payloads
    assert 100_000 <= whole.unnamed_payloads < 110_000
