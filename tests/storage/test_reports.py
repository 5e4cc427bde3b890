"""What running trials report: who holds a trial, what it is compared with, and that both databases decide alike."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.pruner import Pruner
from gridfleet.storage.schema import Report, Search
from gridfleet.storage.trial_results import PrunedResult, TrialResult
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.trials.reports import AT_THE_END, Racer, decide_again, report, report_beside_best
from tests.storage.conftest import OLD_TOKEN, StoredSearch, attempts_of, reap, result_of, store_search
from tests.stored_searches import switch_triggers_off

ASHA = Pruner("asha", settings={"reduction_factor": 2})


def ask(
    search: StoredSearch,
    number: int,
    value: float | None,
    *,
    held: Held | None = None,
    pruner: Pruner = ASHA,
    split: int = 0,
    step: int = 1,
    newest: int | None = None,
    best: float | None = None,
    is_first: bool = True,
) -> bool | None:
    return report(
        search.database,
        held or search.held(number),
        Racer(search.id, number, pruner, newest),
        split=split,
        step=step,
        value=value,
        best=value if best is None else best,
        is_first=is_first,
    )


def reports(search: StoredSearch) -> list[tuple[Any, ...]]:
    columns = (
        Report.trial_id,
        Report.split,
        Report.step,
        Report.value,
        Report.n_compared,
        Report.rank,
        Report.decision,
    )
    with search.database.read() as connection:
        rows = connection.execute(select(*columns).order_by(Report.trial_id, Report.split, Report.step)).all()
    return [(search.trial_ids.index(row.trial_id), *row[1:]) for row in rows]


@pytest.fixture
def five(database: Database) -> StoredSearch:
    return store_search(database, 5)


def test_a_report_says_how_the_trial_stands_and_what_comes_of_it(five: StoredSearch) -> None:
    assert [ask(five, number, value) for number, value in enumerate([0.5, 0.4, 0.6, 0.6])] == [True, False, True, True]

    assert reports(five) == [
        (0, 0, 1, 0.5, 0, 1, "kept"),
        (1, 0, 1, 0.4, 1, 2, "pruned"),
        (2, 0, 1, 0.6, 2, 1, "kept"),
        (3, 0, 1, 0.6, 3, 1, "kept"),
    ]


def test_only_the_same_epoch_of_the_same_split_is_compared(five: StoredSearch) -> None:
    ask(five, 0, 0.9)
    held = five.held(1)

    assert ask(five, 1, 0.1, held=held, step=2)
    assert ask(five, 1, 0.1, held=held, split=1, is_first=False)
    assert ask(five, 1, 0.1, held=held, step=AT_THE_END, is_first=False)
    assert not ask(five, 1, 0.1, held=held, is_first=False)


def test_other_searches_are_not_compared(five: StoredSearch, database: Database) -> None:
    other = store_search(database, 1)
    ask(other, 0, 0.9)

    assert ask(five, 0, 0.1)


def test_with_a_seed_only_trials_that_had_ended_are_compared(five: StoredSearch) -> None:
    for number, value in enumerate([0.5, 0.9, 0.9]):
        ask(five, number, value)

    assert ask(five, 3, 0.6, newest=0)
    assert ask(five, 4, 0.6, newest=-1)
    assert [row[4:] for row in reports(five)][3:] == [(1, 1, "kept"), (0, 1, "kept")]


def test_a_value_that_is_not_finite_is_pruned_and_compared_with_nobody(five: StoredSearch) -> None:
    assert ask(five, 0, None) is False
    assert ask(five, 1, -3.0) is True

    assert reports(five) == [(0, 0, 1, None, 0, None, "pruned"), (1, 0, 1, -3.0, 0, 1, "kept")]


def test_brackets_are_compared_apart(five: StoredSearch) -> None:
    pruner = Pruner("hyperband", settings={"max_resource": 9})
    brackets = [pruner.bracket_of(number).number for number in range(5)]
    for number in range(5):
        assert ask(five, number, 0.5, pruner=pruner, step=9)

    assert [row[4] for row in reports(five)] == [brackets[:number].count(brackets[number]) for number in range(5)]
    assert len(set(brackets)) > 1


@pytest.mark.parametrize(("value", "goes_on"), [(0.5, True), (0.49, False)])
def test_the_median_is_of_completed_trials(five: StoredSearch, value: float, goes_on: bool) -> None:
    pruner = Pruner("median", settings={"n_startup_trials": 2})
    for number, other in enumerate([0.4, 0.6]):
        held = five.held(number)
        ask(five, number, other, held=held, pruner=pruner)
        transitions.record(five.database, held, result_of(other))
    ask(five, 2, 0.9, pruner=pruner)

    assert ask(five, 3, value, pruner=pruner) is goes_on
    assert reports(five)[-1][4:] == (2, 2, "kept" if goes_on else "pruned")


def test_the_best_of_earlier_epochs_counts_for_the_median(five: StoredSearch) -> None:
    pruner = Pruner("median", settings={"n_startup_trials": 1})
    held = five.held(0)
    ask(five, 0, 0.5, held=held, pruner=pruner)
    transitions.record(five.database, held, result_of(0.5))

    assert ask(five, 1, 0.1, best=0.6, pruner=pruner)
    assert not ask(five, 2, 0.1, best=0.2, pruner=pruner)


def test_before_some_trials_are_completed_a_median_prunes_none(five: StoredSearch) -> None:
    pruner = Pruner("median")
    held = five.held(0)
    ask(five, 0, 0.9, held=held, pruner=pruner)
    transitions.record(five.database, held, result_of(0.9))

    assert ask(five, 1, 0.1, pruner=pruner)


def test_wilcoxon_compares_with_the_best_trial_split_by_split(five: StoredSearch) -> None:
    pruner = Pruner("wilcoxon", settings={"p_threshold": 0.3})
    for number, score in enumerate([0.9, 0.5]):
        transitions.record(five.database, five.held(number), result_of(score))

    def beside(number: int, scores: list[float]) -> bool | None:
        racer = Racer(five.id, number, pruner)
        return report_beside_best(five.database, five.held(number), racer, scores=scores, metric="score", is_first=True)

    assert beside(2, [0.1, 0.2]) is False
    assert beside(3, [0.95, 0.9]) is True
    assert beside(4, [0.1]) is True
    found = [(*row[:3], round(row[3], 3), *row[4:]) for row in reports(five)]
    assert found == [
        (2, 1, 0, 0.15, 1, 2, "pruned"),
        (3, 1, 0, 0.925, 1, 1, "kept"),
        (4, 0, 0, 0.1, 1, 2, "kept"),
    ]


def test_who_does_not_hold_the_trial_stores_nothing(five: StoredSearch) -> None:
    held = five.held(0)

    assert ask(five, 0, 0.5, held=Held(held.trial_id, OLD_TOKEN)) is None
    reap(five.database, held)
    assert ask(five, 0, 0.5, held=held) is None

    assert reports(five) == []


def test_the_next_attempt_replaces_what_a_lost_one_reported(five: StoredSearch) -> None:
    lost = five.held(0)
    ask(five, 0, 0.5, held=lost)
    ask(five, 0, 0.6, held=lost, step=3, is_first=False)
    transitions.release(five.database, lost)

    ask(five, 0, 0.7)

    assert reports(five) == [(0, 0, 1, 0.7, 0, 1, "kept")]


def test_a_report_whose_answer_was_lost_is_made_again(five: StoredSearch) -> None:
    held = five.held(0)
    for is_first in (True, True):
        ask(five, 0, 0.5, held=held, is_first=is_first)
    for _ in range(2):
        ask(five, 0, 0.6, held=held, step=3, is_first=False)

    assert [row[2] for row in reports(five)] == [1, 3]


def test_a_pruned_trial_keeps_the_scores_that_it_got(five: StoredSearch) -> None:
    held, got = five.held(0), result_of(0.5, n_splits=1)

    assert transitions.record(
        five.database, held, TrialResult(splits=got.splits, pruned=PrunedResult(1, 9, 0.25), seed=3)
    )

    row = five.trial(0)
    assert (row.state, row.mean_test_score, row.error) == ("pruned", None, None)
    assert (row.pruned_split, row.pruned_epoch, row.pruned_value) == (1, 9, 0.25)
    assert attempts_of(five.database, row.id)[0].outcome == "pruned"
    for number in range(1, 5):
        transitions.record(five.database, five.held(number), result_of(0.5))
    assert five.row().state == "completed"


def test_a_search_that_only_pruned_is_finished(database: Database) -> None:
    search = store_search(database, 1)

    transitions.record(database, search.held(0), TrialResult(splits=[], pruned=PrunedResult(0, 1, None)))

    assert search.row().finished_at is not None
    assert search.trial(0).pruned_value is None


def test_retried_trials_have_no_reports_of_before(five: StoredSearch) -> None:
    held = five.held(0)
    ask(five, 0, 0.5, held=held)
    transitions.record(five.database, held, result_of(0.5, error="ValueError: …"))

    searches.retry_failed(five.database, five.id)

    assert reports(five) == []


def test_a_hundred_drawn_reports_stand_where_they_stand_among_the_others(database: Database) -> None:
    """The SQL against the same in Python."""
    search, draw = store_search(database, 60), random.Random(5)
    with database.write() as connection:
        connection.execute(update(Search).where(Search.id == search.id).values(n_splits=2))
    known: dict[tuple[int, int], dict[int, float]] = {}
    for number in range(60):
        held, is_first = search.held(number), True
        for place in ((0, 1), (0, 3), (0, 0)):
            value, newest = round(draw.uniform(0, 1), 1), draw.choice([None, number - 5])
            others = [other for at, other in known.get(place, {}).items() if newest is None or at <= newest]
            goes_on = ask(
                search, number, value, held=held, split=place[0], step=place[1], newest=newest, is_first=is_first
            )
            is_first = False
            n_better = sum(other > value for other in others)
            assert goes_on is (n_better < max((len(others) + 1) // 2, 1))
            at_place = [row for row in reports(search) if row[:3] == (number, *place)]
            assert at_place == [(number, *place, value, len(others), n_better + 1, "kept" if goes_on else "pruned")]
            known.setdefault(place, {})[number] = value
            if not goes_on:
                break


@pytest.mark.parametrize(
    "pruner",
    [
        ASHA,
        Pruner("hyperband", settings={"max_resource": 9}),
        Pruner("median", settings={"n_startup_trials": 2}),
        Pruner("wilcoxon", settings={"p_threshold": 0.3}),
    ],
    ids=lambda pruner: pruner.name,
)
def test_decisions_of_a_search_with_a_seed_can_be_made_again(database: Database, pruner: Pruner) -> None:
    search, draw = store_search(database, 30), random.Random(2)
    with database.write() as connection:
        switch_triggers_off(connection)
        columns = {"pruner": pruner.to_json(), "monitor": "score", "lookahead": 3, "asks_in_order": True}
        connection.execute(update(Search).where(Search.id == search.id).values(columns))
    n_pruned = n_asked = 0
    for number in range(30):
        held, racer, goes_on, best, first = (
            search.held(number),
            Racer(search.id, number, pruner, number - 3),
            True,
            -9.0,
            True,
        )
        scores = [round(draw.uniform(0, 1), 1) for _ in range(2)]
        for split, step in ((0, 1), (0, 3), (0, AT_THE_END), (1, AT_THE_END)):
            n_asked += 1
            if pruner.name == "wilcoxon" and step == AT_THE_END:
                options: dict[str, Any] = {"scores": scores[: split + 1], "metric": "score"}
                goes_on = bool(report_beside_best(database, held, racer, **options, is_first=first))
            elif pruner.name == "wilcoxon":
                n_asked -= 1
                continue
            else:
                value = round(draw.uniform(0, 1), 1)
                best = max(best, value) if step else value
                place = {"split": split, "step": step, "value": value, "best": best}
                goes_on = bool(report(database, held, racer, **place, is_first=first))
            first = False
            if not goes_on:
                break
        n_pruned += not goes_on
        whole = replace(
            result_of(0.5),
            splits=[replace(one, test_score=score) for one, score in zip(result_of(0.5).splits, scores, strict=True)],
            mean_test_score=sum(scores) / 2,
        )
        pruned = replace(whole, mean_test_score=None, pruned=PrunedResult(split, step or None, 0.5))
        transitions.record(database, held, whole if goes_on else pruned)

    assert n_pruned > 2
    assert decide_again(database, search.id) == (n_asked, [])
    with database.write() as connection:
        switch_triggers_off(connection)
        of_last = select(Report.trial_id).where(Report.decision == "pruned").order_by(Report.trial_id.desc()).limit(1)
        trial_id = connection.execute(of_last).scalar_one()
        connection.execute(
            update(Report).where(Report.trial_id == trial_id, Report.decision == "pruned").values(decision="kept")
        )
    _, differing = decide_again(database, search.id)
    assert [(search.trial_ids[one.number], one.stored[2], one.again[2]) for one in differing] == [
        (trial_id, "kept", "pruned")
    ]


def test_what_was_decided_without_a_seed_is_not_made_again(five: StoredSearch) -> None:
    ask(five, 0, 0.5)

    assert decide_again(five.database, five.id) == (0, [])
