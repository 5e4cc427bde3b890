"""Who prolongs the lease of a trial: the worker's main process, and where that is silent its own process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from gridfleet.worker.guards.peak_memory import PeakMemory
from gridfleet.worker.guards.sign_of_life import Found, SignOfLife, signs_of_children
from gridfleet.worker.main_process.watchdog import Watchdog
from gridfleet.worker.trial.heartbeat import Heartbeat
from gridfleet.worker.trial.interrupter import Interrupter
from tests.storage.conftest import StoredSearch, ago, set_trial, store_search


@pytest.fixture
def stored(database: Database) -> StoredSearch:
    return store_search(database, 3)


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignOfLife:
    """The sign of life of this process, which is its own main process."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    (tmp_path / "signs").mkdir()
    return SignOfLife(tmp_path / "signs")


@pytest.fixture
def watchdog(database_settings: Settings, database: Database, sign: SignOfLife, tmp_path: Path) -> Watchdog:
    """A main process that watches this process, and is not started: a test looks itself."""
    return Watchdog(
        database_settings,
        database,
        tmp_path / "signs",
        node="node",
        processes=lambda: [os.getpid()],
        publish_again=lambda _: None,
        top_up=lambda: None,
        drain=lambda: None,
        take_out=lambda: None,
    )


def seconds_left(stored: StoredSearch, number: int) -> float:
    return (stored.trial(number).lease_expires_at - ago(0)).total_seconds()


def hold(stored: StoredSearch, number: int) -> Held:
    return stored.held(number, worker_id=f"node/{os.getpid()}", lease_s=20)


def test_the_main_process_prolongs_the_lease_of_a_process_that_lives(
    stored: StoredSearch, sign: SignOfLife, watchdog: Watchdog
) -> None:
    held = hold(stored, 0)
    sign.begin(time.monotonic() + 100, held, 300)

    watchdog._look()

    assert seconds_left(stored, 0) > 40
    answer = sign.answer()
    assert answer is not None
    assert (answer.found, answer.token) == (Found.HELD, held.token)


def test_it_prolongs_nothing_of_a_process_that_gives_no_sign(
    stored: StoredSearch, sign: SignOfLife, watchdog: Watchdog
) -> None:
    sign.begin(time.monotonic() + 100, hold(stored, 0), 300)
    watchdog._look()
    set_trial(stored.database, stored.trial_ids[0], lease_expires_at=ago(-20))

    watchdog._look()
    assert seconds_left(stored, 0) < 21
    sign.beat(300)
    watchdog._look()
    assert seconds_left(stored, 0) > 40


def test_it_tells_a_process_that_its_trial_is_cancelled_or_lost(
    stored: StoredSearch, sign: SignOfLife, watchdog: Watchdog
) -> None:
    held = hold(stored, 0)
    sign.begin(time.monotonic() + 100, held, 300)
    searches.cancel_search(stored.database, stored.id)
    watchdog._look()
    assert sign.answer().found == Found.CANCELLED

    transitions.cancel(stored.database, held)
    sign.beat(300)
    watchdog._look()
    assert sign.answer().found == Found.LOST


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Interrupter:
    monkeypatch.setattr("gridfleet.worker.trial.interrupter.signal.signal", lambda *_: None)
    return Interrupter()


@pytest.mark.parametrize(
    ("answered_s", "is_about_it", "began_s", "is_done"),
    [
        (1, True, 100, True),
        (19, True, 100, True),
        (21, True, 100, False),  # silent for too long
        (1, False, 5, True),  # it has begun since
        (1, False, 21, False),  # the main process does not see it
        (21, False, 5, False),
        (None, False, 5, False),  # no answer ever
    ],
)
def test_a_process_rests_while_its_main_process_prolongs_its_lease(
    answered_s: float | None,
    is_about_it: bool,
    began_s: float,
    is_done: bool,
    tmp_path: Path,
    sign: SignOfLife,
    interrupter: Interrupter,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings("sqlite", lease_s=60.0, heartbeat_s=10.0)
    with closing(Database(settings)) as database:
        heartbeat = Heartbeat(settings, database, interrupter, sign, PeakMemory())
    held, now = Held(1, "a" * 32), time.monotonic()
    at = now - began_s
    monkeypatch.setattr("gridfleet.worker.trial.heartbeat.time.monotonic", lambda: at)
    heartbeat.begin(now + 100, held)
    if answered_s is not None:
        (seen,) = signs_of_children(tmp_path / "signs")
        at = now - answered_s
        seen.answer(Found.HELD)
        if not is_about_it:
            heartbeat.begin(now + 100, Held(2, "b" * 32))
            heartbeat._began_at, held = now - began_s, Held(2, "b" * 32)
    at = now

    assert heartbeat._is_done_by_main(held) is is_done


def test_what_the_dead_held_is_asked_for_a_lease_after_a_death_and_while_something_runs(
    stored: StoredSearch, watchdog: Watchdog, sign: SignOfLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(watchdog, "_take_back", lambda: asked.append(None))
    now = time.monotonic()
    monkeypatch.setattr("gridfleet.worker.main_process.watchdog.time.monotonic", lambda: now)

    def is_asked() -> bool:
        asked.clear()
        watchdog._look()
        return bool(asked)

    assert is_asked()
    now += 59
    assert is_asked()  # a claim of the dead may be committed late
    now += 2
    assert not is_asked()
    sign.begin(now + 100, hold(stored, 0), 300)
    assert is_asked()
    sign.end()
    now += 59
    assert is_asked()
    now += 2
    assert not is_asked()
