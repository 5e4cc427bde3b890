"""What deleting a search removes and what it leaves, and who may come in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import insert, inspect, select, text, update

from gridfleet.storage import deletions, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.deletions import delete_search
from gridfleet.storage.errors import PayloadGoneError, PayloadSignatureError, SearchInUseError, SearchNotFoundError
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Base, Payload, PayloadChunk, Search, SplitScore, Trial
from gridfleet.storage.search_views import create_search_view, point_view, shown_search
from gridfleet.storage.settings import Settings
from gridfleet.storage.tags import change_tags
from gridfleet.storage.trial_results import CurveResult, WarningResult
from gridfleet.storage.trials import claims, queue, reuse, transitions
from gridfleet.storage.trials.held import Claim
from gridfleet.storage.trials.uncertain_commits import was_recorded
from tests import stored_searches
from tests.storage.conftest import StoredSearch, ago, count, race, result_of, store_search
from tests.storage.test_reuse import store_with_keys
from tests.storage.test_trial_races import _wait_for_a_blocked_session

DIGESTS = ("evaluation", "x", "y", "splits", "candidates")


def end(search: StoredSearch) -> None:
    for number in range(len(search.trial_ids)):
        curves = [CurveResult(split=0, metric="loss", values=[1.0, 0.5])]
        warned = [WarningResult(category="UserWarning", message="mind this", module=None, n_fits=1)]
        result = replace(result_of(0.5), curves=curves, warnings=warned)
        assert transitions.record(search.database, search.held(number), result)


def rows_of_all_tables(database: Database) -> dict[str, int]:
    tables = [table for table in Base.metadata.sorted_tables if table.name not in ("fleet_identity", "reconciler")]
    with database.read() as connection:
        return {table.name: len(connection.execute(select(*table.primary_key.columns)).all()) for table in tables}


@pytest.fixture
def ended(database: Database, database_settings: Settings) -> StoredSearch:
    """Store the search ``pima``, which has ended, with a view, a tag and payloads of its own."""
    search = store_search(database, 3, name="pima")
    store = PayloadStore(database, database_settings)
    digests = {f"{kind}_digest": store.put(kind, ["pima", kind], what=kind) for kind in DIGESTS}
    with database.write() as connection:
        stored_searches.switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(**digests))
        create_search_view(connection, search.id, "pima", {"units": "bigint"})
    end(search)
    change_tags(database, search.id, {"dataset": "pima"})
    return search


def test_nothing_of_a_deleted_search_is_left(ended: StoredSearch) -> None:
    before = rows_of_all_tables(ended.database)
    assert all(before[name] for name in ("trials", "split_scores", "curves", "attempts", "trial_warnings", "tags"))

    removed = delete_search(ended.database, ended.id)

    assert (removed.n_trials, removed.n_payloads) == (3, len(DIGESTS))
    after = rows_of_all_tables(ended.database)
    # the key's row and the payload without content that tests share
    assert {name for name, rows in after.items() if rows} == {"payloads"}
    assert after["payloads"] == 2
    with ended.database.read() as connection:
        assert "pima" not in inspect(connection).get_view_names()


def test_other_searches_keep_all_that_they_have(ended: StoredSearch, database_settings: Settings) -> None:
    other = store_search(ended.database, 2, name="other")
    with ended.database.write() as connection:
        stored_searches.switch_triggers_off(connection)
        shared = connection.execute(select(Search.x_digest).where(Search.id == ended.id)).scalar_one()
        connection.execute(update(Search).where(Search.id == other.id).values(x_digest=shared))
    end(other)

    removed = delete_search(ended.database, ended.id)

    assert removed.n_payloads == len(DIGESTS) - 1
    assert PayloadStore(ended.database, database_settings).get("x", shared) == ["pima", "x"]
    assert [other.trial(number).state for number in range(2)] == ["completed"] * 2
    assert delete_search(ended.database, other.id).n_payloads == 2


def test_a_search_whose_trials_are_open_is_refused_and_stays(database: Database) -> None:
    search = store_search(database, 2)
    held = search.held(0)

    with pytest.raises(SearchInUseError, match=r"is running, and a search is deleted when it has ended; cancel it"):
        delete_search(database, search.id)
    searches.cancel_search(database, search.id)
    with pytest.raises(SearchInUseError, match=r"is cancelled, but trials of it still run; wait until"):
        delete_search(database, search.id)

    transitions.cancel(database, held)
    assert delete_search(database, search.id).n_trials == 2
    with pytest.raises(SearchNotFoundError, match="it was deleted"):
        delete_search(database, search.id)


def test_a_deletion_that_is_interrupted_is_found_by_nobody_and_goes_on_where_it_ended(
    ended: StoredSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "BATCH", 1)
    with monkeypatch.context() as killed:
        remove, left = deletions._remove_trials, [1]

        def remove_one(*arguments: Any) -> int:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return remove(*arguments)

        killed.setattr(deletions, "_remove_trials", remove_one)
        with pytest.raises(KeyboardInterrupt):
            delete_search(ended.database, ended.id)
    assert count(ended.database, Trial) == 2

    assert searches.retry_failed(ended.database, ended.id) == 0
    again = store_search(ended.database, 1, name="pima")  # the name is free at once
    assert ended.row().finished_at is not None

    assert deletions.remove_what_was_left(ended.database) > 0
    assert [search.id for search in all_searches(ended.database)] == [again.id]
    assert count(ended.database, Trial) == 1


def all_searches(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(Search.id, Search.name).order_by(Search.id)))


def test_payloads_that_a_killed_submission_left_go_a_day_later(database: Database, database_settings: Settings) -> None:
    store = PayloadStore(database, database_settings)
    old, new = store.put("X", ["old"], what="X"), store.put("X", ["new"], what="X")
    with database.write() as connection:
        connection.execute(update(Payload).where(Payload.digest == old).values(created_at=ago(2 * 86_400)))

    assert deletions.remove_what_was_left(database) > 0

    with database.read() as connection:
        left = set(connection.execute(select(Payload.digest).where(Payload.kind != "key")).scalars())
        assert connection.execute(select(PayloadChunk.digest)).scalars().all() == [new]
    assert left == {new}


# who is in between


def test_a_worker_that_lost_its_trial_records_nothing_after_the_search_is_gone(database: Database) -> None:
    search = store_search(database, 1)
    stale = search.held(0)
    transitions.reap(database, stale, outcome=Outcome.WORKER_LOST, error="it hung", max_failures=1)

    delete_search(database, search.id)

    assert transitions.record(database, stale, result_of(0.5)) is False
    assert was_recorded(database, stale) is False
    assert transitions.heartbeat(database, stale, lease_s=60) is None
    for late in (
        transitions.release(database, stale),
        transitions.cancel(database, stale),
        transitions.hand_back(database, stale, worker_id="node/1", reason="a full disk", error="a full disk"),
        transitions.reap(database, stale, outcome=Outcome.WORKER_LOST, error="it hung", max_failures=1),
    ):
        assert late is False
    claim = Claim(**{**dict.fromkeys(Claim.__slots__), "trial_id": stale.trial_id, "token": stale.token})
    assert transitions.record_and_claim(database, claim, result_of(0.5), "node/1", lease_s=60, max_runtime_s=60) == (
        False,
        None,
    )


def test_whoever_took_back_the_last_trial_does_not_mind_that_the_search_is_gone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = store_search(database, 1)
    held = search.held(0)
    finish_of = transitions._finish_search_of

    def delete_first(database: Database, trial_id: int) -> None:
        searches.finish_search(database, search.id)  # another process
        delete_search(database, search.id)
        finish_of(database, trial_id)

    monkeypatch.setattr(transitions, "_finish_search_of", delete_first)

    assert transitions.reap(database, held, outcome=Outcome.WORKER_LOST, error="it died", max_failures=1)


def test_a_message_of_a_trial_that_is_gone_leads_to_nothing(database: Database) -> None:
    search = store_search(database, 1)
    end(search)
    other = store_search(database, 1)

    delete_search(database, search.id)

    assert queue.look(database, search.trial_ids[0]) is None
    assert claims.claim(database, search.trial_ids[0], "node/1", lease_s=60, max_runtime_s=60) is None
    queue.mark_published(database, search.trial_ids)
    assert queue.due_for_publishing(database, republish_s=60, oldest=search.trial_ids[0]) == other.trial_ids


def _record_or_delete(database: Database, work: tuple[str, list[Any]]) -> list[Any]:
    if work[0] == "record":
        return [transitions.record(database, held, result_of(0.5)) for held in work[1]]
    done = []
    for search_id in work[1]:
        while True:
            try:
                delete_search(database, search_id)
            except SearchInUseError:
                continue
            except SearchNotFoundError:  # the other one did
                done.append(False)
            else:
                done.append(True)
            break
    return done


def test_searches_that_are_deleted_the_moment_they_end_leave_nothing_and_lose_no_result(
    database: Database, database_settings: Settings
) -> None:
    stored = [store_search(database, 2) for _ in range(12)]
    firsts, seconds = ([search.held(number) for search in stored] for number in range(2))
    search_ids = [search.id for search in stored]

    answers = race(
        database_settings,
        _record_or_delete,
        [("record", firsts), ("record", seconds), ("delete", search_ids), ("delete", search_ids)],
    )

    recorded = [answer for answer in answers if None not in answer]
    assert sum(all(answer) for answer in recorded) >= 2  # each result was taken, by both workers
    assert {name: n for name, n in rows_of_all_tables(database).items() if n and name != "payloads"} == {}


# payloads that somebody is about to name


def test_who_stores_a_search_notices_that_a_payload_went_and_stores_it_again(
    database: Database, store: PayloadStore
) -> None:
    digest = store.put("X", ["mine"], what="X")
    prepared = store.prepare("X", ["mine"], what="X")
    assert prepared.is_stored
    assert deletions._remove_payload(database, digest) is not None

    with pytest.raises(PayloadGoneError), database.write() as connection:
        store.require_stored(connection, [digest, None])
    assert count(database, Payload) == 0
    with database.write() as connection:
        store.insert_again(connection, [prepared])
        store.require_stored(connection, [digest])


def test_who_stores_a_search_notices_that_the_fleet_got_another_key(
    database: Database, store: PayloadStore, another_store: Callable[..., PayloadStore]
) -> None:
    digest = store.put("X", ["mine"], what="X")
    other = another_store(secret_key=SecretStr("another secret key"))

    with (
        pytest.raises(PayloadSignatureError, match="not signed with this process's key"),
        database.write() as connection,
    ):
        other.require_stored(connection, [digest])


def test_a_deletion_waits_for_a_search_that_is_being_stored_and_leaves_its_payloads(
    make_settings: Callable[..., Settings],
) -> None:
    """In SQLite there is one writer at a time."""
    settings = make_settings("postgresql")
    with closing(Database(settings)) as database:
        store = PayloadStore(database, settings)
        digest = store.put("X", ["shared"], what="X")
        other = store_search(database, 1)
        removed: list[int | None] = []
        deletion = threading.Thread(target=lambda: removed.append(deletions._remove_payload(database, digest)))
        with database.write() as connection:
            store.require_stored(connection, [digest])
            deletion.start()
            _wait_for_a_blocked_session(database)
            row = connection.execute(select(*Search.__table__.columns).where(Search.id == other.id)).one()._asdict()
            connection.execute(
                insert(Search).values({**row, "id": None, "name": "new", "x_digest": digest} | {"id": 99})
            )
        deletion.join(30)

        assert removed == [None]
        assert store.get("X", digest) == ["shared"]


# views


def view_of(database: Database, search: StoredSearch, name: str | None = None) -> None:
    with database.write() as connection:
        create_search_view(connection, search.id, name or search.name, {"units": "bigint"})


def shown(database: Database, name: str) -> int | None:
    with database.read() as connection:
        return shown_search(connection, name)


def test_the_view_of_a_name_that_was_run_again_shows_the_newest_that_is_left(database: Database) -> None:
    runs = [store_search(database, 1, name=name) for name in ("pima", "pima-2", "pima-3", "pima wide-4")]
    for run in runs:
        end(run)
        view_of(database, run)
    with database.write() as connection:
        point_view(connection, runs[2].id, "pima", {"units": "bigint"})
    assert shown(database, "pima") == runs[2].id

    delete_search(database, runs[2].id)
    assert (shown(database, "pima"), shown(database, "pima-3")) == (runs[1].id, None)

    delete_search(database, runs[1].id)
    assert shown(database, "pima") == runs[0].id

    delete_search(database, runs[0].id)
    assert shown(database, "pima") is None
    assert shown(database, "pima wide-4") == runs[3].id


def test_a_view_that_somebody_made_of_it_is_named_before_anything_is_removed(
    make_settings: Callable[..., Settings],
) -> None:
    with closing(Database(make_settings("postgresql"))) as database:
        search = store_search(database, 1, name="per%cent")
        end(search)
        view_of(database, search)
        with database.write() as connection:
            connection.execute(text('CREATE VIEW mine AS SELECT units FROM "per%cent"'))

        with pytest.raises(
            SearchInUseError, match=r"view 'per%cent' \(view mine depends on view .*\); drop those first"
        ):
            delete_search(database, search.id)

        assert search.row().deleted_at is None
        assert count(database, Trial) == 1


# room


def test_the_file_of_sqlite_gets_smaller(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings("sqlite", migrated=False)
    with closing(Database(settings)) as database:
        from gridfleet.storage import migrations

        migrations.upgrade(database)
        file = Path(str(database.url.database))
        store = PayloadStore(database, settings)
        digest = store.put("X", bytes(3_000_000), what="X")
        grown = _size(database, file)

        assert deletions._remove_payload(database, digest) is not None
        assert deletions.give_back_room(database, may_rewrite=False)

        assert _size(database, file) < grown - 2_900_000


def test_a_file_of_an_older_release_is_written_anew_where_nobody_needs_it(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings("sqlite")
    with closing(Database(settings)) as database:
        file = Path(str(database.url.database))
        connection = database.engine.raw_connection()
        connection.cursor().execute("PRAGMA auto_vacuum=NONE")
        connection.cursor().execute("VACUUM")
        connection.close()
        digest = PayloadStore(database, settings).put("X", bytes(3_000_000), what="X")
        grown = _size(database, file)
        deletions._remove_payload(database, digest)

        assert not deletions.give_back_room(database, may_rewrite=False)
        assert _size(database, file) == grown
        assert deletions.give_back_room(database, may_rewrite=True)
        assert _size(database, file) < grown - 2_900_000
        assert deletions.give_back_room(database, may_rewrite=False)


def _size(database: Database, file: Path) -> int:
    connection = database.engine.raw_connection()
    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return file.stat().st_size


def test_a_deletion_waits_for_a_search_that_takes_its_results_and_those_stay(
    make_settings: Callable[..., Settings],
) -> None:
    """In SQLite there is one writer at a time."""
    with closing(Database(make_settings("postgresql"))) as database:
        first, _ = store_with_keys(database, ["a" * 64])
        end(first)
        deletion = threading.Thread(target=delete_search, args=(database, first.id))
        with database.write() as connection:
            assert reuse.find_results(connection, ["a" * 64]) == {"a" * 64: first.trial_ids[0]}
            deletion.start()
            _wait_for_a_blocked_session(database)
            scored = select(SplitScore.split).where(SplitScore.trial_id == first.trial_ids[0])
            assert connection.execute(scored).scalars().all() == [0, 1]
        deletion.join(30)
        second, n_taken = store_with_keys(database, ["a" * 64])

        assert (n_taken, second.trial(0).state) == (0, "queued")
