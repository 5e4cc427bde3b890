"""One database of a broker that two fleets and another Celery application use: none touches what is another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import redis
from celery import Celery
from sklearn.linear_model import LogisticRegression

from gridfleet import GridSearchCV
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.keys import Keys
from tests.faults.support import attempts
from tests.running_worker import RunningWorker

X = np.random.default_rng(0).normal(size=(40, 3))
VALUES = list(np.logspace(-3, 3, 8))


@pytest.fixture
def fleets_of_one_broker(
    empty_database_url: Callable[..., str], make_settings: Callable[..., Settings]
) -> list[Settings]:
    """Make two fleets, each as a first start makes it, on one database of the broker."""
    one = make_settings("sqlite")
    both = [one.replace(database_url=empty_database_url("sqlite"), cache_dir=one.cache_dir / name) for name in "ab"]
    for settings in both:
        with closing(Database(settings)) as database:
            migrations.upgrade(database)
    return both


def test_fleets_and_another_application_share_a_broker(
    fleets_of_one_broker: list[Settings],
    use_fleet: Callable[[Settings], None],
    start_worker: Callable[..., RunningWorker],
    broker_url: str,
) -> None:
    foreign = Celery("theirs", broker=broker_url)
    for number in range(3):
        foreign.send_task("their.task", args=[number])
    with redis.Redis.from_url(broker_url) as client:
        client.lpush("celery.dead", "theirs")
        before = _contents(client)
        for settings in fleets_of_one_broker:
            start_worker(settings)
        for settings in fleets_of_one_broker:
            use_fleet(settings)
            fleet = fleets.connect()
            found = GridSearchCV(LogisticRegression(), {"C": VALUES}, cv=2, refit=False).fit(X, X[:, 0] > 0)

            assert [params["C"] for params in found.cv_results_["params"]] == VALUES
            assert list(found.plot_history().data[0].x) == list(range(len(VALUES)))
            assert attempts(fleet) == [(1, "completed")] * len(VALUES)
            client.lpush(Keys(fleet_id(fleet.database)).queue, "garbage")

        ours = [Keys(_id(settings)) for settings in fleets_of_one_broker]
        letters = [json.loads(client.blpop([keys.dead_letters], timeout=30)[1]) for keys in ours]
        assert [letter["element"] for letter in letters] == ["garbage"] * 2
        assert {key: value for key, value in _contents(client).items() if key in before} == before
        others = {key for key in client.scan_iter() if key not in before}
        assert all(key.decode().startswith(tuple(keys.prefix for keys in ours)) for key in others), others


def _id(settings: Settings) -> str:
    with closing(Database(settings)) as database:
        return fleet_id(database)


def _contents(client: redis.Redis) -> dict[bytes, bytes | None]:
    return {key: client.dump(key) for key in client.scan_iter()}
