"""How a worker connects to its broker; what it lets in is tested in tests/faults/test_poison_messages.py."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from kombu.exceptions import OperationalError

from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.app import create_app
from gridfleet.worker.broker.transport import RECONNECT_S
from tests.conftest import KEYS


def test_a_broker_that_is_down_for_hours_is_asked_again_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    waited: list[float] = []
    app = create_app(Settings(database_url="sqlite:///unused.db", broker_url=f"redis://127.0.0.1:{port}"), KEYS)

    with app.connection_for_read() as connection, suppress(OperationalError):
        connection.ensure_connection(lambda error, interval: waited.append(interval), max_retries=30)

    assert len(waited) == 30
    assert max(waited) == RECONNECT_S


def test_logs_name_the_broker_as_the_setting_does() -> None:
    app = create_app(
        Settings(database_url="sqlite:///unused.db", broker_url="rediss://user:secret@broker:6379/1"), KEYS
    )

    with app.connection_for_read() as connection:
        assert connection.as_uri() == "rediss://user:**@broker:6379/1"
