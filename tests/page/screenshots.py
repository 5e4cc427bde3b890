"""Pictures of the page's parts for its documentation: ``python -m tests.page.screenshots FOLDER``."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Browser
from sqlalchemy import update

from gridfleet.storage import migrations, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Attempt, Search, Trial
from gridfleet.storage.settings import Settings
from tests.page.browser import PHONE, chromium_started, visit
from tests.page.conftest import Page, served_page
from tests.page.searches_to_show import store_digits, store_pair

#: Pictures by name: the page, the part that is at the top of it, the scheme of colours, its height.
PICTURES = {
    "fleet": ("/fleet", "header", "light", 760),
    "searches": ("/", "header", "light", 480),
    "search": ("/searches/digits", "header", "light", 760),
    "figures": ("/searches/digits", "#figures", "light", 480),
    "parallel": ("/searches/wide", "#parallel-title", "dark", 530),
    "trials": ("/searches/digits?sort=mean_test_score&order=down", "#trials", "light", 620),
    "trial": ("/searches/digits/trials/17", "header", "dark", 760),
    "compare": ("/compare?s=wide&s=deep", "#compared", "light", 800),
    "sql": ("/sql?q=SELECT+name,+state,+n_trials+FROM+searches+ORDER+BY+name", "header", "light", 700),
}
MAX_BYTES = 150_000


def main(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with _page() as page, chromium_started() as browser:
        for name, (path, at, scheme, height) in PICTURES.items():
            size = {"width": 1200 if name != "parallel" else 620, "height": height}  # its lines are large in a PNG
            _take(browser, page, folder / f"{name}.png", path, at, color_scheme=scheme, viewport=size)
        _take(browser, page, folder / "phone.png", "/searches/digits", "header", viewport=PHONE)


def _take(browser: Browser, page: Page, file: Path, path: str, at: str, **options: object) -> None:
    with visit(browser, page.address, **options) as reader:
        reader.enter(page.token)
        reader.go(path)
        reader.draw_all()
        place = "part => window.scrollTo(0, part.tagName === 'HEADER' ? 0 : part.offsetTop - 12)"
        reader.page.locator(at).first.evaluate(place)
        reader.page.screenshot(path=file)
    size = file.stat().st_size
    print(f"{file}: {size:,} bytes{', TOO LARGE' if size > MAX_BYTES else ''}")


@contextmanager
def _page() -> Iterator[Page]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            home=Path(folder) / "home",
            database_url=f"sqlite:///{folder}/shown.db",
            broker_url="redis://127.0.0.1:1/0",
            secret_key=secrets.token_hex(32),
        )
        with closing(Database(settings)) as database:
            migrations.upgrade(database)
            store_pair(database)
            store_digits(database)
            store_digits(database, name="digits-again", n_open=36)
            for number in range(4):
                workers.register(
                    database,
                    f"host-{'ab'[number % 2]}/{101 + number}",
                    hostname=f"host-{'ab'[number % 2]}",
                    pid=101 + number,
                )
            _ended_lately(database)
        with served_page(settings) as page:
            yield page


def _ended_lately(database: Database) -> None:
    """Let attempts be of the last hour, as the timeline of a fleet has them."""
    last = datetime.now(UTC) - timedelta(minutes=1)
    with database.write() as connection:
        began_at = last - timedelta(minutes=40)
        connection.execute(
            update(Search).where(Search.name == "digits-again").values(created_at=began_at, started_at=began_at)
        )
        numbers = connection.exec_driver_sql(
            "SELECT t.id, t.number FROM trials t JOIN searches s ON s.id = t.search_id WHERE s.name = 'digits-again'"
        ).all()
        for trial_id, number in numbers:
            began = last - timedelta(seconds=20 * (100 - number))
            of_worker = f"host-{'ab'[number % 2]}/{101 + number % 4}"
            ended = began + timedelta(seconds=30 + number % 37)
            times = {"started_at": began, "finished_at": ended} if number < 84 else {"started_at": began}
            connection.execute(
                update(Trial).where(Trial.id == trial_id, Trial.attempt > 0).values(worker_id=of_worker, **times)
            )
            connection.execute(
                update(Attempt)
                .where(Attempt.trial_id == trial_id, Attempt.ended_at.is_not(None))
                .values(started_at=began, ended_at=ended, worker_id=of_worker)
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
