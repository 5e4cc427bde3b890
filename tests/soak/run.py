"""One run: searches come, faults come, then peace, and what the history proves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from tests import history
from tests.history import Expected, Totals, Witness
from tests.soak.measurements import Growth, Meter
from tests.soak.nemesis import Injected, Nemesis
from tests.soak.recoveries import Recovery, recoveries_of_attempts, recoveries_of_faults
from tests.soak.searches import Searches, open_searches
from tests.soak.system import System

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
    witness = Looking(system)
    meter = Meter(system)
    nemesis = Nemesis(system, fleet, seed)
    begin = time.monotonic()
    run_for(minutes * 60, system.tick, searches.tick, nemesis.tick, meter.tick, witness.tick)
    system.heal()
    faults_end = time.monotonic()
    still_open = wait_for_rest(system, fleet, PEACE_S, meter.tick, witness.tick)
    seconds_to_rest = time.monotonic() - faults_end
    expected = searches.expected()
    growths = meter.growths()
    too_much = [growth for growth in growths if growth.is_too_much]
    violations = [
        *(["no search was accepted, so nothing was shown"] if not expected else []),
        *(f"search {name!r} has not ended {PEACE_S:g} s after the last fault (I12)" for name in still_open),
        *judge(system, expected, witness.witness),
        *(f"the {growth.what} grew from {growth.first:.0f} to {growth.last:.0f}" for growth in too_much),
    ]
    return Outcome(
        seed=seed,
        minutes=(faults_end - begin) / 60,
        seconds_to_rest=seconds_to_rest,
        injected=nemesis.injected,
        skipped=nemesis.skipped,
        refused=searches.refused,
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


def wait_for_rest(system: System, fleet: Fleet, patience_s: float, *ticks: Callable[[], None]) -> list[str]:
    """Wait until all searches have ended; returns those that have not within some seconds."""
    until = time.monotonic() + patience_s
    while True:
        run_for(TICK_S, system.tick, *ticks)
        still_open = open_searches(fleet)
        if not still_open or time.monotonic() > until:
            return still_open


def judge(system: System, expected: Sequence[Expected], witness: Witness) -> list[str]:
    """Stop the workers and return what of the invariants does not hold."""
    system.stop()
    return [
        *history.check(system.database, expected, max_failures=system.settings.max_failures),
        *witness.changes(system.database),
        *(f"process {pid} outlived its worker" for pid in system.orphans()),
        *(["a worker loaded a pickle from the queue"] if system.proof.exists() else []),
    ]
