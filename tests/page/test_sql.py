"""``/sql`` runs what reads, shows it within bounds, and lets nobody take all threads and connections."""

from __future__ import annotations

import csv
import io
import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from urllib.parse import quote

import pytest

from gridfleet.scheduler.page.documented import QUERIES, queries_about
from tests.docs.test_sql_docs import EXAMPLES
from tests.faults.support import wait_for
from tests.stored_searches import prune_two, store_pima

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"


def cells(shown: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def test_the_documented_queries_are_those_of_the_docs_and_run(database_settings, database, page) -> None:
    assert list(QUERIES) == [(title, query) for title, query, _ in EXAMPLES]
    prune_two(database, store_pima(database_settings, database))

    links = re.findall(r'<a href="(/sql\?q=[^"]*)"', page.get("/sql"))

    assert len(links) == len(QUERIES)
    for link in links:
        assert len(cells(page.get(unescape(link)))) > 1, link


def test_a_query_is_about_a_search_whatever_its_name() -> None:
    for title, query in queries_about("""it's "so" %s"""):
        assert "pima" not in query, title
    assert "WHERE search = 'it''s \"so\" %s'" in dict(queries_about("""it's "so" %s"""))["The leaderboard of a search"]


def test_the_rows_are_shown_and_given_as_csv(database_settings, database, page) -> None:
    store_pima(database_settings, database)
    query = quote("SELECT number, mean_test_score, params, '=1+1' AS f, NULL AS n FROM trials ORDER BY number")

    shown, given = page.get(f"/sql?q={query}"), page.ask(f"/sql?q={query}&as=csv")

    header, first, *_ = cells(shown)
    assert header == ["number", "mean_test_score", "params", "f", "n"]
    assert first == ["0", "0.703125", '{"optimizer": "adam", "batch_size": 10}', "=1+1", ""]
    assert "5 rows" in shown
    rows = list(csv.reader(io.StringIO(given.text)))
    assert rows[1][:2] + rows[1][3:] == ["0", "0.703125", "'=1+1", ""]
    assert given.headers["Content-Disposition"].startswith("attachment")
    assert given.headers["Content-Type"] == "text/csv; charset=utf-8"


@pytest.mark.parametrize("text", ["SELEC 1", "", "SELECT * FROM nowhere", "SELECT 1; SELECT 2"])
def test_what_can_not_be_run_is_said_beside_the_query(database, page, text: str) -> None:
    answer = page.ask(f"/sql?q={quote(text)}")

    assert answer.status == (400 if text else 200)
    assert ('role="alert"' in answer.text) == bool(text)
    assert text in unescape(answer.text)


def test_what_is_too_large_is_cut(database, page, monkeypatch: pytest.MonkeyPatch) -> None:
    many = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    wide = "SELECT '" + "x" * 3_000 + "' AS a FROM (" + many + " LIMIT 900) AS b"

    for query, n in ((many, 1_000), (wide, 250)):
        answer = page.ask(f"/sql?q={quote(query)}")
        assert "and there are more" in answer.text
        assert n - 10 < len(cells(answer.text)) < n + 10
        assert len(answer.body) < 1_000_000
    monkeypatch.setattr("gridfleet.scheduler.page.sql.MAX_CSV", 10_000)
    assert page.ask(f"/sql?q={quote(many)}&as=csv").status == 413


@pytest.mark.parametrize("backend", ["sqlite"])
def test_one_value_does_not_take_the_memory(database, page) -> None:
    answer = page.ask(f"/sql?q={quote('SELECT hex(zeroblob(500000000))')}")

    assert answer.status == 400
    assert "too big" in answer.text


def test_long_queries_leave_room_for_the_pages_and_end(database, page, monkeypatch: pytest.MonkeyPatch) -> None:
    from gridfleet.scheduler.page import sql

    monkeypatch.setattr("gridfleet.scheduler.reports.query.TIMEOUT_S", 3)
    with ThreadPoolExecutor(8) as pool:
        long = [pool.submit(page.ask, f"/sql?q={quote(ENDLESS)}") for _ in range(2)]
        wait_for(lambda: sql._free._value == 0, "two queries")
        more = [pool.submit(page.ask, f"/sql?q={quote(ENDLESS)}") for _ in range(6)]
        for answer in (future.result() for future in more):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        assert page.get("/")
        assert not any(future.done() for future in long)
        for answer in (future.result() for future in long):
            assert answer.status == 400
            assert "took longer than 3 s" in answer.text
    assert page.get("/sql?q=SELECT+1")
