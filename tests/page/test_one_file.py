"""`gridfleet report --html`: the page of a search in one file, which loads nothing and runs its own scripts only."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import expect

from gridfleet.scheduler.page.one_file import search_file
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.figures.searches import HOSTILE, kinds_of_searches, store
from tests.page.browser import chromium_started, needs_chromium
from tests.scheduler.conftest import fleet, gridfleet, pima  # noqa: F401 - fixtures

#: Figures of a search with Keras models, by the ends of their addresses.
FIGURES = {"history", "importances", "parallel", "slices", "heatmap", "rank", "distribution", "curves", "timeline"}


class Read(HTMLParser):
    """What a browser would find in a file: scripts, and what would be loaded or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.figures: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self._of: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._of = dict(attrs).get("data-of")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and data.strip():
            if self._of is not None:
                self.figures[self._of] = data
            else:
                self.scripts.append(data)
            self.tags.append("")


def test_the_file_has_all_that_its_page_shows(database_settings: Settings, database: Database) -> None:
    search_id = store(database_settings, database, "keras", **kinds_of_searches()["keras"])

    found = Read(search_file(database, search_id))

    assert {re.findall(r"figures/(\w+)\.json", address)[0] for address in found.figures} == FIGURES
    nothing = [address for address, figure in found.figures.items() if "nothing" in json.loads(figure)]
    assert nothing == ["/searches/keras/figures/timeline.json"]
    assert {value for _, name, value in found.attributes if name == "data-figure"} == set(found.figures)
    assert not [
        one for one in found.attributes if one[1] in ("src", "srcset", "action") and one[2][:1] not in ("", "#")
    ]
    assert "link" not in found.tags
    (policy,) = (value for tag, name, value in found.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for script in found.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(found.scripts) >= 4


@pytest.mark.parametrize("kind", ["hostile", "failed", "queued", "no-params", "odd-values", "negative"])
def test_each_kind_of_search_becomes_a_file(database_settings: Settings, database: Database, kind: str) -> None:
    search_id = store(database_settings, database, kind, **kinds_of_searches()[kind])

    text = search_file(database, search_id)
    found = Read(text)

    assert len(found.scripts) >= 4
    assert "img" not in found.tags
    assert not [
        one for one in found.attributes if one[1].startswith("on") or (one[1] in ("href", "src") and ":" in one[2])
    ]
    for figure in found.figures.values():
        assert "<" not in figure
        json.loads(figure)
    if kind == "hostile":
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert not [one for one in HOSTILE if "\x1b" in one and one in text]


def test_the_command_writes_a_new_file_and_no_other(
    gridfleet: Callable[..., tuple[int, str, str]],  # noqa: F811
    pima: int,  # noqa: F811
    tmp_path: Path,
) -> None:
    file = tmp_path / "pima.html"

    assert gridfleet("report", "pima", "--html", str(file)) == (
        0,
        "",
        f"gridfleet: {file} has the page of the search; a browser shows it, without a network too\n",
    )

    assert file.read_text().startswith("<!doctype html>")
    file.write_text("mine")
    assert gridfleet("report", "pima", "--html", str(file)) == (
        1,
        "",
        f"gridfleet: {file} is there already; name another file, or remove it\n",
    )
    assert file.read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("pima")] == ["pima.html"]
    assert gridfleet("report", "pima", "--html", str(tmp_path / "b"), "--json")[0] == 2


@needs_chromium
def test_a_browser_draws_the_file_and_asks_nobody(
    database_settings: Settings, database: Database, tmp_path: Path
) -> None:
    search_id = store(database_settings, database, "hostile", **kinds_of_searches()["hostile"])
    file = tmp_path / "hostile.html"
    file.write_text(search_file(database, search_id))
    asked: list[str] = []
    said: list[str] = []

    with chromium_started() as browser:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(file.as_uri())
        for place in range(page.locator("[data-figure]").count()):
            figure = page.locator("[data-figure]").nth(place)
            figure.scroll_into_view_if_needed()
            expect(figure).not_to_be_empty(timeout=60_000)
        assert page.locator(".main-svg").count() > 0
        assert not page.locator("form.filter:visible").count()

    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert said == []
