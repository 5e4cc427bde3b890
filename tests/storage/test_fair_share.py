"""Which search a worker takes its next trial of, whatever its message names."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from sqlalchemy import event, select, text, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.trials import claims, fair_share, queue, transitions
from gridfleet.storage.trials.held import Claim, Held
from tests.mutants import mutated
from tests.storage.conftest import StoredSearch, ago, result_of, set_trial, store_search
from tests.stored_searches import switch_triggers_off

LIMITS = {"lease_s": 600, "max_runtime_s": 3_600}


def take(database: Database, message: int, *, session: str | None = None, structures: Sequence[str] = ()) -> Claim:
    """Claim what is to be evaluated next, as a worker process does at a message."""
    hint = queue.look(database, message, session=session)
    assert hint is not None
    claim = claims.claim_at_message(database, hint, "node/1", structures=structures, **LIMITS)
    assert claim is not None
    return claim


def end(database: Database, claim: Claim) -> None:
    assert transitions.record(database, Held(claim.trial_id, claim.token), result_of(0.5))


def drain(database: Database, message: int, n_processes: int, n_trials: int) -> list[int]:
    """Let processes take one trial after the other, each until it ends; returns the searches in the order of claims."""
    running: deque[Claim] = deque()
    order = []
    for _ in range(n_trials):
        if len(running) == n_processes:
            end(database, running.popleft())
        running.append(take(database, message))
        order.append(running[-1].search_id)
    return order


def submitted_by(user: str, database: Database, n_trials: int) -> StoredSearch:
    search = store_search(database, n_trials)
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(submitted_by=user))
    return search


def of_session(session: str, database: Database, n_trials: int) -> StoredSearch:
    search = submitted_by(session, database, n_trials)
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(session=session))
    return search


def test_a_new_search_starts_before_the_next_trial_of_an_old_one(database: Database) -> None:
    old = store_search(database, 9)
    running = [take(database, old.trial_ids[0]) for _ in range(4)]
    new = store_search(database, 9)

    end(database, running[0])

    assert take(database, old.trial_ids[5]).search_id == new.id


def test_two_searches_get_half_of_a_busy_fleet_each(database: Database) -> None:
    old, new = store_search(database, 20), store_search(database, 20)

    order = drain(database, old.trial_ids[0], 6, 20)

    assert Counter(order[:6]) == {old.id: 3, new.id: 3}
    assert abs(order.count(old.id) - order.count(new.id)) <= 1


def test_a_search_of_long_trials_leaves_half_of_the_processes_to_one_of_short_trials(database: Database) -> None:
    long, short = store_search(database, 20), store_search(database, 20)
    running = [take(database, long.trial_ids[0]) for _ in range(4)]

    for _ in range(6):
        ended = next(claim for claim in running if claim.search_id == short.id)
        running.remove(ended)
        end(database, ended)
        running.append(take(database, long.trial_ids[0]))

        assert Counter(claim.search_id for claim in running) == {long.id: 2, short.id: 2}


def test_two_users_get_half_of_a_busy_fleet_each_however_many_searches_they_have(database: Database) -> None:
    many = [submitted_by("many@host", database, 9) for _ in range(3)]
    one = submitted_by("one@host", database, 20)

    order = drain(database, one.trial_ids[0], 6, 18)

    assert order.count(one.id) == 9
    assert {order.count(search.id) for search in many} == {3}


def test_a_fleet_of_one_process_takes_users_and_then_their_searches_in_turns(database: Database) -> None:
    first, second = (submitted_by("two@host", database, 9) for _ in range(2))
    other = submitted_by("one@host", database, 9)
    order = []
    for _ in range(8):  # in each its own second, for which the time of the last one is
        claim = take(database, first.trial_ids[0])
        order.append(claim.search_id)
        end(database, claim)
        with database.write() as connection:
            switch_triggers_off(connection)
            for trial_id, started_at in connection.execute(
                select(Trial.id, Trial.started_at).where(Trial.started_at.is_not(None))
            ).all():
                connection.execute(
                    update(Trial).where(Trial.id == trial_id).values(started_at=started_at - (ago(1) - ago(2)))
                )

    assert order == [first.id, other.id, second.id, other.id] * 2


def test_a_higher_priority_is_first_at_any_time(database: Database) -> None:
    low, high = store_search(database, 9), store_search(database, 3)

    assert searches.set_priority(database, high.id, 5)
    order = drain(database, low.trial_ids[0], 8, 4)
    assert searches.set_priority(database, low.id, -1)

    assert order == [high.id] * 3 + [low.id]
    searches.cancel_search(database, low.id)
    assert high.row().priority == 5
    assert low.row().priority == -1


def test_what_has_ended_gets_no_other_priority(database: Database) -> None:
    search = store_search(database, 1)
    searches.cancel_search(database, search.id)

    assert not searches.set_priority(database, search.id, 5)
    assert search.row().priority == 0


def test_the_trial_of_the_message_is_taken_if_it_is_its_search_s_turn(database: Database) -> None:
    search, other = store_search(database, 3), store_search(database, 3)

    assert take(database, search.trial_ids[1]).trial_id == search.trial_ids[1]
    assert take(database, search.trial_ids[2]).trial_id == other.trial_ids[0]


def test_known_structures_choose_within_the_search_whose_turn_it_is(database: Database) -> None:
    busy, next_one = store_search(database, 4), store_search(database, [{"layers": number} for number in range(4)])
    take(database, busy.trial_ids[0])
    known = [busy.trial(1).structure_digest, next_one.trial(2).structure_digest]

    assert take(database, busy.trial_ids[1], structures=known).trial_id == next_one.trial_ids[2]


def test_a_search_of_which_nothing_can_start_keeps_no_process_from_another(database: Database) -> None:
    backs_off, other = store_search(database, 1), store_search(database, 4)
    set_trial(database, backs_off.trial_ids[0], not_before=ago(-60))
    paused = store_search(database, 4)
    searches.pause_search(database, paused.id)

    assert set(drain(database, paused.trial_ids[0], 4, 4)) == {other.id}


def test_a_process_leaves_its_session_for_a_search_that_waits_or_is_clearly_behind(database: Database) -> None:
    own, other = of_session("own", database, 20), of_session("other", database, 20)
    message = own.trial_ids[0]

    assert take(database, message, session="own").search_id == own.id
    assert take(database, message, session="own").search_id == other.id  # never served
    behind_by = [take(database, message, session="own").search_id for _ in range(1 + fair_share.AHEAD)]
    assert behind_by == [own.id] * fair_share.AHEAD + [other.id]
    with database.write() as connection:  # as if the last one of the other had started long ago
        connection.execute(
            update(Trial).where(Trial.search_id == other.id).values(started_at=ago(fair_share.WAITED_S + 1))
        )
    assert take(database, message, session="own").search_id == other.id
    assert take(database, message).search_id == own.id  # to a process of no session yet, both are the same


@pytest.mark.parametrize(
    ("n_searches", "n_trials"), [(10, 12), pytest.param(100, 1_000, marks=pytest.mark.complete, id="many")]
)
def test_searches_are_drained_with_even_shares(database: Database, n_searches: int, n_trials: int) -> None:
    stored = [store_search(database, n_trials) for _ in range(n_searches)]
    message, n_processes = stored[0].trial_ids[0], 2 * n_searches

    order = drain(database, message, n_processes, n_searches * n_trials)

    assert Counter(order) == {search.id: n_trials for search in stored}
    for done in range(n_processes * 5, len(order), max(1, len(order) // 20)):  # at each moment
        counts = Counter(order[:done])
        assert max(counts.values()) - min(counts.values()) <= max(1, 0.05 * done / n_searches)


def test_shares_stay_even_while_workers_die_and_hand_trials_back(database: Database) -> None:
    stored = [store_search(database, 30) for _ in range(5)]
    message, chance = stored[0].trial_ids[0], random.Random(7)
    running = [take(database, message) for _ in range(8)]
    endings = {
        "recorded": partial(transitions.record, result=result_of(0.5)),
        "its process died": partial(transitions.reap, outcome=Outcome.WORKER_LOST, error="it died", max_failures=3),
        "its worker stopped": transitions.release,
        "handed back": partial(transitions.hand_back, worker_id="node/1", reason="a full disk", error="a full disk"),
    }

    for _ in range(60):
        ending = chance.choices(list(endings), weights=[5, 2, 2, 1])[0]
        claim = running.pop(chance.randrange(len(running)))
        assert endings[ending](database, Held(claim.trial_id, claim.token)), ending
        running.append(take(database, message))

        shares = Counter({search.id: 0 for search in stored})
        shares.update(claim.search_id for claim in running)
        assert max(shares.values()) - min(shares.values()) <= 1, shares


def test_whose_turn_it_is_is_found_without_a_look_at_all_that_is_queued(database: Database) -> None:
    stored = [store_search(database, 300) for _ in range(5)]
    drain(database, stored[0].trial_ids[0], 8, 8)
    asked: list[tuple[str, object]] = []
    if database.dialect == "postgresql":
        with database.write() as connection:
            connection.execute(text("ANALYZE trials"))
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2:4]))
    queue.look(database, stored[0].trial_ids[0])
    statement, parameters = next(one for one in asked if "next_search" in one[0])
    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) "
    with database.read() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(explain + statement, parameters)]

    shown = "\n".join(plan)
    of_trials = [line for line in plan if "trials" in line]
    assert of_trials
    assert not [line for line in of_trials if "SCAN trials" in line or "Seq Scan" in line], shown
    assert [line for line in of_trials if "ix_trials_started" in line], shown
    # SQLite's other index has the trial's id too
    assert [line for line in of_trials if "ix_trials_queued" in line or "ix_trials_search_id_state" in line], shown


#: Old text, new text, and the story that notices it.
MUTANTS: dict[str, tuple[str, str, Callable[[Database], None]]] = {
    "ignores what runs of other searches": (
        "_open.c.n_running * func.count()",
        "func.count()",
        test_a_search_of_long_trials_leaves_half_of_the_processes_to_one_of_short_trials,
    ),
    "ignores whose searches they are": (
        "_open.c.n_running * func.count().over(**_of_user)",
        "_open.c.n_running",
        test_two_users_get_half_of_a_busy_fleet_each_however_many_searches_they_have,
    ),
    "ignores priority": ("of.priority.desc(), ", "", test_a_higher_priority_is_first_at_any_time),
    "ignores when a search was served": (
        "of.served_at.nulls_first(), ",
        "",
        test_a_fleet_of_one_process_takes_users_and_then_their_searches_in_turns,
    ),
    "changes sessions at once": (
        "_is_elsewhere, _AHEAD",
        "_is_elsewhere, _NONE",
        test_a_process_leaves_its_session_for_a_search_that_waits_or_is_clearly_behind,
    ),
    "waits for what can not start": (
        "Trial.state == QUEUED, _IS_DUE",
        "Trial.state == QUEUED",
        test_a_search_of_which_nothing_can_start_keeps_no_process_from_another,
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_these_stories_notice_a_rule_that_is_missing(mutant: str, database: Database) -> None:
    old, new, story = MUTANTS[mutant]
    with mutated(fair_share, old, new), pytest.raises(AssertionError):
        story(database)
