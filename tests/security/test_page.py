"""The page in the browser: who has no token sees nothing, other sites get nothing, and nobody writes through it."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text, update

from gridfleet.scheduler.reports import changes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from tests.page.conftest import TOKEN, Page, page, serve_page
from tests.security.conftest import RoledDatabase
from tests.security.test_names_and_values import ODD
from tests.stored_searches import WORKERS, claim, record, store_pima, store_search, switch_triggers_off

__all__ = ["page", "serve_page"]

#: One address of each kind.
ADDRESSES = (
    "/",
    "/searches/pima",
    "/searches/pima/trials/0",
    "/searches/pima/figures/history.json",
    "/compare",
    "/fleet",
    "/sql",
    "/metrics",
    "/events",
    "/static/live.js",
    "/static/plotly.min.js",
    "/nowhere",
)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_without_the_token_nothing_is_shown(page: Page) -> None:
    wrong = ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x")
    for address, authorization in itertools.product(ADDRESSES, wrong):
        answer = page.ask(address, Authorization=authorization)

        assert answer.status == 401, (address, authorization)
        assert "pima" not in answer.text.replace(address, "")
        assert answer.headers["Set-Cookie"] is None
    for address in ADDRESSES:
        assert page.ask(f"{address}?token=wrong", Authorization="").status == 401
        assert page.ask(address, Authorization="", Cookie="gridfleet=; gridfleet-x=y").status == 401


@pytest.mark.parametrize("backend", ["sqlite"])
def test_what_is_open_says_nothing_of_the_fleet(database_settings: Settings, database: Database, page: Page) -> None:
    store_pima(database_settings, database)

    assert page.ask("/healthz", Authorization="").text == "ok\n"
    for address in ("/login", "/static/style.css"):
        assert "pima" not in page.ask(address, Authorization="").text


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_token_in_the_address_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(page: Page) -> None:
    entered = page.ask(f"/?state=running&token={TOKEN}", Authorization="")

    assert entered.status == 200
    assert 'content="0; url=/?state=running"' in entered.text
    cookie, *attributes = (part.strip() for part in entered.headers["Set-Cookie"].split(";"))
    assert {"HttpOnly", "SameSite=strict", "Path=/"} == set(attributes)
    assert TOKEN not in entered.headers["Set-Cookie"] + entered.text
    assert page.ask("/", Authorization="", Cookie=cookie).status == 200
    name = cookie.partition("=")[0]
    assert page.ask("/", Authorization="", Cookie=f"{name}={TOKEN}").status == 401


@pytest.mark.parametrize("backend", ["sqlite"])
def test_one_logs_in_with_the_token_and_is_led_to_addresses_of_the_page_only(page: Page) -> None:
    def log_in(token: str, at: str) -> Any:
        sent = {"Authorization": "", "Origin": page.address, "Content_Type": "application/x-www-form-urlencoded"}
        return page.ask("/login", method="POST", body=f"token={token}&at={at}", **sent)

    assert log_in("wrong", "/").status == 401
    for at, led in (
        ("/fleet", "/fleet"),
        ("//elsewhere.example/", "/"),
        ("/%5Celsewhere.example", "/"),
        ("https://elsewhere.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/x%0D%0ASet-Cookie:a=b", "/"),
    ):
        entered = log_in(TOKEN, at)
        assert (entered.status, entered.headers["Location"]) == (303, led)
        assert "HttpOnly" in entered.headers["Set-Cookie"]
        assert "elsewhere" not in log_in("wrong", at).text.replace("&#34;", "")


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_name_that_was_bound_to_this_machine_anew_reaches_nothing(
    page: Page, serve_page: Callable[..., Page], database_settings: Settings
) -> None:
    for host in (
        "attacker.example",
        f"attacker.example:{page.port}",
        "127.0.0.1.attacker.example",
        "",
        "[",
        "10.0.0.1",
    ):
        assert page.ask("/", Host=host or " ").status in (400, 403)
        assert page.ask("/healthz", Host=host or " ").status in (400, 403)
    for host in (f"127.0.0.1:{page.port}", "localhost", "LOCALHOST:80", "[::1]:99"):
        assert page.ask("/", Host=host).status == 200

    named = serve_page(database_settings, names=["grid.example"])
    assert named.ask("/", Host="grid.example").status == 200
    assert named.ask("/", Host="x.grid.example").status == 403


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_page_of_another_site_reaches_nothing(page: Page) -> None:
    for origin in ("http://attacker.example", "null", f"http://127.0.0.1:{page.port + 1}", "http://127.0.0.1"):
        for address, method in (("/", "GET"), ("/events", "GET"), ("/login", "POST"), ("/sql", "POST")):
            assert page.ask(address, method=method, body="" if method == "POST" else None, Origin=origin).status == 403
    assert page.ask("/", Origin=page.address).status == 200
    assert not [name for name in page.ask("/", Origin=page.address).headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_browser_is_told_to_run_our_scripts_only_and_to_show_the_page_in_no_frame(page: Page) -> None:
    addresses = [*ADDRESSES[:8], "/login", "/healthz", "/static/live.js"]
    for address, authorization in itertools.product(addresses, ("", f"Bearer {TOKEN}")):
        headers = page.ask(address, Authorization=authorization).headers

        policy = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert policy["base-uri"] == "'none'"
        assert policy["style-src"] == "'self' 'unsafe-inline'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Server"] is None


@pytest.mark.parametrize("backend", ["sqlite"])
def test_no_path_leads_out_of_the_static_files(page: Page) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2fsecurity.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..%5capp.py",
        "/static/live.js%00.css",
        "/static/",
        "/static",
        "/static/../../../pyproject.toml",
    ):
        answer = page.ask(path)
        assert answer.status in (404, 405), path
        assert "def " not in answer.text


@pytest.mark.parametrize("backend", ["sqlite"])
def test_no_method_changes_anything(database_settings: Settings, database: Database, page: Page) -> None:
    store_pima(database_settings, database)
    for method, address in itertools.product(("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"), ADDRESSES):
        assert page.ask(address, method=method, body="q=SELECT+1").status in (404, 405), (method, address)


def test_no_query_changes_anything(database_settings: Settings, database: Database, page: Page) -> None:
    store_pima(database_settings, database)
    with database.read() as connection:
        before = connection.execute(text("SELECT * FROM trials")).all()
    for query in (
        "DELETE FROM trials",
        "SELECT 1; DELETE FROM trials",
        "COMMIT; DELETE FROM trials",
        "WITH gone AS (DELETE FROM trials RETURNING *) SELECT * FROM gone",
        "SET TRANSACTION READ WRITE",
        "COPY (SELECT 1) TO PROGRAM 'touch /tmp/gridfleet-stolen'",
        "SELECT lo_from_bytea(0, 'x')",
        "PRAGMA query_only = OFF",
        "ATTACH DATABASE '/tmp/gridfleet-stolen.db' AS stolen",
        "SELECT load_extension('x')",
        "SELECT nextval('trials_id_seq')",
        "DROP VIEW leaderboard",
    ):
        for way in ("", "&as=csv"):
            assert page.ask(f"/sql?q={quote(query)}{way}").status == 400, query
    with database.read() as connection:
        assert connection.execute(text("SELECT * FROM trials")).all() == before


def test_what_a_query_returns_is_text(database: Database, page: Page) -> None:
    query = "SELECT '<img src=x onerror=alert(1)>' AS \"<script>\""
    shown = page.get(f"/sql?q={quote(query)}")

    assert "<img" not in shown
    assert "<script>" not in shown
    assert "&lt;img" in shown


def test_who_reads_slowly_holds_no_thread_and_no_connection_of_the_database(
    database_settings: Settings, database: Database, page: Page
) -> None:
    store_search(database_settings, database, "wide", [{"value": "x" * 5_000, "n": n} for n in range(100)])
    query = quote("SELECT a.params FROM trials AS a, trials AS b")
    with contextlib.ExitStack() as stack:
        for _ in range(12):  # three times the threads and connections that there are
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(60)
            slow.connect(("127.0.0.1", page.port))
            slow.sendall(
                f"GET /sql?q={query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            assert slow.recv(12) == b"HTTP/1.1 200"
        assert "wide" in page.get("/")
        assert page.database.engine.pool.checkedout() == 0


def test_hostile_names_and_values_are_text_on_every_page(
    database_settings: Settings, database: Database, page: Page
) -> None:
    odd = [value for name, value in ODD.items() if name not in ("a NUL", "half a character")]
    for number, hostile in enumerate(odd):
        candidates = [{f"a__{hostile}": hostile}, {"b": 1}]
        search_id = store_search(database_settings, database, f"hostile{number}", candidates)
        facts = ("submitted_by", "estimator", "error", "scoring", "splitter", "refit_metric", "random_state")
        with database.write() as connection:  # as a superuser
            switch_triggers_off(connection)
            of_search = update(Search).where(Search.id == search_id)
            connection.execute(of_search.values(dict.fromkeys(facts, hostile)))
        record(database, claim(database, search_id, 0, WORKERS[0]), (0.5, 0.25))
        record(database, claim(database, search_id, 1, WORKERS[1]), None)
        with database.write() as connection:
            switch_triggers_off(connection)
            failed = update(Trial).where(Trial.search_id == search_id, Trial.number == 1)
            connection.execute(failed.values(error_type=hostile, error=hostile, fit_fallback_reason=hostile))
    names = [f"hostile{number}" for number in range(len(odd))]
    of_searches = [address for name in names for address in (f"/searches/{name}", f"/searches/{name}/trials/1")]
    compared = [f"/compare?s={one}&s={other}" for one, other in itertools.pairwise(names)][::5]
    for address in ("/", "/fleet", "/sql", "/metrics", *of_searches, *compared):
        shown = page.ask(address).text
        for forbidden in ("<img src=x", "<script>alert", "</td><script", "\x1b", "\u202e"):
            assert forbidden not in shown, address
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)", shown), address


def test_what_is_asked_for_is_shown_as_text(page: Page) -> None:
    for address in ("/%3Cscript%3Ealert(1)%3C/script%3E", "/searches/%3Cimg%20src=x%3E", "/?part=%3Cscript%3E"):
        assert "<img" not in page.ask(address).text
        assert "<script>" not in page.ask(address).text
    assert "<script>" not in page.ask("/x?a=<script>", Authorization="").text


def test_the_role_of_readers_sees_every_page(
    roled_database: RoledDatabase, ended: int, serve_page: Callable[..., Page], no_variables: None
) -> None:
    reporter = Settings(
        database_url=roled_database.url("reporter"), database_password=roled_database.passwords["database_reporter"]
    )
    page = serve_page(reporter)

    addresses = ("/", "/searches/ended", "/searches/ended/trials/0", "/compare?s=ended&s=waiting", "/fleet", "/sql")
    for address in (*addresses, "/metrics", f"/sql?q={quote('SELECT * FROM leaderboard')}"):
        assert page.ask(address).status in (200, 404), address
    assert "ended" in page.get("/")
    assert "permission denied" in page.ask(f"/sql?q={quote('SELECT * FROM payload_chunks')}").text
    assert changes.look(page.database).seen


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_form_that_never_ends_takes_no_memory(page: Page) -> None:
    body = "token=" + "x" * 1_000_000
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sent = {"Authorization": "", "Origin": page.address}
        assert page.ask("/login", method="POST", body=body, **sent).status in (400, 401, 413)
    assert page.get("/")
