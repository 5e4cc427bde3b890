"""Sends one message to where the user wants it: a POST of JSON to http(s), anything else by apprise.

What comes back is not trusted: nobody is followed elsewhere, and no answer is read.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.request
from base64 import b64encode
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from gridfleet.storage.errors import SettingsError, WebhookError
from gridfleet.storage.settings import PREFIX, is_loopback

#: Seconds that each step of a POST may take.
TIMEOUT_S = 10


def check_can_send(url: str) -> None:
    """Make sure that apprise is there where a URL is its own.

    Raises
    ------
    SettingsError
        If it is not installed, or does not know such URLs.
    """
    if not _is_http(url):
        _apprise(url)


def send(url: str, message: dict[str, Any]) -> None:
    """Send a message.

    Parameters
    ----------
    url : str
        Where to, as ``Settings.webhook`` gives it.
    message : dict
        Its ``text`` is what people read.

    Raises
    ------
    WebhookError
        If it was not taken, with the reason, in which nothing of the URL is.
    """
    if _is_http(url):
        _post(url, message)
    elif not _apprise(url).notify(body=message["text"], title="gridfleet"):
        raise WebhookError("apprise could not deliver it")


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


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


def _apprise(url: str) -> Any:
    name = f"{PREFIX}WEBHOOK_URL"
    try:
        import apprise
    except ImportError:
        raise SettingsError(
            f"{name} begins with neither https:// nor http://, and apprise, which knows others, is not installed; "
            'install it (`pip install "gridfleet[notify]"`)'
        ) from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs URLs that it can't read, tokens and all
    found = apprise.Apprise()
    if not found.add(url):
        raise SettingsError(f"{name} is no URL that apprise knows; see its list of services")
    return found
