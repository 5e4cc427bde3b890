"""Trials that are proposed while their search goes on: added once, by whoever is first, and never after its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gridfleet.scheduler.reports import reader
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.trials.proposed import Proposal, add_proposals, asking, end_proposals, proposed
from tests.storage.conftest import SPACE, StoredSearch, race, result_of, store_asking


def proposal(value: int) -> Proposal:
    return Proposal({"branch": 0, "values": {"a": value}}, {"a": value}, [])


def evaluate(database: Database, trial_id: int, score: float = 0.5) -> None:
    claim = claims.claim(database, trial_id, "worker/1", lease_s=60, max_runtime_s=60)
    assert claim is not None
    assert transitions.record(database, Held(claim.trial_id, claim.token), result_of(score))


def test_trials_are_added_as_they_are_proposed_and_then_the_search_ends(database: Database) -> None:
    search = store_asking(database)
    assert [one.n_asked for one in asking(database)] == [0]

    first = add_proposals(database, search.id, [proposal(1), proposal(2)], n_asked=0)

    assert first is not None
    assert len(first) == 2
    assert [(row.number, row.sample, row.asked_without) for row in proposed(database, search.id)] == [
        (0, {"branch": 0, "values": {"a": 1}}, []),
        (1, {"branch": 0, "values": {"a": 2}}, []),
    ]
    for trial_id in first:
        evaluate(database, trial_id)
    assert search.row().finished_at is None, "one is still to be proposed"
    progress = reader.progress(database, search.id)
    assert (progress.counts, progress.done, progress.is_finished) == ("2/3 scored", 2, False)
    assert reader.count_trials(database, [search.id])[search.id].done == 2

    last = add_proposals(database, search.id, [proposal(3)], n_asked=2)

    assert last is not None
    assert asking(database) == []
    evaluate(database, last[0])
    assert search.row().state == "completed"


def test_a_worker_is_told_the_point_of_its_trial(database: Database) -> None:
    search = store_asking(database)
    ids = add_proposals(database, search.id, [proposal(1), proposal(2)], n_asked=0)
    assert ids is not None
    limits: dict[str, Any] = {"lease_s": 60, "max_runtime_s": 60}

    claim = claims.claim(database, ids[0], "worker/1", **limits)
    assert claim is not None
    _, following = transitions.record_and_claim(database, claim, result_of(0.5), "worker/1", **limits)

    assert claim.sample == {"branch": 0, "values": {"a": 1}}
    assert claim.space == SPACE
    assert following is not None
    assert following.sample == {"branch": 0, "values": {"a": 2}}


def _add(database: Database, search_id: int) -> bool:
    return add_proposals(database, search_id, [proposal(1), proposal(2)], n_asked=0) is not None


def test_of_several_processes_one_adds_them(database: Database, database_settings: Settings) -> None:
    search = store_asking(database)

    assert sorted(race(database_settings, _add, [search.id] * 4)) == [False, False, False, True]

    assert [row.number for row in proposed(database, search.id)] == [0, 1]


def _cancel(database: Database, search: StoredSearch) -> None:
    searches.cancel_search(database, search.id)


def _stop(database: Database, search: StoredSearch) -> None:
    searches.stop_search(database, search.id)


def _pause(database: Database, search: StoredSearch) -> None:
    searches.pause_search(database, search.id)


@pytest.mark.parametrize("end", [_cancel, _stop, _pause])
def test_nothing_is_added_to_a_search_that_was_ended_or_paused(
    database: Database, end: Callable[[Database, StoredSearch], None]
) -> None:
    search = store_asking(database, search_timeout=5.0)

    end(database, search)

    assert asking(database) == []
    assert add_proposals(database, search.id, [proposal(1)], n_asked=0) is None
    assert end_proposals(database, search.id, n_asked=0) is False
    assert (search.row().finished_at is None) == (end is _pause)


def test_a_cancelled_search_goes_on_where_it_was(database: Database) -> None:
    search = store_asking(database)
    add_proposals(database, search.id, [proposal(1)], n_asked=0)
    searches.cancel_search(database, search.id)

    searches.open_again(database, search.id)

    assert [one.n_asked for one in asking(database)] == [1]
    assert [row.state for row in proposed(database, search.id)] == ["queued"]


def test_a_stopped_search_goes_on_though_no_trial_was_cancelled(database: Database) -> None:
    search = store_asking(database, search_timeout=5.0)
    ids = add_proposals(database, search.id, [proposal(1)], n_asked=0)
    assert ids is not None
    evaluate(database, ids[0])
    searches.stop_search(database, search.id)
    assert search.row().finished_at is not None

    searches.open_again(database, search.id)

    assert [one.n_asked for one in asking(database)] == [1]


def test_a_space_that_has_nothing_new_ends_the_search(database: Database) -> None:
    search = store_asking(database, n_trials=50)
    ids = add_proposals(database, search.id, [proposal(1)], n_asked=0)
    assert ids is not None

    assert end_proposals(database, search.id, n_asked=1) is True

    assert search.row().finished_at is None, "its trial is not done"
    evaluate(database, ids[0])
    assert search.row().state == "completed"
    progress = reader.progress(database, search.id)
    assert (progress.counts, progress.is_finished) == ("1/1 scored", True)
    with database.read() as connection:
        row = connection.exec_driver_sql("SELECT total, completed, done FROM search_progress").one()
    assert tuple(row) == (1, 1, 1)


def test_the_view_counts_what_is_still_to_be_proposed(database: Database) -> None:
    search = store_asking(database)
    add_proposals(database, search.id, [proposal(1)], n_asked=0)

    with database.read() as connection:
        row = connection.exec_driver_sql("SELECT total, queued, completed, done FROM search_progress").one()

    assert tuple(row) == (3, 1, 0, 0)
