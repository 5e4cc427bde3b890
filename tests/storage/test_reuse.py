"""Results that new trials take from others: all rows, once, and by nobody but who stores searches."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Curve, Search, SplitScore, Trial, TrialWarning
from gridfleet.storage.trial_results import RESULT_COLUMNS, CurveResult, TrialResult, WarningResult
from gridfleet.storage.trials import queue, reuse, transitions
from tests.storage.conftest import N_SPLITS, StoredSearch, result_of, store_search

KEYS = ["a" * 64, "b" * 64, "c" * 64]


def store_with_keys(database: Database, keys: list[str | None]) -> tuple[StoredSearch, int]:
    """Store a search whose trials take results that are there; return how many do."""
    template = store_search(database)
    with database.write() as connection:
        row = connection.execute(select(*Search.__table__.columns).where(Search.id == template.id)).one()._mapping
        values = {**row, "name": f"of {template.name}", "n_trials": len(keys)}
        search_id = connection.execute(
            insert(Search).values({name: values[name] for name in values if name != "id"}).returning(Search.id)
        ).scalar_one()
        taken = reuse.find_results(connection, {key for key in keys if key is not None})
        candidates = [{"units": number} for number in range(len(keys))]
        queue.create_trials(connection, search_id, candidates, queue.Reuse(keys, taken))
        n_taken = reuse.take_results(connection, search_id)
        ids = connection.execute(select(Trial.id).where(Trial.search_id == search_id).order_by(Trial.number)).scalars()
        return StoredSearch(database, search_id, values["name"], list(ids)), n_taken


def rich_result() -> TrialResult:
    plain = result_of(0.75)
    return TrialResult(
        plain.splits,
        curves=[CurveResult(split, "loss", [0.5, None, 0.25]) for split in range(N_SPLITS)],
        warnings=[WarningResult("UserWarning", "odd", None, 2)],
        mean_test_score=0.75,
        std_test_score=0.0,
        mean_fit_time=1.5,
        fit_mode="exact",
        train_time=1.25,
        peak_memory_mb=300,
    )


def rows_of(database: Database, table: Any, trial_id: int) -> list[tuple[Any, ...]]:
    columns = [column for column in table.__table__.columns if column.name != "trial_id"]
    with database.read() as connection:
        found = connection.execute(select(*columns).where(table.trial_id == trial_id).order_by(*columns[:2]))
        return [tuple(row) for row in found]


def test_a_new_trial_takes_all_rows_of_the_completed_one_with_its_key(database: Database) -> None:
    first, n_taken = store_with_keys(database, KEYS[:2])
    assert n_taken == 0
    transitions.record(database, first.held(0), rich_result())
    transitions.record(database, first.held(1), result_of(0.5, error="it raised"))

    second, n_taken = store_with_keys(database, [KEYS[2], KEYS[0], None, KEYS[1], KEYS[0]])

    assert n_taken == 2
    taken = [second.trial(number) for number in (1, 4)]
    assert [(row.state, row.reused_from, row.attempt, row.worker_id) for row in taken] == [
        ("completed", first.trial_ids[0], 0, None)
    ] * 2
    source = first.trial(0)
    for row in taken:
        assert [getattr(row, name) for name in RESULT_COLUMNS] == [getattr(source, name) for name in RESULT_COLUMNS]
        for table in (SplitScore, Curve, TrialWarning):
            assert rows_of(database, table, row.id) == rows_of(database, table, source.id) != []
    # a failure is nobody's result
    assert [second.trial(number).state for number in (0, 2, 3)] == ["queued"] * 3
    assert queue.in_turn(database, second.id) == [second.trial_ids[number] for number in (0, 2, 3)]


def test_a_search_whose_trials_all_take_results_is_finished(database: Database) -> None:
    first, _ = store_with_keys(database, KEYS[:1])
    transitions.record(database, first.held(0), rich_result())

    second, _ = store_with_keys(database, [KEYS[0]])
    searches.finish_search(database, second.id)

    assert (second.row().state, second.claim(0)) == ("completed", None)


def test_postgresql_lets_nobody_add_to_a_result_that_was_taken(database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite has no triggers")
    first, _ = store_with_keys(database, KEYS[:1])
    transitions.record(database, first.held(0), rich_result())
    second, _ = store_with_keys(database, [KEYS[0]])
    score = {"split": 7, "metric": "mine", "fit_time": 1, "score_time": 1, "n_train": 1, "n_test": 1}

    with pytest.raises(DBAPIError, match="is not being recorded"), database.write() as connection:
        connection.execute(insert(SplitScore).values(trial_id=second.trial_ids[0], **score))
    for change in ({"reused_from": None}, {"reuse_key": None}, {"mean_test_score": 1.0}):
        with pytest.raises(DBAPIError, match="changes"), database.write() as connection:
            connection.execute(Trial.__table__.update().where(Trial.id == second.trial_ids[0]).values(change))
