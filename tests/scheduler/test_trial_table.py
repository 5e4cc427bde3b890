"""The table of trials, chosen and sorted in SQL, and what pages add up of a search."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update

from gridfleet.scheduler.page.fleet import findings
from gridfleet.scheduler.reports import fair_sample, trial_reader, trial_table
from gridfleet.scheduler.reports.best_so_far import best_so_far
from gridfleet.scheduler.reports.fair_sample import drawn
from gridfleet.scheduler.reports.fleet_activity import fleet_activity
from gridfleet.scheduler.reports.fold_scores import fold_scores, lead
from gridfleet.scheduler.reports.tables import print_report
from gridfleet.scheduler.reports.trial_table import Condition, Order, TrialChoice, trial_page
from gridfleet.scheduler.reports.where_time_went import where_time_went
from gridfleet.scheduler.reports.workers import present_workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import QueryError
from gridfleet.storage.schema import Trial
from tests.shown_searches import ShownTrial, store_shown
from tests.stored_searches import switch_triggers_off

MIXED = [
    ShownTrial({"units": 8, "act": "relu", "rate": 0.1, "x ->> 'y\"": None}, scores=(0.5, 0.75)),
    ShownTrial({"units": 16, "act": "tanh", "rate": None, "early": True}, scores=(0.75, 1.0)),
    ShownTrial({"units": 4, "act": "relu", "rate": "auto"}, error="Traceback\nValueError: no"),
    ShownTrial({"units": 32, "act": ["a", 1]}, state="queued"),
    ShownTrial({"units": 2, "act": "relu", "rate": 0.01}, scores=(0.25, 0.5)),
]


def numbers(database: Database, search_id: int, **choice: object) -> list[int]:
    """Return the numbers of the first page."""
    return [one.number for one in trial_page(database, search_id, len(MIXED), TrialChoice(**choice)).trials]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"order": Order.DOWN}, [4, 3, 2, 1, 0]),
        ({"sort": "mean_test_score", "order": Order.DOWN}, [1, 0, 4]),
        ({"sort": "mean_test_score"}, [4, 0, 1]),
        ({"shown": "failed"}, [2]),
        ({"shown": "scored", "sort": "params.units"}, [4, 0, 1]),
        ({"sort": "params.units", "order": Order.DOWN}, [3, 1, 0, 2, 4]),
        # numbers, then texts, then those without
        ({"sort": "params.rate"}, [4, 0, 2, 1, 3]),
        ({"conditions": [Condition("params.units", "≥", "8")]}, [0, 1, 3]),
        ({"conditions": [Condition("params.units", "=", "16.0")]}, [1]),
        ({"conditions": [Condition("params.units", "≠", "16")]}, [0, 2, 3, 4]),
        ({"conditions": [Condition("params.act", "=", "relu"), Condition("mean_test_score", "<", "0.5")]}, [4]),
        ({"conditions": [Condition("params.act", "≠", "relu")]}, [1, 3]),
        ({"conditions": [Condition("params.early", "=", "True")]}, [1]),
        ({"conditions": [Condition("params.rate", "=", "None")]}, [1]),
        ({"conditions": [Condition("params.x ->> 'y\"", "=", "None")]}, [0]),
        ({"conditions": [Condition("params.units", "=", "'; DROP TABLE trials")]}, []),
    ],
)
def test_trials_are_chosen_and_sorted_in_sql(
    database: Database, choice: dict[str, object], expected: list[int]
) -> None:
    search_id = store_shown(database, "mixed", MIXED)
    assert numbers(database, search_id, **choice) == expected


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"sort": "price"}, "there is no column 'price'"),
        ({"shown": "happy"}, "trials that are 'happy'"),
        ({"conditions": [Condition("mean_test_score", ">", "much")]}, "'much' is none"),
        ({"conditions": [Condition("params.units", "~", "1")]}, "'~' compares nothing"),
    ],
)
def test_a_choice_of_what_there_is_not_is_refused_with_what_there_is(
    database: Database, choice: dict[str, object], sentence: str
) -> None:
    search_id = store_shown(database, "mixed", MIXED)
    with pytest.raises(QueryError, match=sentence):
        numbers(database, search_id, **choice)


def test_pages_are_cut_in_sql_and_one_beyond_the_last_is_the_last(database: Database) -> None:
    search_id = store_shown(database, "mixed", MIXED)
    page = trial_page(database, search_id, len(MIXED), TrialChoice(page=99), size=2)
    assert ([one.number for one in page.trials], page.page, page.n_pages, page.n_found) == ([4], 3, 3, 5)


def test_of_a_large_search_the_best_are_looked_at_where_no_index_answers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_table, "EXAMINED", 2)
    search_id = store_shown(database, "mixed", MIXED)
    page = trial_page(database, search_id, len(MIXED), TrialChoice(sort="params.units"))
    assert ([one.number for one in page.trials], page.n_examined, page.n_found) == ([0, 1], 2, 2)
    assert trial_page(database, search_id, len(MIXED), TrialChoice()).n_examined is None


def test_no_page_of_a_large_search_reads_all_its_trials(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_table, "EXAMINED", 50)
    search_id = store_shown(database, "large", [ShownTrial({"x": x}, scores=(x / 4096, 0.5)) for x in range(3_000)])
    asked: list[tuple[str, object]] = []

    def note(_c: object, _u: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    if database.dialect == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    event.listen(database.engine, "before_cursor_execute", note)
    trial_page(database, search_id, 3_000, TrialChoice())
    trial_page(database, search_id, 3_000, TrialChoice(sort="mean_test_score", order=Order.DOWN))
    trial_page(database, search_id, 3_000, TrialChoice(shown="failed"))
    trial_page(database, search_id, 3_000, TrialChoice(conditions=[Condition("params.x", "=", "7")]))
    best_so_far(database, {search_id: 3_000})
    fleet_activity(database)
    present_workers(database)
    findings(database)
    event.remove(database.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN (COSTS OFF) "
    with database.read() as connection:
        plans = [
            " ".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
            if "trials" in statement
        ]
    # the index of those that wait has no others
    plans = [plan.replace("SCAN trials USING INDEX ix_trials_queued", "") for plan in plans]
    assert not [plan for plan in plans if "SCAN trials" in plan or "Seq Scan on trials" in plan], plans


def test_the_most_memory_and_whose_results_were_taken_are_read_from_indexes(database: Database) -> None:
    first = store_shown(database, "first", [ShownTrial({"x": x}, scores=(0.5, 1.0)) for x in range(3)])
    values = [{"peak_memory_mb": 400 + x} if x % 2 else {} for x in range(3_000)]
    large = store_shown(database, "large", [ShownTrial({}, scores=(0.5, 1.0), values=one) for one in values])
    with database.write() as connection:
        switch_triggers_off(connection)
        of_first = select(func.min(Trial.id)).where(Trial.search_id == first).scalar_subquery()
        taken = update(Trial).where(Trial.search_id == large)
        connection.execute(taken.where(Trial.number < 20).values(reused_from=of_first + Trial.number % 3))
        connection.execute(taken.where(Trial.number == 20).values(reused_from=999_999))
    if database.dialect == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _u: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    assert trial_reader.peak_memory_mb(database, large) == 3_399
    assert trial_reader.peak_memory_mb(database, first) is None
    assert trial_reader.reused(database, large) == {"first": 20, "": 1}
    event.remove(database.engine, "before_cursor_execute", note)

    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN (COSTS OFF) "
    with database.read() as connection:
        memory, _, taken_from = [
            " ".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
            if "trials" in statement
        ]
    assert "ix_trials_peak_memory" in memory
    assert "ix_trials_reused_from" in taken_from


def test_a_report_of_a_large_search_says_that_it_counted_in_a_sample(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [ShownTrial({"x": x}, scores=(0.5, 1.0), values={"fit_mode": "exact"}) for x in range(5)]
    store_shown(database, "digits", trials)
    print_report(database, "digits")
    assert "training     5 trials exact\n" in capsys.readouterr().out

    monkeypatch.setattr(fair_sample, "ALL", 4)
    monkeypatch.setattr(fair_sample, "drawn", lambda *_: [1, 3])
    print_report(database, "digits")
    assert "training     2 trials exact (of 2 trials drawn by lot)\n" in capsys.readouterr().out


def test_the_lead_of_the_winner_is_told_against_its_spread_over_the_splits(database: Database) -> None:
    trials = [ShownTrial({"x": 1}, scores=(0.5, 1.0)), ShownTrial({"x": 2}, scores=(0.75, 0.5))]
    search_id = store_shown(database, "near", trials)
    found = lead(database, search_id, "score")
    assert found is not None
    assert (found.second, found.difference, found.n_better, found.n_splits) == (1, 0.125, 1, 2)
    assert found.spread == pytest.approx(0.5303, abs=1e-4)
    assert not found.is_beyond
    assert lead(database, store_shown(database, "one", trials[:1]), "score") is None


def test_scores_by_fold_have_each_metric_and_the_trials_in_their_order(database: Database) -> None:
    two = ("recall", "f1")
    trials = [ShownTrial({"x": x}, scores=(0.5, x / 4), metrics=two) for x in range(3)]
    search_id = store_shown(database, "two metrics", trials)
    f1, recall = fold_scores(database, search_id, [2, 0])
    assert (f1.metric, recall.metric) == ("f1", "recall")
    assert recall.test == {2: [0.5, 0.5], 0: [0.5, 0.0]}
    assert f1.test[2] == [0.375, 0.375]
    assert recall.train[2] == [0.625, 0.625]


def test_where_the_time_went_is_added_up_over_all_trials_or_a_sample(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"build_time": 0.5, "train_time": 2.0}
    search_id = store_shown(database, "times", [ShownTrial({"x": 1}, scores=(0.5, 1.0), values=values)] * 4)
    spent = where_time_went(database, search_id, 4)
    assert spent is not None
    assert (spent.seconds["build"], spent.seconds["train"], spent.total) == (2.0, 8.0, 10.0)
    assert (spent.n_trials, spent.is_sample) == (4, False)
    monkeypatch.setattr("gridfleet.scheduler.reports.where_time_went.drawn", lambda *_: [0, 2])
    sample = where_time_went(database, search_id, 4)
    assert sample is not None
    assert (sample.total, sample.n_trials, sample.is_sample) == (5.0, 2, True)
    assert where_time_went(database, store_shown(database, "none", MIXED), 5) is None


def test_the_best_so_far_grows_and_ends_with_the_best_of_all(database: Database) -> None:
    small = store_shown(database, "small", MIXED)
    large = store_shown(database, "large", [ShownTrial({}, scores=(x % 89 / 128, 0.0)) for x in range(300)])
    empty = store_shown(database, "empty", [ShownTrial({})], is_final=False)
    grown = best_so_far(database, {small: 5, large: 300, empty: 1})
    assert grown[small] == [0.625, 0.875, 0.875]
    assert list(grown[large]) == sorted(grown[large])
    assert grown[large][-1] == 88 / 256
    assert len(grown[large]) <= 101
    assert empty not in grown


def test_a_sample_is_the_same_at_each_look_and_all_of_a_small_search() -> None:
    assert list(drawn(1, 5)) == [0, 1, 2, 3, 4]
    assert drawn(1, 1_000_000) == drawn(1, 1_000_000)
    assert len(set(drawn(1, 1_000_000))) == 2_000
