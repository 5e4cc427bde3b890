"""Searches that are deleted under real workers, and by whom a script that submits is overtaken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from sklearn.base import BaseEstimator
from sqlalchemy import func, select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import deletions
from gridfleet.storage.errors import SearchInUseError
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.payloads.store import PayloadStore, PreparedPayload
from gridfleet.storage.schema import Curve, Payload, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.keys import Keys
from tests.end_to_end.models import Touching
from tests.running_worker import READY_S

X, Y = np.zeros((12, 2)), np.arange(12) % 2


class Curved(BaseEstimator):
    """Has a learning curve, as a Keras model has."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def fit(self, X: Any, y: Any) -> Any:
        self.history_ = {"loss": [1.0, 0.5]}
        return self

    def score(self, X: Any, y: Any) -> float:
        return float(self.value)


def rows(fleet: Fleet, table: Any) -> int:
    with fleet.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_a_search_whose_trials_are_claimed_recorded_and_published_is_deleted_and_the_worker_goes_on(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    space = {"value": list(range(60)), "folder": [str(tmp_path)]}
    going = submit(GridSearchCV(Touching(), space, cv=2, refit=False), X, Y, name="going")
    worker = start_worker(configured, concurrency=2)
    until = time.monotonic() + READY_S
    while not going.progress().done:
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(SearchInUseError, match="cancel it first"):
        going.delete()
    going.cancel()
    while True:  # trials run, and are being recorded
        try:
            going.delete()
        except SearchInUseError:
            assert time.monotonic() < until
            time.sleep(0.001)
        else:
            break

    # messages of trials that are gone are before these
    kept = submit(GridSearchCV(Curved(), {"value": [1, 2]}, cv=2, refit=False), X, Y, name="kept")
    without = submit(GridSearchCV(Curved(), {"value": [3]}, cv=2, refit=False, keep_curves=False), X, Y)
    assert (kept.wait(60).best_score_, without.wait(60).best_score_) == (2.0, 3.0)

    assert rows(fleet, Trial) == 3
    with fleet.database.read() as connection:
        of_curves = select(Trial.search_id, func.count()).join(Curve, Curve.trial_id == Trial.id)
        counted = connection.execute(of_curves.group_by(Trial.search_id)).all()
        assert [tuple(row) for row in counted] == [(kept.id, 4)]
        assert set(connection.execute(select(Search.name)).scalars()) == {"kept", without.name}
    with redis.Redis.from_url(configured.broker()) as broker:
        while broker.llen(Keys(fleet_id(fleet.database)).queue):  # all are dropped
            assert time.monotonic() < until
            time.sleep(0.02)
    assert "Traceback" not in worker.log.read_text()
    assert worker.process.poll() is None


def test_a_script_that_submits_what_is_stored_is_overtaken_by_a_deletion_and_stores_it_again(
    fleet: Fleet, configured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridSearchCV(Curved(), {"value": [1]}, cv=2, refit=False, tags={"dataset": "zeros", "by": "grid"})
    first = submit(grid, X, Y, tags={"by": "submit", "run": 1})
    with fleet.database.read() as connection:
        stored = connection.execute(select(Payload.digest).where(Payload.kind != "key")).scalars().all()
    first.cancel()
    require_room = PayloadStore.require_room

    def delete_first(store: PayloadStore, payloads: list[PreparedPayload]) -> None:
        require_room(store, payloads)
        assert any(payload.is_stored for payload in payloads)
        first.delete()

    monkeypatch.setattr(PayloadStore, "require_room", delete_first)
    second = submit(grid, X, Y, name="second")

    with fleet.database.read() as connection:
        now = connection.execute(select(Payload.digest).where(Payload.kind != "key")).scalars().all()
    assert sorted(now) == sorted(stored)
    assert second.progress().total == 1


def test_searches_are_submitted_and_deleted_at_once_and_each_keeps_its_payloads(
    fleet: Fleet, configured: Settings
) -> None:
    grid = GridSearchCV(Curved(), {"value": [1]}, cv=2, refit=False)
    ended = threading.Event()

    def delete_what_nobody_names() -> None:
        while not ended.is_set():
            with fleet.database.read() as connection:
                digests = connection.execute(select(Payload.digest)).scalars().all()
            for digest in digests:
                deletions._remove_payload(fleet.database, digest)

    remover = threading.Thread(target=delete_what_nobody_names)
    remover.start()
    try:
        for _ in range(5):
            handle = submit(grid, X, Y)
            handle.cancel()
            handle.delete()
        last = submit(grid, X, Y)
    finally:
        ended.set()
        remover.join()

    assert last._candidates(last._summary()).params == [{"value": 1}]
