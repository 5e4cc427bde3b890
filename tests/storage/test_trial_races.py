"""Races for trials between real processes and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from sqlalchemy import select, text, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, SplitScore, Trial
from gridfleet.storage.searches import cancel_search
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Held
from tests.storage.conftest import OLD_TOKEN, race, result_of, store_search

N_RACERS = 4


def _claim_all(database: Database, trial_ids: list[int]) -> list[int]:
    found = [claims.claim(database, trial_id, "node/1", lease_s=60, max_runtime_s=60) for trial_id in trial_ids]
    return [claim.trial_id for claim in found if claim is not None]


def test_of_processes_that_claim_the_same_trials_exactly_one_wins_each(
    database: Database, database_settings: Settings
) -> None:
    search = store_search(database, 20)

    winners = race(database_settings, _claim_all, [search.trial_ids] * N_RACERS)

    assert sorted(trial_id for won in winners for trial_id in won) == search.trial_ids
    assert {search.trial(number).attempt for number in range(20)} == {1}


def test_of_threads_that_claim_the_same_trial_exactly_one_wins(database: Database) -> None:
    search = store_search(database, 10)
    for trial_id in search.trial_ids:
        start = threading.Barrier(4)

        def claim(_: int, trial_id: int = trial_id, start: threading.Barrier = start) -> Any:
            start.wait()
            return claims.claim(database, trial_id, "node/1", lease_s=60, max_runtime_s=60)

        with ThreadPoolExecutor(4) as pool:
            taken = [one for one in pool.map(claim, range(4)) if one is not None]
        assert len(taken) == 1


def _claim_at_messages(database: Database, messages: list[int]) -> list[int | None]:
    taken = []
    for trial_id in messages:
        hint = queue.look(database, trial_id)
        claim = hint and claims.claim_at_message(database, hint, "node/1", lease_s=60, max_runtime_s=60)
        taken.append(claim and claim.trial_id)
    return taken


def test_processes_that_get_stale_messages_at_once_take_a_trial_each(
    database: Database, database_settings: Settings
) -> None:
    search = store_search(database, 1 + N_RACERS * 10)
    search.held(0)

    claimed = race(database_settings, _claim_at_messages, [[search.trial_ids[0]] * 10] * N_RACERS)

    found = [trial_id for one in claimed for trial_id in one if trial_id is not None]
    assert len(found) == len(set(found))
    # at the first try, but where the last ones are held by others (SQLite: taken between the look and the claim)
    assert len(found) >= N_RACERS * 9


def _go_on(database: Database, trial_id: int) -> list[int]:
    """Claim a trial, and go on from one to the next."""
    limits = {"lease_s": 60, "max_runtime_s": 60}
    claim = claims.claim(database, trial_id, "node/1", **limits)
    recorded = []
    while claim is not None:
        recorded.append(claim.trial_id)
        is_recorded, claim = transitions.record_and_claim(database, claim, result_of(0.5), "node/1", **limits)
        assert is_recorded
    return recorded


def test_processes_that_go_on_from_trial_to_trial_evaluate_each_once(
    database: Database, database_settings: Settings
) -> None:
    search = store_search(database, 40)

    recorded = race(database_settings, _go_on, search.trial_ids[:N_RACERS])

    assert sorted(trial_id for one in recorded for trial_id in one) == search.trial_ids
    assert {search.trial(number).attempt for number in range(40)} == {1}
    assert search.row().state == "completed"


def _record_all(database: Database, held: list[Held]) -> list[bool]:
    return [transitions.record(database, one, result_of(0.5)) for one in held]


def test_the_last_trials_recorded_at_the_same_time_finish_each_search(
    database: Database, database_settings: Settings
) -> None:
    searches = [store_search(database, 2) for _ in range(15)]
    held = [[search.held(number) for search in searches] for number in range(2)]

    answers = race(database_settings, _record_all, held)

    assert answers == [[True] * 15] * 2
    assert [search.row().state for search in searches] == ["completed"] * 15
    assert all(search.row().finished_at for search in searches)


def test_a_result_recorded_by_many_at_once_is_written_once(database: Database, database_settings: Settings) -> None:
    search = store_search(database, 10)
    held = [search.held(number) for number in range(10)]

    answers = race(database_settings, _record_all, [held] * 4)

    assert [sum(one) for one in zip(*answers, strict=True)] == [1] * 10
    with database.read() as connection:
        n_rows = len(connection.execute(select(SplitScore.trial_id)).all())
    assert n_rows == 10 * 2


def _cancel_searches(database: Database, searches: list[int]) -> list[Any]:
    return [cancel_search(database, search_id) for search_id in searches]


def _live_and_release(database: Database, trial_ids: list[int]) -> list[Any]:
    for trial_id in trial_ids:
        claim = claims.claim(database, trial_id, "node/1", lease_s=60, max_runtime_s=60)
        if claim is not None:
            transitions.release(database, Held(claim.trial_id, claim.token))
    return []


def _cancel_or_release(database: Database, work: tuple[str, list[int]]) -> list[Any]:
    return (_cancel_searches if work[0] == "cancel" else _live_and_release)(database, work[1])


def test_a_cancellation_misses_no_trial_that_is_claimed_or_released_meanwhile(
    database: Database, database_settings: Settings
) -> None:
    searches = [store_search(database, 2) for _ in range(25)]
    firsts = [search.trial_ids[0] for search in searches]
    seconds = [search.trial_ids[1] for search in searches]

    race(
        database_settings,
        _cancel_or_release,
        [("cancel", [search.id for search in searches]), ("release", firsts), ("release", seconds)],
    )

    states = {search.trial(number).state for search in searches for number in range(2)}
    assert states == {"cancelled"}
    assert {search.row().state for search in searches} == {"cancelled"}
    assert all(search.row().finished_at for search in searches)


def test_a_claim_and_a_cancellation_at_once_do_not_wait_for_each_other(make_settings: Callable[..., Settings]) -> None:
    """The first claim of a search touches trial, then search; PostgreSQL kills one of two that cross."""
    with closing(Database(make_settings("postgresql"))) as database:
        search = store_search(database, 1)
        cancelled = threading.Thread(target=cancel_search, args=(database, search.id))
        with database.write() as connection:  # the claim, stopped after its first statement
            connection.execute(
                update(Trial).where(Trial.id == search.trial_ids[0]).values(state="running", token=OLD_TOKEN, attempt=1)
            )
            cancelled.start()
            _wait_for_a_blocked_session(database)
            connection.execute(update(Search).where(Search.id == search.id).values(state="running"))
        cancelled.join(30)
        assert not cancelled.is_alive()

        assert search.row().state == "cancelled"
        assert search.trial().cancel_requested


def _wait_for_a_blocked_session(database: Database) -> None:
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    for _ in range(10_000):
        with database.read() as connection:
            if connection.execute(statement).scalar():
                return
    raise AssertionError("nobody waits for the lock")
