"""What the simulations are worth: production code without one of its guards is found out, mostly within a few seeds."""

from __future__ import annotations

import pytest

import gridfleet.scheduler.fleet.connection
import gridfleet.scheduler.fleet.reconciler
import gridfleet.scheduler.submission.store
import gridfleet.storage.searches
import gridfleet.storage.statements
import gridfleet.storage.trials.claims
import gridfleet.storage.trials.fair_share
import gridfleet.storage.trials.held
import gridfleet.storage.trials.queue
import gridfleet.storage.trials.transitions
import gridfleet.worker.broker.top_up
import gridfleet.worker.main_process.watchdog
from tests.mutants import mutated
from tests.simulation.simulation import Simulation
from tests.simulation.turns import InvariantError
from tests.simulation.world import World

#: Seeds after which a mutant counts as not found.
MAX_SEEDS = 2_000
#: Module, old text, new text.
MUTANTS = {
    "writes without a token": (gridfleet.storage.trials.held, ", Trial.token == token)", ")"),
    "claims whatever the state": (
        gridfleet.storage.trials.queue,
        '.where(Trial.id == bindparam("hinted_id"), WAITS)',
        '.where(Trial.id == bindparam("hinted_id"), *WAITS.clauses[1:])',
    ),
    "takes the next one whatever its state": (
        gridfleet.storage.trials.claims,
        "[queue.WAITING_OF_SEARCH] if n_structures is None else queue.waiting_of_structures(n_structures)",
        '[select(Trial.id).where(Trial.search_id == bindparam("searched_id")).limit(1)]',
    ),
    "claims what is paused": (gridfleet.storage.statements, ", ~IS_PAUSED)", ")"),
    "attempts left open": (
        gridfleet.storage.trials.transitions,
        "_close_attempt(connection, held, Outcome.RELEASED, error)",
        "pass",
    ),
    "an attempt opened in a transaction of its own": (
        gridfleet.storage.trials.claims,
        "        _open_attempt(connection, holder, row, wanted)\n        search",
        (
            "    with database.write() as connection:\n"
            "        _open_attempt(connection, holder, row, wanted)\n        search"
        ),
    ),
    "the next one's attempt not opened": (
        gridfleet.storage.trials.claims,
        "    _open_attempt(connection, holder, row, limits)\n    #",
        "    #",
    ),
    "scores in a transaction of their own": (
        gridfleet.storage.trials.transitions,
        "        insert_all(connection, SplitScore",
        "    with database.write() as connection:\n        insert_all(connection, SplitScore",
    ),
    "failures not counted": (
        gridfleet.storage.trials.transitions,
        "failures=Trial.failures + 1",
        "failures=Trial.failures",
    ),
    "a reaper that trusts what it read": (
        gridfleet.storage.trials.held,
        "return bool(is_over) or lost is not None",
        "return True",
    ),
    "leases left behind": (
        gridfleet.storage.trials.transitions,
        "        end_lease(connection, held)\n        insert_all",
        "        insert_all",
    ),
    "cancelled trials queued again": (
        gridfleet.storage.trials.transitions,
        (
            "update_held(held.trial_id, held.token).values(\n                state="
            "case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED)"
        ),
        "update_held(held.trial_id, held.token).values(\n                state=TrialState.QUEUED",
    ),
    "searches finished early": (
        gridfleet.storage.searches,
        'Trial.search_id == bindparam("wanted_id"), Trial.state.between(min(OPEN_STATES), max(OPEN_STATES))',
        "Trial.id < 0",
    ),
    "old scores kept at a retry": (
        gridfleet.storage.searches,
        "for table in (SplitScore, Curve, TrialWarning, Report):",
        "for table in (Curve, TrialWarning, Report):",
    ),
    "published before the commit": (
        gridfleet.scheduler.submission.store,
        "        queue.create_trials(connection, search_id, candidates.params, queue.Reuse(keys, taken))\n",
        "        queue.create_trials(connection, search_id, candidates.params); fleet.publish([1])\n",
    ),
    "noted as published, sent or not": (
        gridfleet.scheduler.fleet.connection,
        "return False\n        with",
        "pass\n        with",
    ),
    "noted before it is sent": (
        gridfleet.worker.broker.top_up,
        "publisher.publish(trial_ids)\n    queue.mark_published(database, trial_ids)",
        "queue.mark_published(database, trial_ids)\n    publisher.publish(trial_ids)",
    ),
    "nothing published again": (gridfleet.storage.trials.queue, " and lost_before is not None:", " and False:"),
    "only what was sent published again": (
        gridfleet.storage.trials.queue,
        "Trial.published_at.is_(None)).order_by(Trial.published_at, Trial.id)",
        "Trial.id < 0).order_by(Trial.published_at, Trial.id)",
    ),
    "nothing taken back": (
        gridfleet.scheduler.fleet.reconciler,
        "    def _take_back(self) -> int:\n",
        "    def _take_back(self) -> int:\n        return 0\n",
    ),
    "all trials of a dead worker charged": (
        gridfleet.scheduler.fleet.reconciler,
        "if not held.is_overdue and lost_together",
        "if held.is_overdue and lost_together",
    ),
    "what a worker hands back charged": (
        gridfleet.storage.trials.transitions,
        "error_type=Outcome.HANDED_BACK,",
        "error_type=Outcome.HANDED_BACK, failures=Trial.failures + 1,",
    ),
    "claims whatever the Python": (
        gridfleet.storage.trials.fair_share,
        "Search.paused_at.is_(None), IS_FOR_PYTHON)",
        "Search.paused_at.is_(None))",
    ),
    "judges as soon as it wakes up": (
        gridfleet.scheduler.fleet.reconciler,
        "return now_s >= self._waits_until",
        "return True",
    ),
    "searches left unfinished": (
        gridfleet.scheduler.fleet.reconciler,
        "    def _finish(self) -> int:\n",
        "    def _finish(self) -> int:\n        return 0\n",
    ),
    "neighbours of the dead taken back": (
        gridfleet.worker.main_process.watchdog,
        "for pid, _ in held if pid not in alive",
        "for pid, _ in held",
    ),
}


@pytest.mark.complete
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulations_find_a_guard_that_is_missing(mutant: str, empty_world: World) -> None:
    with mutated(*MUTANTS[mutant]), empty_world.installed(), pytest.raises(InvariantError):
        simulate(empty_world)


def simulate(world: World) -> None:
    for seed in range(1, MAX_SEEDS + 1):
        Simulation(world, seed).run()
