"""The commands that change a search, and the story of its attempts."""

from __future__ import annotations

from sqlalchemy import event, select

from gridfleet.scheduler.reports import reader
from gridfleet.storage.schema import Search, Trial
from tests.stored_searches import WORKERS, store_search


def test_cancel_ends_queued_trials_once(gridfleet, fleet, database):
    search_id = store_search(fleet, database, "new", [{"C": 1}, {"C": 2}])

    assert gridfleet("cancel", "new")[:2] == (0, "search new is cancelled\n")
    assert reader.progress(database, search_id).cancelled == 2
    assert "has ended already (cancelled)" in gridfleet("cancel", "new")[1]


def test_pause_and_resume_say_what_they_did(gridfleet, fleet, database):
    store_search(fleet, database, "new", [{"C": 1}, {"C": 2}])

    assert gridfleet("resume", "new")[1] == "search new is waiting (no fleet), not paused; nothing to resume\n"
    assert gridfleet("pause", "NEW")[1] == "search new is paused; `gridfleet resume new` goes on with it\n"
    assert gridfleet("pause", "new")[1] == "search new is paused already; nothing to pause\n"
    assert "paused" in gridfleet("list")[1]
    assert "new: paused" in gridfleet("report", "new")[1]
    assert gridfleet("resume", "new")[:2] == (0, "search new goes on\n")
    assert "new: waiting (no fleet)" in gridfleet("report", "new")[1]


def test_priority_says_what_it_did(gridfleet, fleet, database, pima):
    search_id = store_search(fleet, database, "new", [{"C": 1}])

    assert gridfleet("priority", "NEW", "5")[:2] == (0, "search new has the priority 5\n")
    assert gridfleet("priority", "new", "-5")[:2] == (0, "search new has the priority -5\n")
    with database.read() as connection:
        assert connection.execute(select(Search.priority).where(Search.id == search_id)).scalar() == -5
    assert "search pima has ended already (completed); its priority stays" in gridfleet("priority", "pima", "5")[1]
    status, _, errors = gridfleet("priority", "new", "1001")
    assert (status, errors) == (
        1,
        "gridfleet: priority=1001 must be a whole number from -1000 to 1000; 0 is that of all others\n",
    )
    assert gridfleet("priority", "new", "high")[0] == 2


def test_retry_failed_queues_the_failed_trials_only(gridfleet, fleet, database, pima):
    assert gridfleet("retry-failed", "pima")[:2] == (0, "search pima: 1 trial that failed is queued again\n")

    assert "search pima is running and has no trial to try again" in gridfleet("retry-failed", "pima")[1]
    with database.read() as connection:
        states = connection.execute(select(Trial.state).where(Trial.search_id == pima).order_by(Trial.number))
        assert list(states.scalars()) == ["completed"] * 4 + ["queued"]


def test_commands_about_a_search_that_is_not_there_say_so(gridfleet, fleet, pima):
    for command in (["pause"], ["resume"], ["retry-failed"], ["cancel"], ["priority", "1"]):
        status, _, errors = gridfleet(command[0], "nothing", *command[1:])
        assert status == 1
        assert "no search has the name 'nothing'; the newest are 'pima'" in errors


def test_report_tells_every_attempt(gridfleet, pima):
    _, shown, _ = gridfleet("report", "pima", "--attempts")

    header, *rows = shown.splitlines()
    assert header.split() == ["trial", "attempt", "outcome", "started", "(UTC)", "seconds", "MB", "worker", "error"]
    assert [row.split()[:3] for row in rows] == [
        ["0", "1", "completed"],
        ["1", "1", "worker_lost"],
        ["1", "2", "completed"],
        ["2", "1", "completed"],
        ["3", "1", "completed"],
        ["4", "1", "failed"],
    ]
    assert WORKERS[1] in rows[1]
    assert rows[1].rstrip().endswith("the process ended with signal 9 (SIGKILL)")
    assert rows[5].rstrip().endswith("ValueError: Could not interpret optimizer identifier: adan")


def test_the_trials_of_all_listed_searches_are_counted_in_one_statement(fleet, database, pima):
    new = store_search(fleet, database, "new", [{"C": 1}, {"C": 2}])
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))

    counts = reader.count_trials(database, [pima, new])

    assert counts == {pima: reader.TrialCounts(5, 4, 1, 0.75), new: reader.TrialCounts(0, 0, 0, None)}
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 1
