"""Who may see the page: a token or a password, the host that the browser asked, and what the browser may load."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gridfleet.scheduler.page.templates import render

#: The loopback's names; a page of another site whose name was bound to it anew has another one.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
#: What is answered without a token: whether the page lives, how to log in, and how that looks.
OPEN = frozenset({"/healthz", "/login", "/static/icon.svg", "/static/style.css"})
#: Bytes of a form or a query.
MAX_BODY = 100_000
HEADERS = {
    # plotly sets styles of elements, and draws images for heatmaps and downloads
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer, with which browsers call the origin of our own forms "null"
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Access:
    """What a reader has to show: the token, or the cookie that this process gave for it.

    The cookie has nothing of the token, so that nobody who gets at one can guess a password by it.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._session = secrets.token_urlsafe(32)
        # cookies are of a host and not of a port: two pages of one machine have one each
        self.cookie = f"gridfleet-{hashlib.sha256(self._session.encode()).hexdigest()[:12]}"

    def is_token(self, given: str) -> bool:
        """Whether somebody has the token."""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def is_given(self, request: Request) -> bool:
        """Whether a request has the token in its header, or the cookie."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return hmac.compare_digest(request.cookies.get(self.cookie, "").encode(), self._session.encode())

    def give(self, response: Response) -> Response:
        """Give the cookie for a token that was right."""
        response.set_cookie(self.cookie, self._session, httponly=True, samesite="strict", path="/")
        return response


class Guard:
    """Stands around the application: refuses what has no token or comes from elsewhere, and adds the headers."""

    def __init__(self, app: ASGIApp, *, access: Access, names: frozenset[str]) -> None:
        self._app = app
        self._access = access
        self._names = LOOPBACK | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send, is_static=scope["path"].startswith("/static/"))
        answer = await self._answer(Request(scope, receive))
        await (answer or self._app)(scope, _bounded(receive), send)

    async def _answer(self, request: Request) -> Response | None:
        """Return what is answered without the application; None if it may be asked."""
        if refusal := self._from_elsewhere(request.headers):
            return PlainTextResponse(f"{refusal}\n", 403)
        if request.url.path == "/login":
            return await self._log_in(request)
        given = request.query_params.get("token")
        if given is not None and self._access.is_token(given):
            if request.url.path == "/metrics":
                return None
            # not redirected: a browser that comes from another site's link would not send the cookie along
            return self._access.give(_shown(request, "entered.html", 200, at=_without_token(request)))
        if request.url.path in OPEN or self._access.is_given(request):
            return None
        return _login(request, at=_without_token(request), is_wrong=given is not None)

    def _from_elsewhere(self, headers: Headers) -> str | None:
        """Say why a request is of no page of ours."""
        host = headers.get("host", "")
        if _host_name(host) not in self._names:
            return "this page is not reached by that name; GRIDFLEET_PAGE_NAMES has those beside 127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "this request comes from a page of another site"
        return None

    async def _log_in(self, request: Request) -> Response:
        if request.method != "POST":
            return _login(request, at="/", is_wrong=False)
        form = parse_qs((await _body(request)).decode(errors="replace"))
        at = _local(form.get("at", ["/"])[0])
        if not self._access.is_token(form.get("token", [""])[0].strip()):
            return _login(request, at=at, is_wrong=True)
        return self._access.give(RedirectResponse(at, 303))


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _login(request: Request, *, at: str, is_wrong: bool) -> Response:
    wants_page = request.method == "POST" or "text/html" in request.headers.get("accept", "")
    if not wants_page:
        return PlainTextResponse("the token is missing or wrong; `gridfleet page` prints it\n", 401)
    return _shown(request, "login.html", 401, at=at, is_wrong=is_wrong)


def _shown(request: Request, name: str, status: int, **values: Any) -> Response:
    return render(Request({**request.scope, "query_string": b""}), name, status=status, **values)


def _without_token(request: Request) -> str:
    rest = [(name, value) for name, value in QueryParams(request.url.query).multi_items() if name != "token"]
    return _local(request.url.path + (f"?{urlencode(rest)}" if rest else ""))


def _local(address: str) -> str:
    """Return an address of this page; the first one for one of another."""
    is_local = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_local else "/"


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return b""
    return body


def _bounded(receive: Receive) -> Receive:
    """Let nobody send more than a form."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MAX_BODY else message

    return bounded


def _with_headers(send: Send, *, is_static: bool) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if is_static:  # asked again each time, and answered with "not modified"
                headers["Cache-Control"] = "no-cache"
        await send(message)

    return sending
