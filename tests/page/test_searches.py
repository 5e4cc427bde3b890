"""The pages of searches, trials, comparisons and the fleet: that they are there, and say the right thing."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from urllib.parse import quote

import pytest

from gridfleet.scheduler.page import sparkline
from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.figures.searches import kinds_of_searches, store
from tests.page.conftest import Page
from tests.shown_searches import ShownTrial, store_shown
from tests.stored_searches import TRACEBACK, store_pima

CURVES = {"loss": [0.75, 0.5, 0.25], "val_loss": [0.875, 0.75, 0.5]}
TIMES = {"build_time": 0.5, "train_time": 2.0, "fit_mode": "keras", "fit_fallback_reason": "a callback of its own"}


def text_of(page: str) -> str:
    """Return what a page says, without its elements."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def scored(n: int, **params: object) -> list[ShownTrial]:
    """Return trials each better than the one before."""
    return [ShownTrial({"units": 2**x, **params}, scores=(x / 16 + 0.25, x / 16 + 0.5)) for x in range(n)]


KINDS: dict[str, tuple[Sequence[ShownTrial], dict[str, object], Sequence[str]]] = {
    "queued": (
        [ShownTrial({"a": 1})] * 3,
        {"is_final": False, "state": "queued"},
        ["0/3 scored", "No trial is scored yet"],
    ),
    "running": (
        [*scored(3), ShownTrial({"units": 3}, state="running"), ShownTrial({"units": 3})],
        {"is_final": False},
        ["3/5 scored, 1 running, 1 queued", "0.5000 ± 0.1250"],
    ),
    "failed": (
        [ShownTrial({"a": x}, error=TRACEBACK) for x in range(3)],
        {},
        ["No trial was scored", "3 × ValueError: Could not interpret optimizer identifier: adan", "trials 0-2"],
    ),
    "cancelled": (
        [*scored(2), ShownTrial({"units": 3}, state="cancelled")],
        {"state": "cancelled"},
        ["cancelled", "2/3 scored, 1 cancelled"],
    ),
    "one trial": (scored(1), {}, ["It is the only trial with a score."]),
    "one hyperparameter": (scored(4), {}, ["It leads the second, trial 2 , by 0.06250", "units"]),
    "forty hyperparameters": (
        [ShownTrial({f"layer_{k}__units": k * x for k in range(40)}, scores=(x / 8, 0.5)) for x in range(3)],
        {},
        ["and 32 more", "layer_39__units"],
    ),
    "several metrics": (
        [ShownTrial({"units": x}, scores=(x / 4, 0.5), metrics=("recall", "f1")) for x in range(3)],
        {"refit_metric": "recall", "scoring": "['f1', 'recall']"},
        ["recall 0.5000 ± 0.0000", "f1 on each split", "recall on each split"],
    ),
    "no Keras": (
        [ShownTrial({"C": 1.0}, scores=(0.5, 0.75))],
        {"estimator": "LogisticRegression()"},
        ["No trial has said yet how long it took", "LogisticRegression()"],
    ),
    "minimising": (
        [ShownTrial({"C": x}, scores=(-x / 4, -x / 2)) for x in (1, 2)],
        {"scoring": "'neg_log_loss'"},
        ["neg_log_loss (the nearer to 0, the better)", "-0.3750 ± 0.1250"],
    ),
    "no hyperparameters": ([ShownTrial({}, scores=(0.5, 0.75))], {}, ["no hyperparameters"]),
    "Keras": (
        [ShownTrial({"units": x}, scores=(x / 4, 0.5), curves=CURVES, values=TIMES) for x in (1, 2)],
        {},
        ["train 4 s 80 %", "2 trials keras: a callback of its own"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_searches_of_every_kind_look_right(database: Database, page: Page, kind: str) -> None:
    trials, columns, sentences = KINDS[kind]
    store_shown(database, kind, trials, **columns)

    found = page.get(f"/searches/{quote(kind)}")

    shown = text_of(found)
    for sentence in sentences:
        assert sentence in shown
    assert kind in text_of(page.get("/"))
    for number in (0, len(trials) - 1):
        assert f"Trial {number}" in text_of(page.get(f"/searches/{quote(kind)}/trials/{number}"))
    # a search that has ended asks nothing any more
    is_final = columns.get("is_final", True)
    assert ("data-live" in found) != is_final
    for address in sorted(set(re.findall(r'data-figure="([^"]+)"', found))):
        drawn = json.loads(page.get(html.unescape(address)))
        assert "data" in drawn or "nothing" in drawn, address


def test_a_page_has_no_script_style_or_event_within_and_each_part_for_itself(database: Database, page: Page) -> None:
    store_shown(database, "parts", scored(3))
    for path in ("/searches/parts", "/searches/parts/trials/1", "/compare?s=parts", "/fleet", "/"):
        found = page.get(path)
        assert not re.search(r"<script(?![^>]* src=)|\son[a-z]+=|<style|javascript:", found)
        for part in re.findall(r'<section id="([^"]+)"', found):
            alone = page.get(f"{path}{'&' if '?' in path else '?'}part={part}").strip()
            assert alone.startswith(f'<section id="{part}"')


@pytest.mark.parametrize(
    "name",
    ["a/b", "a/trials/3", "50 % off?", "<b>&amp;", "ä ö", "q\"uote'", "a/figures/history.json", "semi;colon#hash", "+"],
)
def test_a_search_of_any_name_has_its_pages(database: Database, page: Page, name: str) -> None:
    search_id = store_shown(database, name, scored(2))
    overview = page.get("/")
    address = f"/searches/{quote(name, safe='')}"
    assert f'href="{address}"' in overview
    assert f"<h1>{html.escape(name).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}</h1>" in page.get(address)
    assert "Trial 1" in page.get(f"{address}/trials/1")
    assert json.loads(page.get(f"{address}/figures/history.json"))["data"]
    assert text_of(page.get(f"/searches/{search_id}")) == text_of(page.get(address))


def test_an_unknown_search_or_trial_is_404_with_the_nearest(database: Database, page: Page) -> None:
    store_shown(database, "pima", scored(2))
    for path, sentence in (
        ("/searches/pina", "did you mean 'pima'?"),
        ("/searches/pima/trials/7", "its trials are 0 to 1"),
        (f"/searches/pima/trials/{'9' * 30}", "its trials are 0 to 1"),
        ("/searches/pima/trials/x", "its trials are 0 to 1"),
        ("/searches/99", "no search has the name '99'"),
        ("/searches/pima/figures/none.json", "there are history"),
        ("/compare?s=pima&s=gone", "no search has the name 'gone'"),
    ):
        answer = page.ask(path)
        assert (answer.status, sentence in html.unescape(answer.text)) == (404, True), answer.text


def test_the_list_is_filtered_sorted_and_cut_in_sql(database: Database, page: Page) -> None:
    store_shown(database, "high", scored(4))
    store_shown(database, "low", scored(2), submitted_by="grace@host-b")
    store_shown(database, "waits", [ShownTrial({})], is_final=False, state="queued")

    def shown(query: str) -> list[str]:
        return re.findall(r'<th scope="row"[^>]*><a href="/searches/([^"]+)"', page.get(f"/?{query}"))

    assert shown("") == ["waits", "low", "high"]
    assert shown("sort=oldest") == ["high", "low", "waits"]
    assert shown("sort=best") == ["high", "low", "waits"]
    assert shown("by=grace") == ["low"]
    assert shown("name=IG") == ["high"]
    assert shown("state=completed") == ["low", "high"]
    assert shown("state=nonsense&sort=nonsense&page=x") == ["waits", "low", "high"]
    assert "There is no such search" in page.get("/?name=none")
    assert shown("page=2") == []


def test_the_table_of_trials_is_sorted_filtered_and_paged_by_its_links(database: Database, page: Page) -> None:
    store_shown(
        database, "many", [ShownTrial({"x": x % 7, "kind": "ab"[x % 2]}, scores=(x / 128, 0.5)) for x in range(60)]
    )

    def shown(found: str) -> list[int]:
        return [
            int(number)
            for number in re.findall(
                r'<th scope="row" class="number"><a href="/searches/many/trials/(\d+)"', part(found)
            )
        ]

    def part(found: str) -> str:
        return found[found.index('id="trials"') :]

    first = page.get("/searches/many")
    assert shown(first) == list(range(50))
    following = html.unescape(re.findall(r'rel="next" href="([^"#]+)', first)[0])
    assert shown(page.get(f"/searches/many{following}")) == list(range(50, 60))
    best = html.unescape(
        next(link for link in re.findall(r'href="([^"#]+)#trials"', first) if "mean_test_score" in link)
    )
    assert shown(page.get(f"/searches/many{best}"))[:3] == [59, 58, 57]
    chosen = page.get("/searches/many?column=params.x&is=%E2%89%A5&value=6&column=params.kind&is==&value=a&order=down")
    assert shown(chosen) == [48, 34, 20, 6]
    assert "x ≥ 6" in text_of(chosen)
    fewer = html.unescape(re.findall(r'href="([^"#]+)#trials" aria-label="Without x', chosen)[0])
    assert len(shown(page.get(f"/searches/many{fewer}"))) == 30
    assert page.ask("/searches/many?sort=price").status == 400


def test_a_trial_shows_its_attempts_its_traceback_and_the_lines_that_build_it(
    database_settings: object, database: Database, page: Page
) -> None:
    store_pima(database_settings, database)
    failed, tried_twice = text_of(page.get("/searches/pima/trials/4")), text_of(page.get("/searches/pima/trials/1"))
    assert "Traceback (most recent call last):" in failed
    assert "estimator.set_params(optimizer='adan', batch_size=10)" in failed
    assert "worker_lost" in tried_twice
    assert "signal 9 (SIGKILL)" in tried_twice
    assert "0.7500 ± 0.0156" in tried_twice
    assert "the best of its search" in tried_twice


def test_pruned_trials_are_counted_and_each_says_where_and_against_how_many(
    database_settings: Settings, database: Database, page: Page
) -> None:
    store(database_settings, database, "raced", **kinds_of_searches()["pruned"])

    of_search, of_trial = page.get("/searches/raced"), page.get("/searches/raced/trials/3")

    assert "5/8 scored, 3 pruned" in of_search
    assert "<dt>Pruned</dt><dd>1 trial after 3 epochs of split 0</dd>" in of_search
    assert "3 pruned" in page.get("/")
    assert "Pruned after 3 epochs of split 0, with 0.2000, place 4 of 6." in of_trial
    assert '<td class="number">4</td><td class="number">6</td><td>pruned</td>' in of_trial
    assert "data-figure" in of_trial


def test_a_comparison_shows_what_differs_and_nothing_of_one_search(database: Database, page: Page) -> None:
    store_shown(database, "one", scored(3))
    store_shown(database, "two", scored(2), submitted_by="grace@host-b", scoring="'accuracy'")
    both = page.get("/compare?s=one&s=two")
    assert "submitted_by ada@host-a grace@host-b" in text_of(both)
    assert "strategy" not in text_of(both)
    for kind in ("trials", "time", "distribution"):
        assert f"/compare/figures/{kind}.json?" in both
        assert json.loads(page.get(f"/compare/figures/{kind}.json?s=one&s=two"))["data"]
    assert "Choose two to 5 searches" in page.get("/compare")
    assert 'id="compared"' not in page.get("/compare?s=one")


def test_the_fleet_shows_its_workers_and_what_doctor_would_warn_of(database: Database, page: Page) -> None:
    store_shown(database, "waits", [ShownTrial({})] * 3, is_final=False)
    without = text_of(page.get("/fleet"))
    assert "No worker is there." in without
    workers.register(database, "host-a/101", hostname="host-a", pid=101, n_cores=8, memory_limit_mb=4096)
    found = text_of(page.get("/fleet"))
    assert "host-a host-a 8 cores, 4,096 MB a process" in found
    assert "101 idle" in found
    assert "scheduler none has run yet" in found
    assert "start one with <code>gridfleet scheduler</code></p>" in page.get("/fleet")
    assert "nothing" in json.loads(page.get("/fleet/figures/timeline.json"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0], "3.0,14.0 117.0,14.0"), ([0.0, 0.0, 1.0], "3.0,25.0 117.0,25.0 117.0,3.0"), ([-1e308, 1e308], None)],
)
def test_a_sparkline_goes_level_and_then_up(values: list[float], expected: str | None) -> None:
    drawn: Callable[[list[float]], str] = sparkline.points
    assert "nan" not in drawn(values)
    assert "inf" not in drawn(values)
    if expected is not None:
        assert drawn(values) == expected
