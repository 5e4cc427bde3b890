"""Whatever lies in the broker's list: it is set aside, nothing of it runs, and the worker goes on."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import select

from gridfleet import submit
from gridfleet.scheduler.cli import doctor
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.transport import MAX_DEAD_LETTERS
from tests.conftest import KEYS
from tests.faults.support import X, Y, assert_one_result_each, attempts, search, wait_for
from tests.malformed_messages import malformed_messages
from tests.running_worker import RunningWorker

pytestmark = pytest.mark.parametrize("backend", ["sqlite"])

USERS = Path(__file__).parents[2] / "deploy/broker/users.acl"


@pytest.fixture
def client(configured: Settings) -> Iterator[redis.Redis]:
    """Connect to the broker as somebody who may write anything there."""
    with redis.Redis.from_url(configured.broker()) as client:
        yield client


def test_malformed_messages_are_set_aside_and_the_worker_goes_on(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], client: redis.Redis, tmp_path: Path
) -> None:
    other = submit(search(tmp_path, [7]), X, Y)
    client.delete(KEYS.queue)
    with fleet.database.read() as connection:
        trial_id = connection.execute(select(Trial.id)).scalar_one()
    other.cancel()  # else its trial would be the first that a good message leads to
    malformed = malformed_messages(trial_id, KEYS.queue, tmp_path / "proof")
    worker = start_worker(configured)

    for element, _ in malformed.values():
        client.lpush(KEYS.queue, element)
    handle = submit(search(tmp_path, [1]), X, Y).wait(60)

    assert_one_result_each(fleet, handle)
    assert attempts(fleet) == [(1, "completed")]
    assert not (tmp_path / "proof").exists()
    assert worker.process.poll() is None
    letters = [json.loads(letter) for letter in reversed(client.lrange(KEYS.dead_letters, 0, -1))]
    found = {name: letter["reason"] for name, letter in zip(malformed, letters, strict=True)}
    assert found == {name: found[name] for name, (_, reason) in malformed.items() if found[name].startswith(reason)}
    assert all(len(letter["element"]) <= 4096 and letter["element"].isprintable() for letter in letters)
    assert all(datetime.fromisoformat(letter["time"]).tzinfo for letter in letters)
    assert_one_line_each(worker, len(malformed))
    broker = next(finding for finding in doctor.examine() if finding.subject == "broker")
    assert f"{len(malformed)} malformed messages were set aside" in broker.sentence
    assert "properties.priority is missing" in broker.sentence


def assert_one_line_each(worker: RunningWorker, number: int) -> None:
    log = worker.log.read_text()
    assert sum("malformed message set aside" in line for line in log.splitlines()) == number
    assert "\x1b[31m" not in log
    assert "\n[ERROR] forged" not in log


def test_the_rights_of_the_deployment_are_enough_and_the_list_of_the_dead_is_bounded(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], client: redis.Redis, tmp_path: Path
) -> None:
    password = secrets.token_urlsafe(24)
    rule = next(line for line in USERS.read_text().splitlines() if line.startswith("user gridfleet "))
    client.execute_command("ACL", "SETUSER", *rule.replace("#PASSWORD_HASH", f">{password}").split()[1:])
    address = client.get_connection_kwargs()
    url = f"redis://gridfleet@{address['host']}:{address['port']}/{address['db']}"
    try:
        worker = start_worker(configured.replace(broker_url=url, broker_password=SecretStr(password)))
        client.lpush(KEYS.queue, *(b"garbage %d" % number for number in range(MAX_DEAD_LETTERS + 5)))
        handle = submit(search(tmp_path, [1]), X, Y).wait(60)

        assert_one_result_each(fleet, handle)
        assert client.llen(KEYS.dead_letters) == MAX_DEAD_LETTERS
        assert f"garbage {MAX_DEAD_LETTERS + 4}" in client.lindex(KEYS.dead_letters, 0).decode()
        worker.stop()
    finally:
        client.execute_command("ACL", "DELUSER", "gridfleet")


def test_a_worker_that_may_not_read_from_the_broker_ends_with_an_error(
    configured: Settings, start_worker: Callable[..., Any], client: redis.Redis
) -> None:
    client.acl_setuser(
        "writer", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-brpop"], reset=True
    )
    address = client.get_connection_kwargs()
    url = f"redis://writer:any@{address['host']}:{address['port']}/{address['db']}"
    try:
        worker = start_worker(configured.replace(broker_url=url))

        assert worker.process.wait(60) == 1
        assert "BRPOP" in worker.log.read_text().upper()
    finally:
        client.acl_deluser("writer")


def test_a_queue_that_is_no_list_is_removed_and_a_list_of_the_dead_that_is_none_harms_nothing(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], client: redis.Redis, tmp_path: Path
) -> None:
    client.set(KEYS.dead_letters, "no list")
    worker = start_worker(configured)
    client.set(KEYS.queue, "no list")
    wait_for(lambda: not client.exists(KEYS.queue), "the worker removes the key")

    client.lpush(KEYS.queue, b"garbage")
    handle = submit(search(tmp_path, [1]), X, Y).wait(60)

    assert_one_result_each(fleet, handle)
    assert worker.process.poll() is None
    assert "could not be kept on the broker" in worker.log.read_text()
