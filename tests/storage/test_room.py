"""What takes the room: bytes of each search, and of the database."""

from __future__ import annotations

from sqlalchemy import event, insert, select, text

from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.room import READ, room_of_database, room_of_searches
from gridfleet.storage.schema import Curve, SplitScore, Trial
from gridfleet.storage.settings import Settings
from tests.stored_searches import store_pima, store_search, switch_triggers_off


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


def store_large_search(settings: Settings, database: Database) -> int:
    """Store a search of which more trials are there than are read, the first half of them with scores and curves."""
    search_id = store_search(settings, database, "large", [{"units": number} for number in range(4 * READ)])
    store_search(settings, database, "small", [{"units": 1}])
    of_search = select(Trial.id).where(Trial.search_id == search_id).order_by(Trial.number)
    times = {"fit_time": 0.25, "score_time": 0.25, "n_train": 8, "n_test": 4}
    with database.write() as connection:
        switch_triggers_off(connection)
        ids = connection.execute(of_search.limit(2 * READ)).scalars().all()
        scores = [
            {"trial_id": id_, "split": split, "metric": "score", "test_score": 0.5, **times}
            for id_ in ids
            for split in (0, 1)
        ]
        connection.execute(insert(SplitScore), scores)
        curves = [{"trial_id": id_, "split": 0, "metric": "loss", "values": [0.5] * 100} for id_ in ids]
        connection.execute(insert(Curve), curves)
        if database.dialect == "postgresql":
            connection.execute(text("ANALYZE"))
    return search_id


def test_of_a_large_search_the_room_is_told_by_some_of_its_rows(
    database: Database, database_settings: Settings
) -> None:
    search_id = store_large_search(database_settings, database)
    asked: list[tuple[str, object]] = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2:4]))

    large = next(room for room in room_of_searches(database) if room.search_id == search_id)

    # as much as all rows, of which each has the same
    assert 20 < large.scores / (4 * READ) < 100
    assert 300 < large.curves / (2 * READ) < 1_500
    assert large.trials > 4 * READ * 100
    of_scores = [one for one in asked if "split_scores" in one[0]]
    assert len(of_scores) == 1
    if database.dialect == "postgresql":
        return
    with database.read() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {of_scores[0][0]}", of_scores[0][1])]
    assert [line for line in plan if line.startswith("SEARCH split_scores USING")], plan
    assert not [line for line in plan if line.startswith(("SCAN trials", "SCAN split_scores"))], plan
