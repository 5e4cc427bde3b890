"""One run: searches come, faults come, then peace, and what the history proves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from tests import history
from tests.history import Expected, Gone, Totals, Witness
from tests.soak.measurements import Growth, Meter
from tests.soak.nemesis import Injected, Nemesis
from tests.soak.recoveries import Recovery, recoveries_of_attempts, recoveries_of_faults
from tests.soak.searches import Searches, open_searches
from tests.soak.system import System
from tests.soak.users import Users

#: Seconds between two looks at everything.
TICK_S = 0.1
#: Seconds between looks at which trials have ended.
WITNESS_S = 10.0
#: Seconds in which all searches must end once there are no more faults: three leases and backoffs, and TensorFlow's
#: imports on a busy machine.
PEACE_S = 600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    minutes: float
    seconds_to_rest: float
    injected: Sequence[Injected]
    skipped: int
    refused: int
    done: Mapping[str, int]
    refused_actions: Mapping[str, int]
    restarts: dict[str, int]
    totals: Totals
    recoveries: Sequence[Recovery]
    tried_again: Sequence[Recovery]
    growths: Sequence[Growth]
    violations: Sequence[str]


def soak(system: System, fleet: Fleet, *, seed: int, minutes: float) -> Outcome:
    """Let searches and faults come for some minutes, wait until all searches have ended, and judge.

    The system is stopped afterwards.
    """
    searches = Searches(fleet, seed)
    users = Users(system, fleet, searches, seed)
    witness = Looking(system)
    meter = Meter(system)
    nemesis = Nemesis(system, fleet, seed)
    begin = time.monotonic()
    run_for(minutes * 60, system.tick, searches.tick, users.tick, nemesis.tick, meter.tick, witness.tick)
    system.heal()
    faults_end = time.monotonic()
    still_open = wait_for_rest(
        system, fleet, PEACE_S, users.tick_at_peace, meter.tick, witness.tick, may_rest=users.are_idle
    )
    seconds_to_rest = time.monotonic() - faults_end
    expected = searches.expected(users.gone.search_ids)
    growths = meter.growths()
    too_much = [growth for growth in growths if growth.is_too_much]
    violations = [
        *(["no search was accepted, so nothing was shown"] if not expected else []),
        *(f"search {name!r} has not ended {PEACE_S:g} s after the last fault (I12)" for name in still_open),
        *users.violations(),
        *judge(system, expected, witness.witness, users.gone),
        *(f"the {growth.what} grew from {growth.first:.0f} to {growth.last:.0f}" for growth in too_much),
    ]
    return Outcome(
        seed=seed,
        minutes=(faults_end - begin) / 60,
        seconds_to_rest=seconds_to_rest,
        injected=nemesis.injected,
        skipped=nemesis.skipped,
        refused=searches.refused,
        done=users.done,
        refused_actions=users.refused,
        restarts={service.name: service.starts - 1 for service in system.services},
        totals=history.totals(system.database, expected),
        recoveries=recoveries_of_faults(system.database, nemesis.injected),
        tried_again=recoveries_of_attempts(system.database),
        growths=growths,
        violations=violations,
    )


class Looking:
    """Shows a witness the trials that have ended, every few seconds."""

    def __init__(self, system: System) -> None:
        self.witness = Witness()
        self._system = system
        self._next_at = 0.0

    def tick(self) -> None:
        """Look if it is time."""
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + WITNESS_S
        with suppress(SQLAlchemyError):  # a fault is on; the next look sees these trials too
            self.witness.look(self._system.database)


def run_for(seconds: float, *ticks: Callable[[], None]) -> None:
    """Call functions again and again for some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for tick in ticks:
            tick()
        time.sleep(TICK_S)


def wait_for_rest(
    system: System,
    fleet: Fleet,
    patience_s: float,
    *ticks: Callable[[], None],
    may_rest: Callable[[], bool] = lambda: True,
) -> list[str]:
    """Wait until all searches have ended, and nothing else is on its way; returns those that have not."""
    until = time.monotonic() + patience_s
    while True:
        run_for(TICK_S, system.tick, *ticks)
        try:
            still_open = open_searches(fleet)
        except SQLAlchemyError:  # the last fault is just over
            if time.monotonic() > until:
                raise
            continue
        if (not still_open and may_rest()) or time.monotonic() > until:
            return still_open


def judge(system: System, expected: Sequence[Expected], witness: Witness, gone: Gone | None = None) -> list[str]:
    """Stop the workers and return what of the invariants does not hold."""
    system.stop()
    gone = gone or Gone()
    resumed = {search.search_id for search in expected if search.n_resumes}
    return [
        *history.check(system.database, expected, max_failures=system.settings.max_failures),
        *history.leftovers(system.database, gone),
        *witness.changes(system.database, resumed, gone.search_ids),
        *(f"process {pid} outlived its worker" for pid in system.orphans()),
        *(["a worker loaded a pickle from the queue"] if system.proof.exists() else []),
    ]
