"""Who proposes trials: the same ones whoever dies in between, no more than may be open, and never the script."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from redis.exceptions import RedisError

from gridfleet.scheduler.fleet import asker as module
from gridfleet.scheduler.fleet.asker import Asker
from gridfleet.scheduler.fleet.reconciler import Reconciler
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.halving import Halving
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import PrunedResult, TrialResult
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.trials.proposed import proposed
from gridfleet.worker.broker.publisher import Publisher
from tests.conftest import KEYS
from tests.storage.conftest import StoredSearch, result_of, store_asking

TPE = json.dumps({"name": "tpe", "n_startup_trials": 2})
CMAES = json.dumps({"name": "cmaes"})
SPACE = json.dumps(
    [
        {
            "a": {"kind": "whole", "low": 1, "high": 99, "step": 1, "log": False},
            "b": {"kind": "real", "low": 0.1, "high": 1.0, "step": None, "log": True},
        }
    ]
)


@pytest.fixture
def publisher(database_settings: Settings) -> Iterator[Publisher]:
    with closing(Publisher(database_settings, KEYS)) as publisher:
        yield publisher


@pytest.fixture
def new_asker(database_settings: Settings, database: Database, publisher: Publisher) -> Callable[[], Asker]:
    return lambda: Asker(database_settings, database, publisher)


def learning(database: Database, **facts: Any) -> StoredSearch:
    return store_asking(database, **{"n_trials": 9, "lookahead": 3, "space": SPACE, "sampler": TPE, **facts})


def evaluate_one(database: Database, search: StoredSearch, *, last: bool = False) -> bool:
    """Evaluate a queued trial as a worker does; returns whether there was one."""
    with database.read() as connection:
        query = "SELECT id FROM trials WHERE search_id = %d AND state = 'queued' ORDER BY id %s"
        waiting = connection.exec_driver_sql(query % (search.id, "DESC" if last else "")).scalars().all()
    if not waiting:
        return False
    claim = claims.claim(database, waiting[0], "worker/1", lease_s=60, max_runtime_s=60)
    assert claim is not None
    values = claim.sample["values"]
    score = -abs(values["a"] - 40) - values.get("b", 0)
    assert transitions.record(database, Held(claim.trial_id, claim.token), result_of(score))
    return True


def run(database: Database, search: StoredSearch, new_asker: Callable[[], Asker], *, last: bool = False) -> list[Any]:
    """Let askers, each used once, and workers take turns until the search has ended; return what was proposed."""
    while True:
        new_asker().ask_all()
        if not evaluate_one(database, search, last=last):
            break
    assert search.row().state == "completed"
    return [row.sample for row in proposed(database, search.id)]


def test_no_more_trials_are_open_than_lookahead_says(database: Database, new_asker: Callable[[], Asker]) -> None:
    search = learning(database)

    assert new_asker().ask_all() == 3
    assert new_asker().ask_all() == 0
    evaluate_one(database, search, last=True)
    assert new_asker().ask_all() == 0, "the next one is to know the result of trial 0, which has none yet"
    evaluate_one(database, search)

    assert new_asker().ask_all() == 1
    assert [row.asked_without for row in proposed(database, search.id)] == [[], [0], [0, 1], [1, 2]]


@pytest.mark.parametrize("sampler", [TPE, CMAES], ids=["tpe", "cmaes"])
def test_the_order_of_results_changes_no_proposal(
    database: Database, new_asker: Callable[[], Asker], sampler: str
) -> None:
    one, other = (learning(database, sampler=sampler) for _ in range(2))
    kept = new_asker()

    assert run(database, one, new_asker) == run(database, other, lambda: kept, last=True)


class KilledError(Exception):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("sampler", [TPE, CMAES], ids=["tpe", "cmaes"])
def test_a_scheduler_that_dies_between_ask_and_insert_changes_nothing(
    database: Database, new_asker: Callable[[], Asker], monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    expected = run(database, learning(database, sampler=sampler), new_asker)
    search = learning(database, sampler=sampler)

    def dies(*_: object, **__: object) -> None:
        raise RedisError("killed")

    def one_that_dies_first() -> Asker:
        with monkeypatch.context() as killed, contextlib.suppress(RedisError):
            killed.setattr(module.proposed, "add_proposals", dies)
            new_asker().ask_all()
        return new_asker()

    assert run(database, search, one_that_dies_first) == expected


def test_messages_that_a_dead_scheduler_did_not_send_are_sent(
    database: Database,
    database_settings: Settings,
    publisher: Publisher,
    new_asker: Callable[[], Asker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learning(database)

    def dies(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as killed:
        killed.setattr(publisher, "publish", dies)
        new_asker().ask_all()
    assert publisher.queue_length() == 0

    assert Reconciler(database_settings, database, publisher).once().published == 3


def test_without_a_seed_each_proposal_knows_what_is_there(database: Database, new_asker: Callable[[], Asker]) -> None:
    search = learning(database, asks_in_order=False)
    new_asker().ask_all()
    evaluate_one(database, search, last=True)

    assert new_asker().ask_all() == 1

    assert [row.asked_without for row in proposed(database, search.id)][-1] == [0, 1]


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_a_sampler_that_learns_nothing_waits_for_nothing(
    database: Database, new_asker: Callable[[], Asker], sampler: str
) -> None:
    store_asking(database, n_trials=9, sampler=json.dumps({"name": sampler}))

    assert new_asker().ask_all() == 9


def test_with_a_pruner_and_a_seed_trials_wait_for_those_that_they_are_compared_with(
    database: Database, new_asker: Callable[[], Asker]
) -> None:
    facts = {
        "n_trials": 9,
        "lookahead": 3,
        "sampler": '{"name":"random"}',
        "pruner": '{"name":"asha","min_resource":1}',
    }
    search = store_asking(database, **facts)
    store_asking(database, **facts, asks_in_order=False)

    assert new_asker().ask_all() == 3 + 9

    assert [row.asked_without for row in proposed(database, search.id)] == [[], [], []]
    evaluate_one(database, search, last=True)
    assert new_asker().ask_all() == 0
    evaluate_one(database, search)
    assert new_asker().ask_all() == 1


def test_a_sampler_learns_from_where_a_trial_was_pruned(database: Database, new_asker: Callable[[], Asker]) -> None:
    def pruned_at(epoch: int) -> Any:
        search = learning(database, n_trials=4, lookahead=1, sampler=json.dumps({"name": "tpe", "n_startup_trials": 1}))
        for _ in range(3):
            new_asker().ask_all()
            with database.read() as connection:
                query = "SELECT id, number FROM trials WHERE search_id = %d AND state = 'queued'"
                trial_id, number = connection.exec_driver_sql(query % search.id).one()
            claim = claims.claim(database, trial_id, "worker/1", lease_s=60, max_runtime_s=60)
            assert claim is not None
            at = PrunedResult(0, epoch if number == 1 else 3, 0.5)
            transitions.record(database, Held(claim.trial_id, claim.token), TrialResult(splits=[], pruned=at))
        new_asker().ask_all()
        return [row.sample for row in proposed(database, search.id)]

    samples = pruned_at(27)

    assert samples == pruned_at(27)
    assert len(samples) == 4


def test_a_small_space_ends_the_search(database: Database, new_asker: Callable[[], Asker]) -> None:
    search = store_asking(database, n_trials=50, sampler=TPE)

    samples = run(database, search, new_asker)

    assert sorted(sample["values"]["a"] for sample in samples) == list(range(1, 10))


def test_a_search_that_cannot_be_asked_keeps_no_other_from_it(
    database: Database, new_asker: Callable[[], Asker], caplog: pytest.LogCaptureFixture
) -> None:
    learning(database, sampler='{"name":"tpe","n_startup_trials":"many"}')
    learning(database)

    assert new_asker().ask_all() == 3

    assert "gets no more trials" in caplog.text


def test_it_waits_for_hints(publisher: Publisher) -> None:
    for _ in range(3):
        publisher.tell()

    assert publisher.wait_until_told() is True
    assert publisher.wait_until_told() is False, "all that was told is one hint"


def test_an_error_in_a_sampler_ends_its_search_with_the_sentence(
    database: Database, new_asker: Callable[[], Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = learning(database)
    assert new_asker().ask_all() == 3
    evaluate_one(database, search)

    def fails(*_: object, **__: object) -> None:
        raise ValueError("no such prior")

    with monkeypatch.context() as broken:
        broken.setattr("gridfleet.scheduler.proposals.ask.fresh_sampler", fails)
        assert new_asker().ask_all() == 0
    assert search.row().finished_at is None, "two trials are open"
    assert new_asker().ask_all() == 0, "it is not asked again"
    while evaluate_one(database, search):
        pass

    assert search.row().error == "no more trials could be proposed: ValueError: no such prior"
    summary = reader.find_search(database, search.id)
    assert (summary.state, summary.is_finished) == ("failed", True)
    with database.read() as connection:
        views = "SELECT state FROM %s WHERE search_id = %d"
        for view in ("search_progress", "best_trials"):
            assert connection.exec_driver_sql(views % (view, search.id)).scalar() == "failed"
    searches.open_again(database, search.id)
    assert new_asker().ask_all() == 3, "somebody goes on with it"


def test_only_what_may_have_changed_is_read_again(
    database: Database, new_asker: Callable[[], Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    search, read = learning(database), []
    asker = new_asker()

    def noted(*arguments: Any, **keywords: Any) -> Any:
        rows = proposed(*arguments, **keywords)
        read.append([row.number for row in rows])
        return rows

    monkeypatch.setattr(module.proposed, "proposed", noted)
    run(database, search, lambda: asker)

    assert read[:4] == [[], [0, 1, 2], [1, 2, 3], [2, 3, 4]]


ROUNDS = Halving("n_samples", [6, 3, 2], [10, 20, 40], "nan")


def halved(database: Database, halving: Halving = ROUNDS) -> StoredSearch:
    """Store a halving search with its first round."""
    facts = {"space": None, "seed": None, "lookahead": None, "asks_in_order": None, "n_trials": halving.n_trials}
    search = store_asking(database, sampler=halving.to_json(), **{**facts, "n_asked": halving.n_candidates[0]})
    with database.write() as connection:
        candidates = [{"C": number} for number in range(halving.n_candidates[0])]
        queue.create_trials(connection, search.id, candidates, n_resources=halving.n_resources[0])
    return search


def evaluate_round(database: Database, search: StoredSearch, score_of: Callable[[int], float]) -> list[int]:
    """Evaluate all that waits, by the value of its hyperparameter; return these values."""
    with database.read() as connection:
        query = f"SELECT id FROM trials WHERE search_id = {search.id} AND state = 'queued' ORDER BY id"
        ids = connection.exec_driver_sql(query).scalars().all()
    values = []
    for trial_id in ids:
        claim = claims.claim(database, trial_id, "worker/1", lease_s=60, max_runtime_s=60)
        assert claim is not None
        candidate = claim.number if claim.sample is None else claim.sample["candidate"]
        values.append(candidate)
        assert transitions.record(database, Held(claim.trial_id, claim.token), result_of(score_of(candidate)))
    return values


def test_a_round_follows_when_the_one_before_it_has_ended(database: Database, new_asker: Callable[[], Asker]) -> None:
    search = halved(database)
    assert new_asker().ask_all() == 0
    assert evaluate_round(database, search, lambda value: -value) == [0, 1, 2, 3, 4, 5]

    assert new_asker().ask_all() == 3
    assert new_asker().ask_all() == 0
    assert sorted(evaluate_round(database, search, lambda value: value)) == [0, 1, 2]
    assert new_asker().ask_all() == 2
    assert sorted(evaluate_round(database, search, lambda value: value)) == [1, 2]

    assert search.row().state == "completed"
    with database.read() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT number, iter, n_resources FROM trials WHERE search_id = {search.id} ORDER BY number"
        ).all()
    assert rows == [*((n, 0, 10) for n in range(6)), *((n, 1, 20) for n in range(6, 9)), (9, 2, 40), (10, 2, 40)]
    best = trial_reader.best_trial(database, search.id)
    assert best is not None
    assert best.params == {"C": 2}


def test_a_large_round_is_added_in_parts(
    database: Database, new_asker: Callable[[], Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    search = halved(database)
    evaluate_round(database, search, lambda value: value)

    assert [new_asker().ask_all() for _ in range(3)] == [2, 1, 0]

    assert sorted(evaluate_round(database, search, lambda value: value)) == [3, 4, 5]
