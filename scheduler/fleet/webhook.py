"""Sends one message to where the user wants it: a POST of JSON to http(s), or its text by apprise.

What comes back is not trusted: nobody is followed elsewhere, and no answer is read.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from gridfleet.storage.errors import SettingsError, WebhookError
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.urls import is_loopback

logger = logging.getLogger(__name__)

#: Seconds that each step of a POST may take.
TIMEOUT_S = 10


def sender_of(settings: Settings) -> Callable[[dict[str, Any]], None] | None:
    """Return what sends a message; None: nobody is to be told.

    A message's ``text`` is what people read. What sends it raises WebhookError if it was not taken, with the reason, in
    which nothing of a URL is.

    Raises
    ------
    SettingsError
        If nothing can be sent there, or apprise is not installed.
    """
    urls = settings.apprise_urls()
    if urls is not None:
        return partial(_by_apprise, _apprise(urls))
    url = settings.webhook()
    return None if url is None else partial(_post, url)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows nobody: what is sent, and the token in a header, is for the one address that was set."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, message: dict[str, Any]) -> None:
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "gridfleet"}
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + b64encode(credentials.encode()).decode()
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))
    body = json.dumps(message, allow_nan=False).encode()
    request = urllib.request.Request(address, body, headers, method="POST")  # noqa: S310 - http or https, as checked
    # no proxy stands between this machine and itself
    proxies = urllib.request.ProxyHandler({} if is_loopback(parts.hostname or "") else None)
    try:
        with urllib.request.build_opener(_NoRedirects, proxies).open(request, timeout=TIMEOUT_S):
            return
    except HTTPError as error:
        error.close()
        raise WebhookError(f"it answered with status {error.code}") from None
    except TimeoutError:
        raise WebhookError(f"it did not answer within {TIMEOUT_S} s") from None
    except URLError as error:  # of the system or of TLS; its own text has no URL
        raise WebhookError(f"it can't be reached: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # their texts may quote the URL
        raise WebhookError(f"it did not answer as HTTP does ({type(error).__name__})") from None


def _by_apprise(services: Any, message: dict[str, Any]) -> None:
    # one at a time: if one of them took it, it is not sent again, for those that took it would have it twice
    taken = [bool(service.notify(body=message["text"], title="gridfleet")) for service in services]
    if not any(taken):
        raise WebhookError("apprise could not deliver it")
    if not all(taken):
        logger.warning("of %d services of apprise, %d did not take a message", len(taken), taken.count(False))


def _apprise(urls: str) -> Any:
    name = f"{PREFIX}NOTIFY_URLS"
    try:
        import apprise
    except ImportError:
        raise SettingsError(
            f'{name} is set, and apprise is not installed; install it (`pip install "gridfleet[notify]"`)'
        ) from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs URLs that it can't read, tokens and all
    services = apprise.Apprise()
    if not all(services.add(url) for url in urls.split()):
        raise SettingsError(f"{name} holds a URL that apprise does not know; see its list of services")
    return services
