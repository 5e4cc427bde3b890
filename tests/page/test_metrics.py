"""``/metrics`` says of the fleet what SQL says, in Prometheus' words."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from gridfleet.scheduler.reports import durations
from gridfleet.storage import searches
from gridfleet.storage.deletions import delete_search
from tests.page.conftest import TOKEN
from tests.stored_searches import WORKERS, claim, record, store_pima, store_search

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def read(page, parse=text_string_to_metric_families, **headers) -> dict:
    answer = page.ask("/metrics", **headers)
    assert answer.status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def test_the_metrics_are_what_the_tables_say(database_settings, database, page) -> None:
    store_pima(database_settings, database)
    waiting = store_search(database_settings, database, "waiting", [{"C": 1}, {"C": 2}, {"C": 3}])
    paused = store_search(database_settings, database, "paused", [{"C": 1}])
    searches.pause_search(database, paused)
    claim(database, waiting, 0, WORKERS[0])

    for found in (read(page), read(page, open_metrics, Accept=OPEN_METRICS)):
        trials = {key[1:]: value for key, value in found.items() if key[0] == "gridfleet_trials" and value}
        assert trials == {
            (("search", "pima"), ("state", "completed")): 4,
            (("search", "pima"), ("state", "failed")): 1,
            (("search", "waiting"), ("state", "running")): 1,
            (("search", "waiting"), ("state", "queued")): 2,
            (("search", "paused"), ("state", "queued")): 1,
        }
        assert found["gridfleet_search_best_score", ("search", "pima")] == 0.75
        assert ("gridfleet_search_best_score", ("search", "waiting")) not in found
        assert found["gridfleet_searches", ("state", "completed")] == 1
        assert found["gridfleet_searches", ("state", "paused")] == 1
        assert found[("gridfleet_queued_trials",)] == 2
        assert 0 < found[("gridfleet_oldest_queued_trial_seconds",)] < 600
        assert found[("gridfleet_workers",)] == 2
        of = ("outcome", "completed")
        assert found["gridfleet_trial_seconds_bucket", ("le", "+Inf"), of] == 4
        assert found["gridfleet_trial_seconds_bucket", ("le", "600.0"), of] == 4
        assert found["gridfleet_trial_seconds_count", of] == 4
        assert found["gridfleet_trial_seconds_bucket", ("le", "+Inf"), ("outcome", "worker_lost")] == 1


@pytest.mark.parametrize("backend", ["sqlite"])
def test_an_empty_fleet_has_metrics_and_the_token_may_stand_in_the_address(database, page) -> None:
    found = read(page)

    assert found[("gridfleet_queued_trials",)] == found[("gridfleet_oldest_queued_trial_seconds",)] == 0
    answer = page.ask(f"/metrics?token={TOKEN}", Authorization="")
    assert (answer.status, answer.headers["Set-Cookie"]) == (200, None)


def test_what_ended_long_ago_is_counted_and_not_named(database_settings, database, page) -> None:
    store_pima(database_settings, database)
    with database.write() as connection:
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE searches SET finished_at = '2020-01-01 00:00:00.000+00:00'"))
        connection.execute(text("UPDATE attempts SET ended_at = '2020-01-01 00:00:00.000+00:00'"))

    found = read(page)

    assert found["gridfleet_searches", ("state", "completed")] == 1
    assert not [key for key in found if key[0].startswith("gridfleet_trials")]
    assert found["gridfleet_trial_seconds_count", ("outcome", "completed")] == 4


@pytest.mark.parametrize("late_s", [0.0, 60.0])
def test_the_histogram_counts_each_attempt_once_and_never_falls(
    database_settings, database, page, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    """Attempts are counted in parts at first; then, at once or a minute later, those that ended since."""
    monkeypatch.setattr(durations, "TRIALS", 2)
    monkeypatch.setattr(durations, "LATE_S", late_s)
    monkeypatch.setattr(durations, "FIRST_S", 60.0)
    pima = store_pima(database_settings, database)
    search_id = store_search(database_settings, database, "more", [{"C": 1}, {"C": 2}])
    histogram = {key: value for key, value in read(page).items() if key[0].startswith("gridfleet_trial_seconds_")}
    of = ("outcome", "completed")
    assert (
        histogram["gridfleet_trial_seconds_count", of]
        == histogram["gridfleet_trial_seconds_bucket", ("le", "+Inf"), of]
        == 4
    )

    for number in range(2):
        record(database, claim(database, search_id, number, WORKERS[0]), (0.5, 0.5))
        after = read(page)
        assert after["gridfleet_trial_seconds_count", of] == 5 + number
        assert all(after[key] >= value for key, value in histogram.items())
        histogram = {key: after[key] for key in histogram}

    delete_search(database, pima)
    after = read(page)
    assert {key: after[key] for key in histogram} == histogram


@pytest.mark.parametrize("backend", ["sqlite"])
def test_while_all_attempts_are_being_counted_the_histogram_is_not_there(
    database_settings, database, page, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_pima(database_settings, database)
    may_count = threading.Event()
    count = durations._count
    monkeypatch.setattr(durations, "FIRST_S", 0.0)
    monkeypatch.setattr(durations, "_count", lambda *given: may_count.wait(60) and count(*given))

    assert not [key for key in read(page) if key[0].startswith("gridfleet_trial_seconds")]
    may_count.set()
    page.app.state.attempts._first.join()

    assert read(page)["gridfleet_trial_seconds_count", ("outcome", "completed")] == 4


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_hostile_name_is_one_label(database_settings, database, page) -> None:
    hostile = 'x",state="y"} 7\ngridfleet_workers 99\\\x1b[2J'
    store_search(database_settings, database, "hostile", [{"C": 1}])
    with database.write() as connection:
        connection.execute(text("UPDATE searches SET name = :name"), {"name": hostile})

    found = read(page)

    assert found[("gridfleet_workers",)] == 0
    shown = hostile.replace("\n", r"\n").replace("\x1b", r"\x1b")
    assert found["gridfleet_trials", ("search", shown), ("state", "queued")] == 1
