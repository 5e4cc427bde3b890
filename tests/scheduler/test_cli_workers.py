"""The commands that show workers and let them drain."""

from __future__ import annotations

import json

from sqlalchemy import insert, update

from gridfleet.storage import workers
from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Worker
from gridfleet.storage.versions import installed_versions
from tests.stored_searches import claim, store_search


def test_workers_are_shown_with_what_they_run_and_did(gridfleet, pima, database, fleet):
    search_id = store_search(fleet, database, "new\x1b[2J", [{"C": 1}])
    claim(database, search_id, 0, "host-a/101")
    workers.drain(database, "host-b")
    workers.register(database, "gone/1", hostname="gone", pid=1)
    workers.note_ended(database, "gone")

    status, shown, _ = gridfleet("workers")
    as_json = json.loads(gridfleet("workers", "--json")[1])

    assert status == 0
    lines = shown.splitlines()
    assert lines[0].startswith("host-a on host-a since ")
    assert lines[0].endswith(" UTC")
    assert lines[1].startswith("  runs       gridfleet ")
    assert lines[2] == "  last hour  2 completed, 1 failed"
    assert lines[3].startswith("  process    100     new\\x1b[2J, trial 0, for ")
    assert lines[4].endswith("; drains")
    assert lines[6:] == ["  last hour  2 completed, 1 worker_lost", "  process    101     idle"]
    first, second = as_json
    assert (first["name"], first["is_draining"], second["is_draining"]) == ("host-a", False, True)
    assert first["processes"][0]["running"]["search"] == "new\x1b[2J"
    assert second["attempts_last_hour"] == {"completed": 2, "worker_lost": 1}


def test_a_report_names_the_worker_of_a_failed_trial(gridfleet, pima):
    _, shown, _ = gridfleet("report", "pima")

    assert "      trial 4, e.g. optimizer=adan, batch_size=10; on host-a/101" in shown.splitlines()


def test_a_worker_that_took_itself_out_is_shown_with_the_reason_and_so_is_a_host_where_none_starts(
    gridfleet, pima, database
):
    workers.stop(database, "host-a/101", "the disk is full")
    workers.note_ended(database, "host-a")
    workers.note_unfit(database, hostname="host-c", pid=7, reason="its cache can't be written")

    status, shown, _ = gridfleet("workers")

    assert status == 0
    first, _, rest = shown.partition("host-b on")
    assert "  stopped    the disk is full\n" in first
    assert "process" not in first
    assert "  stopped    its cache can't be written\n" in rest
    assert gridfleet("drain", "--all")[1].count("drains") == 1  # who is there
    workers.note_fit(database, hostname="host-c")
    assert "host-c" not in gridfleet("workers")[1]


def test_no_worker_is_shown_where_none_is(gridfleet, fleet):
    assert gridfleet("workers") == (0, "no worker was seen in the last hour\n", "")
    assert gridfleet("drain", "--all") == (0, "no worker is there that could drain\n", "")


def test_drain_asks_one_worker_or_all(gridfleet, pima, database):
    assert gridfleet("drain", "host-a")[:2] == (
        0,
        "worker host-a drains: it takes nothing new, and ends when what it runs has\n",
    )
    assert not workers.is_draining(database, "host-b")
    assert gridfleet("drain", "--all")[1].count("drains") == 2

    status, _, said = gridfleet("drain", "host-\x1b")
    assert (status, said) == (
        1,
        "gridfleet: no worker 'host-\\x1b' is there; there are 'host-a', 'host-b', as `gridfleet workers` shows\n",
    )
    assert gridfleet("drain")[0] == gridfleet("drain", "host-a", "--all")[0] == 2


def test_drain_waits_until_the_workers_have_ended(gridfleet, pima, database):
    with database.write() as connection:  # those of before
        connection.execute(update(Worker).values(draining=True))
    workers.note_ended(database, "host-b")
    workers.note_ended(database, "host-a")

    assert gridfleet("drain", "--all", "--wait")[0] == 0


def test_drain_does_not_wait_for_a_worker_that_was_killed(gridfleet, pima, database):
    row = {"id": "killed/7", "hostname": "killed", "pid": 7, **installed_versions(), "last_seen_at": now(-61)}
    with database.write() as connection:
        connection.execute(insert(Worker).values(row))

    status, shown, said = gridfleet("drain", "killed", "--wait")

    assert status == 0
    assert shown.startswith("worker killed drains")
    assert said == "gridfleet: nothing was heard of worker killed for 60 s, so nobody waits for it\n"


def test_a_folder_s_own_fleet_is_changed_otherwise(gridfleet, embedded_home):
    from gridfleet.scheduler.fleet.local.folder import Folder
    from gridfleet.storage.settings import Settings

    folder = Folder(Settings().home)
    folder.prepare()
    folder.make_database()

    status, _, said = gridfleet("drain", "--all")

    assert status == 1
    assert "`gridfleet up --workers N`" in said
