"""The page as its readers meet it first: the frame, the parts, the scripts."""

from __future__ import annotations

from pathlib import Path

import plotly
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gridfleet.storage.database.connection import Database
from tests.stored_searches import store_pima


def test_the_list_of_searches_is_shown_whole_and_by_its_part(database_settings, database, page) -> None:
    store_pima(database_settings, database)

    whole, part = page.get("/"), page.get("/?part=list")

    assert "<title>Searches" in whole
    assert part.strip().startswith('<section id="list"')
    assert part.strip().endswith("</section>")
    assert part.strip() in whole
    for shown in (">pima<", "0.7500", 'class="state completed"'):
        assert shown in part
    assert page.ask("/?part=none").status == 404


def test_plotly_comes_out_of_its_own_package(database, page) -> None:
    script = page.ask("/static/plotly.min.js")

    assert script.body == (Path(plotly.__file__).parent / "package_data/plotly.min.js").read_bytes()
    assert script.headers["Content-Type"].startswith("text/javascript")


def test_the_connections_of_the_page_write_nothing_whatever_the_role(database_settings, database) -> None:
    readers = Database(database_settings, read_only=True)

    for begin in (readers.read, readers.write):
        with pytest.raises(DBAPIError, match=r"read-?only"), begin() as connection:
            connection.execute(text("DELETE FROM workers"))
    readers.close()
