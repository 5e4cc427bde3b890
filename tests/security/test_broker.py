"""The broker's one user on a real Valkey, and what of Celery could make a message more than a hint."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import redis

from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.app import create_app
from gridfleet.worker.broker.publisher import Publisher
from tests.conftest import KEYS
from tests.security.conftest import REPOSITORY, DeployedFleet, GuardedBroker

#: What the user of workers, schedulers and submitters has no use for.
REFUSED = (
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET maxmemory",
    "CONFIG SET maxmemory 1",
    "CONFIG REWRITE",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "DBSIZE",
    "EVAL 1 0",
    "EVALSHA x 0",
    "SCRIPT LOAD 1",
    "FUNCTION LIST",
    "MODULE LIST",
    "ACL LIST",
    "ACL SETUSER intruder on",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "SAVE",
    "BGREWRITEAOF",
    "SHUTDOWN",
    "REPLICAOF 127.0.0.1 1",
    "MIGRATE 127.0.0.1 1 gridfleet:tests:queue 0 1",
    "DUMP gridfleet:tests:queue",
    "RENAME gridfleet:tests:queue other",
    "COPY gridfleet:tests:queue other",
    "EXPIRE gridfleet:tests:queue 1",
    "PUBLISH gridfleet:tests:queue x",
    "SUBSCRIBE gridfleet:tests:queue",
    "SWAPDB 0 1",
    # commands that it has, on keys that are not a fleet's
    "GET other",
    "LPUSH other x",
    "RPUSH other x",
    "BRPOP other 1",
    "RPOP other",
    "LLEN other",
    "LRANGE other 0 -1",
    "LTRIM other 0 0",
    "DEL other",
    "SADD other x",
    "SMEMBERS other",
    "EXISTS other",
    "BRPOP celery 1",
    "LPUSH celery x",
    "DEL celery.dead",
)


def test_the_user_is_refused_what_is_not_its_work(guarded_broker: GuardedBroker) -> None:
    with redis.Redis.from_url(guarded_broker.url, password=guarded_broker.password) as client:
        assert client.ping()
        assert [command for command in REFUSED if not _is_refused(client, command)] == []


def _is_refused(client: redis.Redis, command: str) -> bool:
    try:
        client.execute_command(*command.split())
    except redis.exceptions.NoPermissionError:
        return True
    return False


def test_publishers_and_workers_can_do_their_work(deployed: DeployedFleet) -> None:
    publisher = Publisher(deployed.worker, KEYS)

    publisher.check()
    publisher.publish([1, 2])

    assert publisher.queue_length() == 2
    publisher.close()
    with redis.Redis.from_url(deployed.worker.broker()) as client:
        assert client.brpop(KEYS.queue, timeout=1)


@pytest.mark.parametrize("password", ["", "wrong password, long enough"])
@pytest.mark.parametrize("user", ["default", "gridfleet", "intruder"])
def test_nobody_gets_in_without_the_password(guarded_broker: GuardedBroker, user: str, password: str) -> None:
    with (
        redis.Redis.from_url(guarded_broker.url, username=user, password=password) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()


def test_the_default_user_is_off(guarded_broker: GuardedBroker) -> None:
    url = guarded_broker.url.replace("gridfleet@", "")

    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.lpush(KEYS.queue, "x")


def test_connections_that_say_nothing_are_ended_but_not_those_that_wait_for_messages(
    guarded_broker: GuardedBroker,
) -> None:
    settings = Settings(broker_url=guarded_broker.url, broker_password=guarded_broker.password)
    parts = urlsplit(guarded_broker.url)
    publisher = Publisher(settings, KEYS)
    publisher.check()
    with (
        ExitStack() as silent,
        redis.Redis.from_url(settings.broker()) as worker,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        waits = thread.submit(worker.brpop, KEYS.queue, timeout=60)
        strangers = [
            silent.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=30)) for _ in range(200)
        ]

        assert [stranger.recv(1) for stranger in strangers] == [b""] * 200
        assert not waits.done()
        publisher.publish([7])  # over a connection that was ended as well
        assert waits.result(30)
    publisher.close()


def test_the_configuration_of_the_broker_keeps_it_inside() -> None:
    lines = (REPOSITORY / "deploy/broker/redis.conf").read_text().splitlines()

    assert "protected-mode yes" in lines
    # eviction would throw messages away, and a full disk of snapshots would stop writes
    assert {"maxmemory-policy noeviction", 'save ""'} <= set(lines)
    # strangers neither keep places for ever nor fill the memory
    assert {"timeout 60", "maxclients 2000"} <= set(lines)


def test_celery_reads_json_only_keeps_no_results_and_takes_no_orders() -> None:
    conf = create_app(Settings(broker_url="redis://127.0.0.1/0", database_url="sqlite:///x.db"), KEYS).conf

    assert conf.accept_content == ["json"]
    assert conf.task_serializer == "json"
    assert conf.result_backend is None
    assert conf.task_ignore_result
    assert not conf.task_store_errors_even_if_ignored
    assert not conf.worker_enable_remote_control
    assert not conf.worker_send_task_events
