"""What a search is called that people see, the same in Python and in the views."""

from __future__ import annotations

import fcntl
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import text, update

from gridfleet.scheduler.reports import reader
from gridfleet.storage import searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search
from gridfleet.storage.search_states import FLEET_LOCK, ShownState, described
from gridfleet.storage.settings import Settings
from tests.stored_searches import WORKERS, claim, record, store_pima, store_search, switch_triggers_off


def states(database: Database) -> dict[str, str]:
    """Return the state of each search by its name, asked for in each way: all of them have to agree."""
    listed = {search.name: str(search.state) for search in reader.list_searches(database)}
    found = {name: str(reader.find_search(database, name).state) for name in listed}
    followed = {name: str(reader.progress(database, reader.find_search(database, name).id).state) for name in listed}
    filtered = {
        search.name: str(state) for state in ShownState for search in reader.list_searches(database, state=state)
    }
    assert listed == found == followed == filtered
    return listed


def states_of_views(database: Database) -> dict[str, str]:
    with database.read() as connection:
        of_best, of_progress = (
            {row.search: row.state for row in connection.execute(text(f"SELECT search, state FROM {view}"))}
            for view in ("best_trials", "search_progress")
        )
    assert of_best == of_progress
    return of_best


def test_a_state_says_what_came_of_a_search(database_settings: Settings, database: Database) -> None:
    store_pima(database_settings, database)
    worker = WORKERS[0]
    for name, n_trials in (
        ("none scored", 1),
        ("late", 2),
        ("late, none", 1),
        ("stopped", 2),
        ("paused", 1),
        ("on", 2),
    ):
        store_search(database_settings, database, name, [{"C": n} for n in range(n_trials)])
    ids = {search.name: search.id for search in reader.list_searches(database)}
    record(database, claim(database, ids["none scored"], 0, worker), None)
    record(database, claim(database, ids["late"], 0, worker), (0.5, 0.5))
    record(database, claim(database, ids["stopped"], 0, worker), (0.5, 0.5))
    claim(database, ids["on"], 0, worker)
    searches.cancel_search(database, ids["stopped"])
    searches.pause_search(database, ids["paused"])
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.name.like("late%")).values(search_timeout=1))
    for name in ("late", "late, none"):
        assert searches.stop_search(database, ids[name])

    expected = {
        "pima": "completed",
        "none scored": "failed",
        "late": "timed out",
        "late, none": "timed out",
        "stopped": "cancelled",
        "paused": "paused",
        "on": "running",
    }
    assert states(database) == states_of_views(database) == expected
    assert reader.progress(database, ids["stopped"]).counts == "1/2 scored, 1 cancelled"
    assert reader.progress(database, ids["none scored"]).counts == "0/1 scored, 1 failed"
    assert reader.progress(database, ids["on"]).counts == "0/2 scored, 1 running, 1 queued"
    workers.note_ended(database, None)
    assert states(database) == states_of_views(database) == {**expected, "on": "waiting"}


def test_a_search_waits_as_long_as_no_worker_is_there(database_settings: Settings, database: Database) -> None:
    store_search(database_settings, database, "new", [{"C": 1}])

    assert states(database) == states_of_views(database) == {"new": "waiting"}
    assert described(states(database)["new"]) == "waiting (no fleet)"
    workers.register(database, "node/1", hostname="node", pid=1)
    assert states(database) == states_of_views(database) == {"new": "queued"}


def _locked(file: Path) -> IO[bytes]:
    lock = file.open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@pytest.mark.parametrize("backend", ["sqlite"])
def test_of_an_embedded_fleet_its_lock_tells_whether_it_is_there(
    database_settings: Settings, database: Database
) -> None:
    store_search(database_settings, database, "new", [{"C": 1}])
    lock = Path(database.url.database or "").with_name(FLEET_LOCK)
    with ExitStack() as stack:
        stack.enter_context(closing(_locked(lock)))
        assert states(database) == {"new": "queued"}  # it starts, and has no worker yet
    workers.register(database, "node/1", hostname="node", pid=1)
    assert states(database) == {"new": "waiting"}  # it was killed a moment ago
