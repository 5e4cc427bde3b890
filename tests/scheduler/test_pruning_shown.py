"""What is said of pruned trials: in lists, reports, of one trial, on the page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import insert, select

from gridfleet.scheduler.reports import as_json, listing, one_trial, reader, tables
from gridfleet.scheduler.reports.progress import describe
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Report, Trial
from gridfleet.storage.settings import Settings
from tests.figures.searches import kinds_of_searches, store
from tests.stored_searches import store_pima, switch_triggers_off


@pytest.fixture
def pruned(database_settings: Settings, database: Database) -> int:
    return store(database_settings, database, "pruned", **kinds_of_searches()["pruned"])


def test_a_list_counts_them_beside_what_failed(
    database_settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    store_pima(database_settings, database)
    listing.print_searches(database, limit=9)
    assert "pruned" not in capsys.readouterr().out

    store(database_settings, database, "raced", **kinds_of_searches()["pruned"])
    listing.print_searches(database, limit=9)

    header, raced, pima = capsys.readouterr().out.splitlines()
    assert header.split() == ["search", "state", "scored", "failed", "pruned", "best", "submitted"]
    assert raced.split()[2:5] == ["5/8", "0", "3"]
    assert pima.split()[2:5] == ["4/5", "1", "0"]
    assert [one["pruned"] for one in as_json.searches(database, limit=9)] == [3, 0]


def test_a_report_says_where_they_were_pruned(
    database: Database, pruned: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_report(database, pruned)

    shown = capsys.readouterr().out
    assert "trials       5/8 scored, 3 pruned" in shown
    assert [line.strip() for line in shown.splitlines() if line.startswith("  pruned")] == [
        "pruned       1 trial after 1 epoch of split 0",
        "pruned       1 trial after 3 epochs of split 0",
        "pruned       1 trial at the end of split 1",
    ]
    assert ", 3 pruned, " in describe(reader.progress(database, pruned))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (3, "after 3 epochs of split 0, with 0.2000, place 4 of 6"),
        (5, "at the end of split 1, with 0.3000, place 4 of 6"),
        (6, "after 1 epoch of split 0, with no finite value, beside 5 others"),
    ],
)
def test_of_one_trial_it_is_said_at_which_rung_and_against_how_many(
    database: Database, pruned: int, capsys: pytest.CaptureFixture[str], number: int, sentence: str
) -> None:
    one_trial.print_trial(database, pruned, number)

    shown = capsys.readouterr().out
    assert f"trial {number}: pruned" in shown
    assert sentence in shown
    told: dict[str, Any] = json.loads(json.dumps(one_trial.trial_as_json(database, pruned, number)))
    assert told["reports"][0]["decision"] == "pruned"
    assert told["pruned_split"] == told["reports"][0]["split"]


def test_a_trial_that_was_kept_shows_its_comparisons(
    database: Database, pruned: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as connection:
        switch_triggers_off(connection)
        trial_id = connection.execute(select(Trial.id).where(Trial.search_id == pruned, Trial.number == 0)).scalar_one()
        rows = [
            {"trial_id": trial_id, "split": split, "step": step, "value": 0.5, "n_compared": 2, "rank": 1}
            for split, step in ((0, 0), (0, 1), (0, 3), (1, 0))
        ]
        connection.execute(insert(Report), [{**row, "decision": "kept"} for row in rows])

    one_trial.print_trial(database, pruned, 0)

    shown = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(shown) if line.split()[:2] == ["split", "epochs"])
    assert [line.split()[:2] for line in shown[place + 1 : place + 5]] == [
        ["0", "1"],
        ["0", "3"],
        ["0", "end"],
        ["1", "end"],
    ]
