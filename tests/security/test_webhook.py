"""The URL of a webhook is a secret: it is encrypted on its way, shown to nobody, and given to no worker."""

from __future__ import annotations

import socket
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
    settings = settings_of(f"https://hooks.example.org/{TOKEN}")

    assert TOKEN not in repr(settings) + repr(describe_settings(settings))
    assert TOKEN not in repr(settings.worker_environment())


@apprise_warns
def test_apprise_says_nothing_of_a_url_that_it_can_not_read(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match="apprise") as caught:
        webhook.check_can_send(f"nosuchservice://{TOKEN}")

    assert TOKEN not in str(caught.value) + caplog.text


@apprise_warns
def test_apprise_delivers_what_is_no_http() -> None:
    pytest.importorskip("apprise")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(WebhookError, match="apprise could not deliver it"):
        webhook.send(f"json://127.0.0.1:{port}/{TOKEN}", {"text": "something"})


def test_a_receiver_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(WebhookError, match="did not answer within") as caught,
    ):
        webhook.send(f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}", {"text": "x"})

    assert TOKEN not in str(caught.value)


def test_a_text_mentions_nobody_in_a_chat() -> None:
    assert set("<!channel> @all &".translate(_HARMLESS)).isdisjoint(set("<>@&"))
