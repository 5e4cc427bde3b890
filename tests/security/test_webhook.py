"""The URL of a webhook is a secret: it is encrypted on its way, shown to nobody, and given to no worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pydantic import SecretStr

from gridfleet.scheduler.fleet import webhook
from gridfleet.scheduler.fleet.notifier import _HARMLESS
from gridfleet.storage.described_settings import describe_settings
from gridfleet.storage.errors import SettingsError, WebhookError
from gridfleet.storage.settings import Settings

TOKEN = "T000-B000-the-token"

pytestmark = pytest.mark.usefixtures("no_variables")
#: Of modules that apprise imports as it looks through all of its services.
apprise_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def settings_of(url: str, **more: Any) -> Settings:
    return Settings(webhook_url=SecretStr(url), secret_key=SecretStr("k" * 32), **more)


def told_by_apprise(urls: str) -> Settings:
    return Settings(notify_urls=SecretStr(urls), secret_key=SecretStr("k" * 32))


@contextmanager
def answering(answer: bytes, *, stays: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """Give a port whose server answers once, and what it got; one that stays closes only when the other side does."""
    got: list[bytes] = []

    def serve() -> None:
        with server.accept()[0] as connection:
            connection.settimeout(30)
            got.append(connection.recv(65536))
            connection.sendall(answer)
            with suppress(ConnectionError):
                while stays and connection.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], got
        thread.join()


@pytest.mark.parametrize(
    "url", [f"https://hooks.example.org/{TOKEN}", f"http://127.0.0.1:8000/{TOKEN}", f"http://[::1]/{TOKEN}"]
)
def test_a_url_that_nobody_on_the_way_can_read_is_taken(url: str) -> None:
    assert settings_of(url).webhook() == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http://hooks.example.org/{TOKEN}", "WEBHOOK_ALLOW_HTTP=true"),
        (f"http://127.0.0.1.example.org/{TOKEN}", "WEBHOOK_ALLOW_HTTP=true"),
        (f"http://127.0.0.1@example.org/{TOKEN}", "WEBHOOK_ALLOW_HTTP=true"),
        (f"https:///{TOKEN}", "names no host"),
        (f"hooks.example.org/{TOKEN}", "is not a URL"),
        (f"https://host:99999/{TOKEN}", "is not a URL"),
        (f"file:///etc/{TOKEN}", "NOTIFY_URLS for one of apprise"),
        (f"tgram://{TOKEN}/1", "NOTIFY_URLS for one of apprise"),
        (f"https://host/{TOKEN}\r\nX: y", "is not a URL"),
    ],
)
def test_another_one_is_refused_without_being_shown(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        settings_of(url).webhook()

    assert TOKEN not in str(caught.value)


def test_http_to_another_machine_is_for_those_who_say_so() -> None:
    assert settings_of("http://receiver:8080/", webhook_allow_http=True).webhook() == "http://receiver:8080/"


def test_it_is_shown_to_nobody_and_no_worker_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDFLEET_WEBHOOK_URL", f"https://hooks.example.org/{TOKEN}")
    monkeypatch.setenv("GRIDFLEET_NOTIFY_URLS", f"tgram://{TOKEN}/1")
    settings = Settings(secret_key=SecretStr("k" * 32))

    assert TOKEN not in repr(settings) + repr(describe_settings(settings))
    assert TOKEN not in repr(settings.worker_environment())


@apprise_warns
def test_apprise_says_nothing_of_a_url_that_it_can_not_read(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("apprise")
    with pytest.raises(SettingsError, match="that apprise does not know") as caught:
        webhook.sender_of(told_by_apprise(f"json://127.0.0.1/ nosuchservice://{TOKEN}"))

    assert TOKEN not in str(caught.value) + caplog.text


@apprise_warns
def test_apprise_says_when_nobody_took_a_message() -> None:
    pytest.importorskip("apprise")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    send = webhook.sender_of(told_by_apprise(f"json://127.0.0.1:{port}/{TOKEN}"))
    assert send is not None
    with pytest.raises(WebhookError, match="apprise could not deliver it"):
        send({"text": "something"})


@apprise_warns
def test_a_message_that_one_service_of_apprise_took_is_not_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("apprise")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as (there, got):
        send = webhook.sender_of(told_by_apprise(f"json://127.0.0.1:{port}/{TOKEN} json://127.0.0.1:{there}/"))
        assert send is not None
        send({"text": "something"})

    assert b"POST / " in got[0]
    assert "1 did not take a message" in caplog.text
    assert TOKEN not in caplog.text


def test_a_webhook_and_apprise_at_once_are_refused() -> None:
    settings = settings_of(f"https://hooks.example.org/{TOKEN}", notify_urls=SecretStr(f"tgram://{TOKEN}/1"))
    with pytest.raises(SettingsError, match="set one of them") as caught:
        webhook.sender_of(settings)

    assert TOKEN not in str(caught.value)


def test_an_answer_without_end_is_not_read() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n" + b"x" * 1000, stays=True) as (
        port,
        got,
    ):
        send = webhook.sender_of(settings_of(f"http://127.0.0.1:{port}/"))
        assert send is not None
        send({"text": "something"})  # a reader of the answer would wait for the rest of it

    assert got[0].startswith(b"POST / ")


def test_a_receiver_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        send = webhook.sender_of(settings_of(f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}"))
        assert send is not None
        with pytest.raises(WebhookError, match="did not answer within") as caught:
            send({"text": "x"})

    assert TOKEN not in str(caught.value)


def test_a_text_mentions_nobody_in_a_chat() -> None:
    assert set("<!channel> @all &".translate(_HARMLESS)).isdisjoint(set("<>@&"))
