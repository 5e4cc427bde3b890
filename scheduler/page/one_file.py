"""The page of a search as one file that works without a server and without a network: style, scripts, figures in it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import plotly
from markupsafe import Markup
from starlette.datastructures import QueryParams

from gridfleet.scheduler.page import drawings, searches, templates
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.storage.database.connection import Database
from gridfleet.storage.versions import installed_versions

STATIC = Path(__file__).parent / "static"
#: Plotly's own script, which its package has.
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
#: Where a link of the page leads within the file: other pages are not in it.
NOWHERE = "#main"
#: What `figures.js` asks the server for lies in the file: the figures by their addresses.
FETCH = """
"use strict";
window.fetch = async (address) => {
  const found = document.querySelector(`[data-of="${CSS.escape(address)}"]`);
  return new Response(found ? found.textContent : "{}", { status: found ? 200 : 404 });
};
"""


def search_file(database: Database, name: str | int) -> str:
    """Return the page of a search as it is now, as the text of an HTML file.

    Nothing in it is loaded from elsewhere, and only its own scripts run: its policy has their digests.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        The search's name, or its id.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    has_scores = trial_reader.best_trial(database, search.id) is not None
    asked = QueryParams({"sort": "mean_test_score", "order": "down"} if has_scores else {})
    values = searches.values_of(database, search, asked)
    values |= {
        "live": "",
        "path": "",
        "query": asked,
        "address": lambda **_: "",
        "sort_address": lambda _: "",
        "trial_url": lambda *_: NOWHERE,
        "search_url": lambda *_: NOWHERE,
    }
    scripts = _scripts()
    shown = templates.rendered(
        "search_file.html",
        **values,
        policy=_policy(scripts),
        style=Markup((STATIC / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of ours
        release=installed_versions()["gridfleet_version"],
        written_at=datetime.now(UTC),
    )
    # the scripts come last: what they do, they do to what stands before them
    body, end = shown.rsplit("</body>", 1)
    embedded = [_figure(database, search, address) for address in _addresses(body)]
    return "".join([body, *embedded, *(f"<script>{script}</script>\n" for script in scripts), "</body>", end])


def _scripts() -> list[str]:
    """Return the scripts of the search's page, in their order, without that which asks the server for changes."""
    sources = [(templates.FOLDER / name).read_text(encoding="utf-8") for name in ("base.html", "search.html")]
    named = re.findall(r'<script src="/static/([^"]+)"', "".join(sources))
    files = [PLOTLY if name == PLOTLY.name else STATIC / name for name in named if name != "live.js"]
    return [FETCH, *(file.read_text(encoding="utf-8") for file in files)]


def _policy(scripts: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # plotly sets styles of elements, and draws into images
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _addresses(shown: str) -> list[str]:
    """Return the addresses of the figures that a page shows."""
    return list(dict.fromkeys(map(html.unescape, re.findall(r'data-figure="([^"]*)"', shown))))


def _figure(database: Database, search: reader.SearchSummary, address: str) -> str:
    parts = urlsplit(address)
    drawn = drawings.of_search(database, search.id, parts.path.rpartition("/")[2], dict(parse_qsl(parts.query)))
    # JSON in an element of HTML: no text in it may end the element
    safe = drawn.replace("<", "\\u003c")
    return f'<script type="application/json" data-of="{html.escape(address)}">{safe}</script>\n'
