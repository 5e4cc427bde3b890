"""A reconciler that was away, or whose database was, judges nobody before all that live had time for a heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from gridfleet.scheduler.fleet import reconciler as module
from gridfleet.scheduler.fleet.reconciler import Reconciler
from gridfleet.storage import passes, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Event
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.worker.broker.publisher import Publisher
from tests.conftest import KEYS
from tests.storage.conftest import StoredSearch, ago, set_trial, store_search


@pytest.fixture
def search(database: Database) -> StoredSearch:
    return store_search(database, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the reconciler's machine, which the test moves on."""
    now = [1_000.0]
    monkeypatch.setattr(module, "_clock", lambda: now[0])
    return now


@pytest.fixture
def reconciler(database_settings: Settings, database: Database, clock: list[float]) -> Iterator[Reconciler]:
    with closing(Publisher(database_settings, KEYS)) as publisher:
        yield Reconciler(database_settings, database, publisher)


@pytest.mark.parametrize(
    ("told", "kinds"), [({}, []), ({"webhook_url": SecretStr("https://hooks.example.org/a-token")}, ["ended"])]
)
def test_events_are_written_once_a_reconciler_with_somebody_to_tell_was_there(
    told: dict[str, SecretStr], kinds: list[str], search: StoredSearch, database_settings: Settings
) -> None:
    database = search.database
    # of a scheduler that was there before, and told somebody
    passes.note_notifies(database, True)
    with closing(Publisher(database_settings, KEYS)) as publisher:
        Reconciler(database_settings.replace(**told), database, publisher).once()
    searches.cancel_search(database, search.id)

    with database.read() as connection:
        assert connection.execute(select(Event.kind)).scalars().all() == kinds


def lose(search: StoredSearch, number: int = 0) -> None:
    search.held(number)
    set_trial(search.database, search.trial_ids[number], lease_expires_at=ago(1))


def test_a_reconciler_that_was_there_takes_back_what_is_lost_at_once(
    reconciler: Reconciler, clock: list[float], search: StoredSearch, database_settings: Settings
) -> None:
    reconciler.once()
    lose(search)
    clock[0] += database_settings.reconcile_s + 5  # a busy machine

    assert reconciler.once().taken_back == 1


@pytest.mark.parametrize("what", ["the machine slept", "the database's clock jumped", "the database was down"])
def test_after_an_absence_all_that_live_have_a_lease_before_they_are_judged(
    what: str, reconciler: Reconciler, clock: list[float], search: StoredSearch, database_settings: Settings
) -> None:
    reconciler.once()
    lose(search, 0)
    lose(search, 1)
    if what == "the machine slept":
        clock[0] += 3_600
    else:
        assert reconciler._database_was_at is not None
        reconciler._database_was_at -= timedelta(hours=1)
        if what == "the database was down":
            clock[0] += database_settings.reconcile_s

    assert reconciler.once().taken_back == 0
    live = search.trial(0)
    transitions.heartbeat(search.database, held_of(live), lease_s=60)
    for _ in range(3):
        assert reconciler.once().taken_back == 0
        clock[0] += database_settings.reconcile_s
    clock[0] += database_settings.reconcile_s

    assert reconciler.once().taken_back == 1
    assert [search.trial(number).state for number in (0, 1)] == ["running", "queued"]


def test_the_time_of_an_absence_is_not_a_trial_s(
    reconciler: Reconciler, search: StoredSearch, database_settings: Settings
) -> None:
    reconciler.once()
    search.held(0)
    set_trial(search.database, search.trial_ids[0], deadline_at=ago(1_800), lease_expires_at=ago(-60))
    assert reconciler._database_was_at is not None
    reconciler._database_was_at -= timedelta(hours=1)

    reconciler.once()

    trial = search.trial(0)
    assert trial.state == "running"
    assert 1_700 < (trial.deadline_at - ago(0)).total_seconds() < 1_900


def test_a_reconciler_that_is_stopped_amid_a_pass_judges_nobody_afterwards(
    reconciler: Reconciler, clock: list[float], search: StoredSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(search)
    find = module.expired

    def find_and_stand_still(database: Database, *, limit: int) -> object:
        found = find(database, limit=limit)
        clock[0] += 3_600
        return found

    monkeypatch.setattr(module, "expired", find_and_stand_still)

    assert reconciler.once().taken_back == 0
    assert search.trial().state == "running"


def test_a_scheduler_that_starts_waits_for_a_lease_for_the_database_may_have_been_down_with_it(
    reconciler: Reconciler, clock: list[float], search: StoredSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(search)
    taken_back = []

    def sleep(seconds: float) -> None:
        taken_back.append(search.trial().state == "queued")
        clock[0] += seconds
        if len(taken_back) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        reconciler.run_for_ever()

    assert taken_back == [False] * 4 + [True] * 2  # 15 s after each other, and a lease is 60 s


def test_a_broker_that_is_down_for_long_is_no_absence(
    reconciler: Reconciler, clock: list[float], search: StoredSearch, database_settings: Settings
) -> None:
    reconciler._publisher = Publisher(database_settings.replace(broker_url="redis://127.0.0.1:1/0"), KEYS)
    for _ in range(6):
        reconciler.try_once()
        clock[0] += database_settings.reconcile_s
    lose(search)

    reconciler.try_once()

    assert search.trial().state == "queued"


def held_of(row: object) -> module.Held:
    return module.Held(row.id, row.token)
