"""How a worker connects to its broker; what it lets in is tested in tests/faults/test_poison_messages.py."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from gridfleet.storage.errors import BrokerUnreachableError
from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.app import create_app
from gridfleet.worker.broker.publisher import Publisher
from gridfleet.worker.broker.transport import RECONNECT_S
from tests.certificates import self_signed
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


def test_a_broker_whose_certificate_nobody_vouches_for_is_told_with_the_option_that_names_its_authority(
    tmp_path: Path,
) -> None:
    for name, content in self_signed("127.0.0.1").items():
        (tmp_path / name).write_bytes(content)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:

        def answer_twice() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with suppress(OSError):
                    tls.wrap_socket(connection, server_side=True)

        answered = pool.submit(answer_twice)
        url = f"rediss://127.0.0.1:{listener.getsockname()[1]}"
        publisher = Publisher(Settings(database_url="sqlite:///unused.db", broker_url=url), KEYS)
        with pytest.raises(BrokerUnreachableError, match=r"name the file of its authority.*: ssl_ca_certs="):
            publisher.check()
        answered.result()
