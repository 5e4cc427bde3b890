"""The page in a real browser: what arrives, what stays, what can be done, and that nothing in it goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import update

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search
from gridfleet.storage.settings import Settings
from gridfleet.storage.tags import change_tags
from tests.page.browser import PHONE, SHOWN_MS, Visit, chromium_started, needs_chromium, visit
from tests.page.conftest import Page
from tests.page.searches_to_show import store_digits, store_pair
from tests.stored_searches import WORKERS, claim, record, store_pima, store_search, switch_triggers_off

#: Each kind of page, and each kind of figure.
PAGES = (
    "/",
    "/searches/wide",
    "/searches/pima/trials/4",
    "/compare?s=wide&s=deep",
    "/fleet",
    "/sql?q=SELECT+1+AS+one",
)

pytestmark = needs_chromium
expect.set_options(timeout=SHOWN_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start one browser for all tests here."""
    with chromium_started() as browser:
        yield browser


@pytest.fixture(autouse=True)
def _looks_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridfleet.scheduler.page.events.LOOK_S", 0.1)


@pytest.fixture
def stranger(chromium: Browser, page: Page) -> Iterator[Visit]:
    """Open a window that has no token."""
    with visit(chromium, page.address) as visitor:
        yield visitor


@pytest.fixture
def reader(stranger: Visit, page: Page) -> Iterator[Visit]:
    """Open a window with the token; nothing may go wrong in it, and nobody else may be asked."""
    stranger.enter(page.token)
    yield stranger
    assert stranger.complaints == []
    assert stranger.elsewhere() == []


@pytest.fixture
def runs(database_settings: Settings, database: Database) -> Callable[[int], None]:
    """Store a search that runs; ``runs(3)`` has its next three trials recorded, as a worker does."""
    candidates = [{"units": 8 * (number + 1), "optimizer": ("adam", "sgd")[number % 2]} for number in range(60)]
    search_id = store_search(database_settings, database, "live", candidates)
    for number, worker_id in enumerate(WORKERS):
        workers.register(database, worker_id, hostname=worker_id.partition("/")[0], pid=100 + number)
    numbers = iter(range(60))

    def finish(n_trials: int) -> None:
        for _, number in zip(range(n_trials), numbers, strict=False):
            score = 0.5 + number / 200
            record(database, claim(database, search_id, number, WORKERS[number % 2]), (score, score + 0.0625))

    return finish


def test_rows_and_curves_arrive_and_what_was_scrolled_chosen_and_opened_stays(
    reader: Visit, runs: Callable[[int], None]
) -> None:
    runs(4)
    reader.go("/searches/live")
    window = reader.page
    window.evaluate("window.wasLoadedOnce = true")
    reader.draw_all()
    n_curves = reader.figure("curves").evaluate("figure => figure.data.length")
    axis = window.locator(".parallel .handle").first
    axis.focus()
    axis.press("ArrowUp")
    expect(window.get_by_role("status").filter(has_text="in all chosen ranges")).to_be_visible()
    window.locator("#value").fill("0.75")
    window.locator("#trials").scroll_into_view_if_needed()
    table = window.get_by_role("region", name="Table of trials")
    position = table.evaluate("table => table.getBoundingClientRect().top")
    expect(table.locator("tr", has_text="completed")).to_have_count(4)

    runs(3)

    expect(table.locator("tr", has_text="completed")).to_have_count(7)
    expect(window.locator("#summary .lead")).to_contain_text("7/60")
    expect(window.locator(".winner a").first).to_have_text("Trial 6")
    assert window.locator("#value").input_value() == "0.75"
    assert table.evaluate("table => table.getBoundingClientRect().top") == pytest.approx(position, abs=2)
    # each is drawn again as soon as it is looked at
    assert reader.sees("history", "figure.data[0].x.length === 7")
    assert reader.sees("parallel", "figure.querySelectorAll('.lines path').length === 7")
    assert reader.sees("curves", f"figure.data.length > {n_curves}")
    expect(window.get_by_role("status").filter(has_text="in all chosen ranges")).to_have_count(1)
    assert window.evaluate("window.wasLoadedOnce")


def test_the_table_is_sorted_filtered_and_paged_and_axes_are_brushed(reader: Visit, database: Database) -> None:
    store_digits(database)
    reader.go("/searches/digits")
    window = reader.page
    table = window.get_by_role("region", name="Table of trials")
    scores = table.locator("tbody tr td:nth-child(3)")

    table.get_by_role("link", name="accuracy").click()
    expect(table.locator("th[aria-sort=descending]")).to_have_count(1)
    found = [float(text) for text in scores.all_inner_texts()]
    assert found == sorted(found, reverse=True)
    window.get_by_role("link", name="next", exact=True).click()
    expect(window.get_by_text("page 2 of")).to_be_visible()
    assert float(scores.first.inner_text()) <= found[-1]
    window.locator("#column").select_option("params.units")
    window.locator("#is").select_option("≥")
    window.locator("#value").fill("128")
    window.locator("#trials").get_by_role("button", name="Show").click()
    expect(window.get_by_role("list", name="Conditions")).to_contain_text("units ≥ 128")
    units = table.locator("tbody tr").locator("td.number").filter(has_text="128")
    assert units.count() > 0

    assert reader.sees("parallel", "figure.querySelector('[role=slider]')")
    handle = window.get_by_role("slider", name="Range of units")
    handle.wait_for()
    box = handle.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2
    window.mouse.move(middle, box["y"] + 1)
    window.mouse.down()
    window.mouse.move(middle, box["y"] + box["height"] * 0.4, steps=4)
    window.mouse.up()
    expect(reader.figure("parallel").get_by_role("status")).to_contain_text("lines are in all chosen ranges")
    off = reader.figure("parallel").locator("path.off").count()
    assert 0 < off < reader.figure("parallel").locator(".lines path").count()
    handle.press("Escape")
    expect(reader.figure("parallel").locator("path.off")).to_have_count(0)


def test_searches_are_compared_and_queries_run_and_refused(reader: Visit, database: Database) -> None:
    store_pair(database)
    window = reader.page
    reader.go("/")
    for name in ("wide", "deep"):
        window.get_by_role("checkbox", name=f"Compare {name}").check()
    window.get_by_role("button", name="Compare the chosen").click()
    expect(window).to_have_url(re.compile("/compare.s=deep&s=wide$"))
    reader.draw_all()
    assert all(reader.drawn().values())

    reader.go("/sql")
    panel = window.locator("details").first
    panel.locator("summary").click()
    expect(panel.locator("pre")).to_be_visible()
    box = window.get_by_label("A query that reads")
    box.fill("SELECT name, n_trials FROM searches ORDER BY name")
    window.get_by_role("button", name="Run").click()
    result = window.get_by_role("region", name="Result")
    expect(result.locator("tbody tr")).to_have_text(["deep 40", "wide 40"], use_inner_text=True)
    box.fill("DELETE FROM searches")
    window.get_by_role("button", name="Run").click()
    expect(window.get_by_role("alert")).to_be_visible()
    (line,) = reader.complaints  # Chromium's own, of the answer
    assert "400" in line
    reader.complaints.clear()


def test_another_name_and_another_tag_of_a_search_that_ended_show_on_the_open_list(
    reader: Visit, database: Database, database_settings: Settings
) -> None:
    search_id = store_pima(database_settings, database)
    reader.go("/")
    row = reader.page.get_by_role("region", name="Table of searches").locator("tbody tr")
    expect(row).to_contain_text("pima")

    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(name="diabetes"))
    expect(row).to_contain_text("diabetes")
    change_tags(database, search_id, {"dataset": "pima"})
    expect(row.locator(".tag")).to_have_text("dataset=pima")


def test_on_paper_figures_are_light_and_no_wider_than_the_sheet(reader: Visit, database: Database) -> None:
    store_pair(database)
    window = reader.page
    window.emulate_media(color_scheme="dark")
    reader.go("/searches/wide")
    # all are drawn, without being looked at
    assert reader.until("[...document.querySelectorAll('[data-figure]')].every((one) => one.ariaBusy === 'false')")
    sizes = "(one) => [one.layout.width, one.layout.font.color]"
    look = f"() => [...document.querySelectorAll('.js-plotly-plot')].map({sizes})"
    window.evaluate(f"addEventListener('beforeprint', () => {{ window.onPaper = ({look})(); }})")
    before = window.evaluate(look)

    window.pdf(format="A4")

    assert {tuple(one) for one in window.evaluate("window.onPaper")} == {(660, "#1b1f24")}
    assert window.evaluate(look) == before
    assert {colour for _, colour in before} == {"rgb(230, 232, 235)"}
    window.emulate_media(media="print")
    window.evaluate("dispatchEvent(new Event('beforeprint'))")
    window.set_viewport_size({"width": 703, "height": 1000})  # a sheet of A4 without its margins
    assert reader.too_wide() == []


def test_without_the_token_nothing_is_shown(stranger: Visit, page: Page, database: Database) -> None:
    store_pair(database)
    window = stranger.page

    window.goto(f"{page.address}/searches/wide")
    expect(window.locator("body")).not_to_contain_text("adam")
    box = window.locator("input[name=token]")
    box.fill("a wrong one")
    box.press("Enter")
    expect(window.locator("body")).not_to_contain_text("Winner")
    box.fill(page.token)
    box.press("Enter")

    expect(window).to_have_url(f"{page.address}/searches/wide")
    expect(window.get_by_role("heading", name="Winner")).to_be_visible()
    assert window.evaluate("document.cookie") == ""
    assert {line.partition("(")[0].strip() for line in stranger.complaints} <= {
        "Failed to load resource: the server responded with a status of 401"
    }


def test_each_page_is_accessible_light_and_dark_and_fits_a_phone(
    reader: Visit, database: Database, database_settings: Settings
) -> None:
    store_pima(database_settings, database)
    store_pair(database)
    window = reader.page
    wrong: dict[str, list[str]] = {}
    for path in PAGES:
        reader.go(path)
        reader.draw_all()
        if path.startswith(("/searches/wide", "/compare")):
            assert [name for name, n_marks in reader.drawn().items() if not n_marks] == [], path
        back = "getComputedStyle(document.body).backgroundColor"
        for scheme in ("light", "dark"):
            window.emulate_media(color_scheme=scheme)
            assert window.evaluate(back) == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
            wrong[f"{path} {scheme}"] = reader.violations()
        window.emulate_media(color_scheme="light")
        desktop = window.viewport_size
        window.set_viewport_size(PHONE)
        wrong[f"{path} phone"] = reader.too_wide()
        window.set_viewport_size(desktop)
    found = [f"{where}: {one}" for where, those in wrong.items() for one in those]
    assert not found, "\n".join(found)
