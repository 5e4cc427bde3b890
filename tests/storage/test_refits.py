"""The refit of a search: it waits for the end, is evaluated once, and is shown with its search only."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from gridfleet.scheduler.reports import reader
from gridfleet.storage import deletions, models, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.deletions import delete_search
from gridfleet.storage.errors import PayloadError, SearchInUseError, SearchNotFoundError
from gridfleet.storage.refits import Refit, find_refit
from gridfleet.storage.rekeying import rekey
from gridfleet.storage.room import room_of_searches
from gridfleet.storage.schema import BestModel, BestModelChunk, Lease, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer, Verifier
from gridfleet.storage.trials import queue, transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.trials.recorded import SearchGoesOnError, recorded_of_ended
from tests.storage.conftest import (
    MODELS,
    StoredSearch,
    attempts_of,
    model_result,
    reap,
    result_of,
    store_refit,
    store_search,
)

VERIFIER = Verifier(MODELS.public_key)


@pytest.fixture
def search(database: Database, database_settings: Settings) -> StoredSearch:
    return store_search(database, 2, signer=Signer(database_settings.key()))


@pytest.fixture
def refit(search: StoredSearch, database_settings: Settings) -> StoredSearch:
    return store_refit(search, Signer(database_settings.key()))


def end(search: StoredSearch, *scores: float | None) -> None:
    """Evaluate the trials of a search; None: its fit raises."""
    for number, score in enumerate(scores):
        result = result_of(0.0, error="no") if score is None else result_of(score)
        assert transitions.record(search.database, search.held(number), result)


def found(search: StoredSearch) -> Refit:
    refit = find_refit(search.database, search.id)
    assert refit is not None
    return refit


def content(refit: StoredSearch) -> bytes:
    return bytes(models.read_model(refit.database, VERIFIER, refit.id, refit.trial_ids[0])[1])


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_refit_begins_when_all_trials_of_its_search_are_done(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5)

    assert refit.claim() is None
    led_to = queue.look(database, refit.trial_ids[0])
    assert led_to is not None
    assert led_to.search_id == search.id
    assert queue.due_for_publishing(database, republish_s=60) == search.trial_ids[1:]
    assert queue.count_queued(database) == 1
    assert queue.never_published(database, search.trial_ids) == search.trial_ids[1:]
    assert found(search).is_waiting
    with pytest.raises(SearchGoesOnError):
        recorded_of_ended(database, search.id)

    assert transitions.record(database, search.held(1), result_of(0.75))

    assert not found(search).is_waiting
    assert queue.due_for_publishing(database, republish_s=60) == refit.trial_ids
    # who recorded the last trial, or gave it up, sends its message
    assert queue.never_published(database, search.trial_ids[1:]) == refit.trial_ids
    queue.mark_published(database, refit.trial_ids)
    assert queue.never_published(database, search.trial_ids) == []
    claim = refit.claim()
    assert claim is not None
    assert (claim.refit_of, claim.model_key) == (search.id, MODELS.public_key)
    rows, stopped = recorded_of_ended(database, claim.refit_of)
    assert ([row.test_score for row in rows], stopped) == ([0.5, 0.5, 0.75, 0.75], None)


def test_a_search_without_a_refit_has_none(search: StoredSearch) -> None:
    assert find_refit(search.database, search.id) is None


def test_a_refit_whose_worker_is_killed_ends_once(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5, 0.75)
    lost = refit.held()
    assert reap(database, lost)
    again = refit.held(worker_id="node/2")

    # the first was slow, and not dead
    assert not transitions.record(database, lost, model_result(refit, b"of a worker that is gone"))
    assert transitions.record(database, again, model_result(refit, b"the model", number=1))
    assert not transitions.record(database, again, model_result(refit, b"once more"))

    assert [attempt.outcome for attempt in attempts_of(database, refit.trial_ids[0])] == ["worker_lost", "completed"]
    assert (count(database, BestModel), content(refit)) == (1, b"the model")
    assert refit.row().state == "completed"
    done = found(search)
    assert (done.is_stored, done.is_finished, done.refit_time, done.error) == (True, True, 3.5, None)


def test_a_refit_whose_workers_are_killed_again_and_again_fails(search: StoredSearch, refit: StoredSearch) -> None:
    end(search, 0.5, 0.75)

    assert reap(search.database, refit.held(), max_failures=1)

    done = found(search)
    assert (done.is_stored, done.is_finished, done.error_type) == (False, True, "worker_lost")


def test_a_cancelled_search_has_no_refit(search: StoredSearch, refit: StoredSearch) -> None:
    end(search, 0.5)

    assert searches.cancel_search(search.database, search.id)

    assert (refit.row().state, refit.trial().state) == ("cancelled", "cancelled")
    assert found(search).error == "the search was cancelled"
    assert refit.claim() is None


def test_a_search_all_of_whose_trials_failed_has_no_refit(search: StoredSearch, refit: StoredSearch) -> None:
    end(search, None, None)

    assert search.row().state == "completed"
    assert (refit.row().state, refit.trial().state) == ("cancelled", "cancelled")
    assert found(search).error == "no trial of the search was completed"


def test_a_search_that_has_ended_is_cancelled_as_long_as_its_refit_goes_on(
    search: StoredSearch, refit: StoredSearch
) -> None:
    end(search, 0.5, 0.75)

    assert searches.cancel_search(search.database, search.id)

    assert (search.row().state, refit.row().state) == ("completed", "cancelled")
    assert not searches.cancel_search(search.database, search.id)


@pytest.mark.parametrize("then", ["recorded", "running", "queued"])
def test_a_refit_waits_again_when_failed_trials_are_tried_again(
    search: StoredSearch, refit: StoredSearch, then: str
) -> None:
    database = search.database
    end(search, 0.5, None)
    held = None if then == "queued" else refit.held()
    if held is not None and then == "recorded":
        assert transitions.record(database, held, model_result(refit))

    assert searches.retry_failed(database, search.id) == 1

    assert found(search).is_waiting
    assert (count(database, BestModel), count(database, BestModelChunk), count(database, Lease)) == (0, 0, 0)
    assert refit.claim() is None
    if held is not None:
        assert not transitions.record(database, held, model_result(refit, b"of another best trial"))
        outcome = "completed" if then == "recorded" else "released"
        assert [attempt.outcome for attempt in attempts_of(database, refit.trial_ids[0])] == [outcome]
    assert transitions.record(database, search.held(1), result_of(0.75))
    assert transitions.record(database, refit.held(), model_result(refit, b"the best now", number=1))
    assert content(refit) == b"the best now"


def test_a_refit_that_was_cancelled_for_want_of_a_score_begins_after_all(
    search: StoredSearch, refit: StoredSearch
) -> None:
    end(search, None, None)

    assert searches.retry_failed(search.database, search.id) == 2
    end(search, 0.5, 0.75)

    assert refit.claim() is not None


def test_a_refit_that_failed_is_tried_again_alone(search: StoredSearch, refit: StoredSearch) -> None:
    end(search, 0.5, 0.75)
    assert transitions.record(search.database, refit.held(), result_of(0.0, error="no", n_splits=0))
    assert found(search).error_type == "ValueError"

    assert searches.retry_failed(search.database, search.id) == 1

    assert search.row().state == "completed"
    assert refit.trial().state == "queued"
    assert transitions.record(search.database, refit.held(), model_result(refit))
    assert searches.retry_failed(search.database, search.id) == 0


def test_a_search_that_is_gone_on_with_has_a_refit_again(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5)
    assert searches.cancel_search(database, search.id)
    assert refit.row().state == "cancelled"

    searches.open_again(database, search.id)

    assert found(search).is_waiting
    assert transitions.record(database, search.held(1), result_of(0.75))
    assert refit.claim() is not None


def test_a_refit_that_somebody_cancelled_is_queued_when_its_search_is_gone_on_with(
    search: StoredSearch, refit: StoredSearch
) -> None:
    end(search, 0.5, 0.75)
    assert searches.cancel_search(search.database, search.id)

    searches.open_again(search.database, search.id)

    assert (search.row().state, refit.row().state) == ("completed", "queued")
    assert transitions.record(search.database, refit.held(), model_result(refit))
    searches.open_again(search.database, search.id)
    assert content(refit) == b"model"


def test_a_search_without_any_score_is_gone_on_with_in_vain(search: StoredSearch, refit: StoredSearch) -> None:
    end(search, None, None)

    searches.open_again(search.database, search.id)

    assert (search.row().state, refit.row().state) == ("completed", "cancelled")


def test_a_refit_has_the_priority_of_its_search(search: StoredSearch, refit: StoredSearch) -> None:
    assert searches.set_priority(search.database, search.id, 3)
    assert (search.row().priority, refit.row().priority) == (3, 3)
    end(search, 0.5, 0.75)

    assert searches.set_priority(search.database, search.id, 5)
    assert refit.row().priority == 5
    assert transitions.record(search.database, refit.held(), model_result(refit))
    assert not searches.set_priority(search.database, search.id, 7)


def test_what_is_large_is_stored_in_parts(
    search: StoredSearch, refit: StoredSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridfleet.storage.payloads.contents.CHUNK_BYTES", 1_000)
    end(search, 0.5, 0.75)

    assert transitions.record(search.database, refit.held(), model_result(refit, bytes(range(250)) * 10))

    assert content(refit) == bytes(range(250)) * 10
    assert count(search.database, BestModelChunk) == 3


def test_a_model_that_is_not_there_is_said(search: StoredSearch, refit: StoredSearch) -> None:
    with pytest.raises(PayloadError, match="the best model is not in the database"):
        content(refit)


def test_lists_counts_and_views_show_the_search_only(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5, 0.75)
    assert transitions.record(database, refit.held(), model_result(refit))

    assert [listed.id for listed in reader.list_searches(database)] == [search.id]
    assert reader.progress(database, search.id).total == 2
    for asked in (refit.id, refit.name):
        with pytest.raises(SearchNotFoundError, match=f"the newest are '{search.name}'$"):
            reader.find_search(database, asked)
    with database.read() as connection:
        for view in ("best_trials", "search_progress"):
            assert connection.exec_driver_sql(f"SELECT search_id FROM {view}").scalars().all() == [search.id]
        assert set(connection.exec_driver_sql("SELECT search FROM leaderboard").scalars()) == {search.name}


def test_a_deletion_takes_the_refit_and_its_model_along(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5, 0.6)
    with pytest.raises(SearchInUseError, match=r"the best model of search .* is still being fitted"):
        delete_search(database, search.id)
    assert transitions.record(database, refit.held(), model_result(refit, b"the model"))
    (room,) = room_of_searches(database)
    assert (room.search_id, room.model) == (search.id, len(b"the model"))

    delete_search(database, search.id)

    assert [count(database, table) for table in (Search, Trial, BestModel, BestModelChunk)] == [0, 0, 0, 0]


def test_an_interrupted_deletion_of_both_is_ended(search: StoredSearch, refit: StoredSearch) -> None:
    database = search.database
    end(search, 0.5, 0.6)
    assert transitions.record(database, refit.held(), model_result(refit))
    for one in (search, refit):
        deletions._begin(database, one.id)

    deletions.remove_what_was_left(database)

    assert count(database, Search) == 0


def test_another_secret_key_leaves_a_model_readable_and_is_for_the_next_one(
    search: StoredSearch, refit: StoredSearch, database_settings: Settings
) -> None:
    database = search.database
    end(search, 0.5, 0.6)
    old, new = Signer(database_settings.key()), Signer(b"the next secret key of this fleet")
    other = Signer(b"and that of its workers")

    assert rekey(database, old, new, model_key=other.public_key).n_searches == 2

    claimed = refit.claim()
    assert claimed is not None
    assert claimed.model_key == other.public_key
    searches.check_signature(Verifier(new.public_key), refit.id, _facts_of(refit))
    held = Held(claimed.trial_id, claimed.token)
    assert transitions.record(database, held, model_result(refit, b"the model", signer=other))
    assert rekey(database, new, old, model_key=MODELS.public_key).n_searches == 2
    verifier = Verifier(_facts_of(refit)["model_key"])
    assert bytes(models.read_model(database, verifier, refit.id, refit.trial_ids[0])[1]) == b"the model"


def _facts_of(refit: StoredSearch) -> dict[str, Any]:
    return dict(refit.row()._mapping)
