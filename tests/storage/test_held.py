"""Which trials are held, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from sqlalchemy import text

from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import held_by
from tests.storage.conftest import StoredSearch, store_search


def test_the_trials_of_a_node_are_its_own(search: StoredSearch) -> None:
    mine = search.held(0, worker_id="node_1/10")
    other = search.held(1, worker_id="nodeX1/10")
    longer = search.held(2, worker_id="node_11/10")

    assert held_by(search.database, "node_1") == [mine]
    assert set(held_by(search.database, None)) == {mine, other, longer}


def test_heartbeats_change_a_row_in_place_and_touch_no_index(make_settings: Callable[..., Settings]) -> None:
    with closing(Database(make_settings("postgresql"))) as database:
        search = store_search(database, 10)
        held = [search.held(number) for number in range(10)]
        for _ in range(20):
            for one in held:
                assert transitions.heartbeat(database, one, lease_s=60, memory_mb=500) is False
        with database.read() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
        with database.read() as connection:
            query = "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            counts = {name: numbers for name, *numbers in connection.execute(text(query))}

    assert counts["leases"] == [200, 200]
    assert counts["trials"][0] == 10  # the claims
