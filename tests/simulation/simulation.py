"""One life of a fleet, drawn from a seed: searches, faults, users; then the faults stop and everything must end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence

from gridfleet.scheduler.fleet import reconciler
from tests.simulation import processes
from tests.simulation.checker import OF_ANOTHER_PYTHON, Checker
from tests.simulation.faulty_broker import FaultyBroker
from tests.simulation.faulty_database import RandomFaults
from tests.simulation.turns import Actor, Crash, InvariantError, Life, Turns, hold
from tests.simulation.world import World

#: Name the first seed and their number.
SEED_VARIABLE = "GRIDFLEET_SEED"
SEEDS_VARIABLE = "GRIDFLEET_SEEDS"
N_SEEDS = 100
#: What evaluating a trial comes to, by weight, and once the faults have stopped.
ENDS = {
    "score": 60,
    "error": 12,
    "nan": 4,
    "no memory": 5,
    "bad payload": 2,
    "defect": 2,
    "sys.exit": 2,
    "death": 9,
    "hang": 5,
    "hang, deaf": 3,
    "standstill": 18,
}
#: Seconds between passes of a reconciler at most.
LONGEST_PAUSE_S = 60.0
#: What no search of a simulation is of.
OTHER_PYTHON = "3.99"
QUIET_ENDS = {"score": 8, "error": 1, "nan": 1}
#: Seconds within which everything ends once the faults have stopped: a trial may have to be tried twice more,
#: each time after its lease, its backoff and the longest wait for a message that got lost before.
BOUND_S = 3 * 3_600.0


def seeds() -> range:
    """Return the seeds that the variables ask for: by default always the same."""
    first = int(os.environ.get(SEED_VARIABLE, "1"))
    return range(first, first + int(os.environ.get(SEEDS_VARIABLE, str(N_SEEDS))))


class Simulation:
    """A fleet, its users and what goes wrong.

    Parameters
    ----------
    world : World
        The database, emptied.
    seed : int
        Decides everything.
    """

    #: seconds for which late messages and zombies are waited for when everything has ended
    afterwards_s = 350.0

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.is_faulty = True
        world.database.forget()
        self.checker = Checker(
            world.database, max_failures=world.settings.max_failures, lease_s=world.settings.lease_s, say=self.say
        )
        self.turns = Turns(self.checker.look)
        self.faults = RandomFaults(
            self.random,
            self.turns,
            self.say,
            per_mille=self.random.choice((0, 100, 300)),
            stalls_per_mille=self.random.choice((0, 20, 80)),
            slowest_s=self.random.choice((0.1, 3.0, 15.0)),
        )
        self.broker = FaultyBroker(
            self.turns,
            self.random,
            self.say,
            require_stored=self.checker.require_stored,
            latency_s=self.faults.latency_s,
        )
        world.database.turns, world.database.faults = self.turns, self.faults
        world.evaluate = lambda process: processes.evaluation(self, process)
        self.nodes: list[processes.Node] = []

    def say(self, what: str) -> None:
        """Write a line of the log."""
        actor = self.turns.current
        self.log.append(f"{self.turns.now_s:10.3f}  {actor.name if actor else '-':<16}{what}")

    def begin(self, what: str) -> None:
        """Note that the present actor begins something, which may go wrong."""
        self.say(what)
        self.faults.begin_operation()

    def draw_end(self) -> tuple[str, float]:
        """Draw what an evaluation comes to, and how long it takes."""
        if not self.is_faulty:
            return self.random.choices(list(QUIET_ENDS), list(QUIET_ENDS.values()))[0], 5.0
        end = self.random.choices(list(ENDS), list(ENDS.values()))[0]
        return end, self.random.choice((1.0, 5.0, 40.0, 90.0))

    def run(self) -> list[str]:
        """Live this life; returns its log.

        Raises
        ------
        InvariantError
            With the seed, the log and the command that does it again.
        """
        self.turns.start("story", self._story, role="story")
        try:
            self.turns.run()
        except InvariantError as error:
            raise InvariantError(self._report(str(error))) from error
        return self.log

    def _report(self, what: str) -> str:
        log = "\n".join(self.log)
        return f"seed {self.seed}\n{log}\n\n{what}\n\nonce more: make simulate SEED={self.seed}"

    def _story(self) -> None:
        draw = self.random
        self.nodes = [processes.Node(self, "a", 2), processes.Node(self, "b", 1)][: draw.choice((1, 2, 2))]
        if draw.random() < 0.2:
            self.nodes.append(processes.Node(self, OF_ANOTHER_PYTHON, 1, python=OTHER_PYTHON))
        for number in range(draw.choice((1, 1, 1, 2))):
            self.turns.start(
                f"reconciler {number}",
                lambda number=number: self._reconcile(number == 0),
                role="reconciler",
                delay_s=draw.uniform(0, 20),
            )
        for number in range(draw.choice((1, 1, 2))):
            self._start("submit", f"client {number}", self._submit, draw.choice((0, 0, 60)))
        until_s = draw.uniform(80, 350)
        while self.turns.now_s < until_s:
            self.turns.pause(draw.expovariate(1 / 25))
            for _ in range(draw.choice((1, 1, 2, 3))):
                draw.choice(self._faults())()
        self._heal()
        self._wait_for_the_end()
        self.turns.end()

    def _start(self, role: str, name: str, act: Callable[[], None], delay_s: float = 0) -> Actor:
        return self.turns.start(name, act, role=role, delay_s=delay_s)

    def _submit(self) -> None:
        draw = self.random
        processes.submit(
            self,
            draw.choice((1, 2, 3, 6, 6)),
            trial_timeout=draw.choice((None, None, None, 30.0)),
            search_timeout=draw.choice((None, None, None, 30.0, 100.0)),
            for_real=draw.random() < 0.05,
        )

    def _reconcile(self, is_first: bool) -> None:
        settings = self.world.settings.replace(reconcile_s=LONGEST_PAUSE_S)
        one = reconciler.Reconciler(settings, self.world.database, self.broker)
        one._wait_for_a_lease()  # as a scheduler does that starts
        n_quiet = 0
        while self.is_faulty or is_first:
            self.begin("reconciles")
            try:
                self.say(str(one.try_once()))
            except Crash:
                self.say("is dead")
                self.turns.me.life = Life("reconciler")
            n_quiet += not self.is_faulty
            if n_quiet < 2:
                self.turns.pause(self.random.uniform(12, LONGEST_PAUSE_S))
            else:  # passes that find nothing only take time; it must not take itself for one that was away
                self.turns.pause(300)
                one = reconciler.Reconciler(settings, self.world.database, self.broker)

    def _faults(self) -> Sequence[Callable[[], None]]:
        node = self.random.choice(self.nodes)
        return (
            self._erase,
            self._break_broker,
            self._break_database,
            self._deliver_old_messages,
            lambda: self._kill(node),
            lambda: self._deploy(node),
            lambda: self._break_cache(node),
            self._fall_asleep,
            *[self._ask] * 3,
        )

    def _erase(self) -> None:
        self.say("FLUSHALL")
        self.broker.erase()

    def _break_broker(self) -> None:
        seconds = self.random.uniform(1, 60)
        self.say(f"the broker is down for {seconds:.0f} s")
        self.broker.go_down(seconds)

    def _break_database(self) -> None:
        seconds = self.random.uniform(1, 40)
        self.say(f"the database is down for {seconds:.0f} s")
        self.faults.is_down_until_s = self.turns.now_s + seconds

    def _deliver_old_messages(self) -> None:
        self.say("old messages come once more, and one that nobody sent")
        for trial_id in [*self.broker.history[-3:], 2**40]:
            self.broker.push(trial_id)

    def _kill(self, node: processes.Node) -> None:
        self.say(f"kill -9 {node.name} main")
        node.kill()

    def _break_cache(self, node: processes.Node) -> None:
        node.is_broken = not node.is_broken
        self.say(f"the cache of {node.name} is {'full' if node.is_broken else 'empty'}")

    def _fall_asleep(self) -> None:
        seconds = self.random.uniform(LONGEST_PAUSE_S + 30, 300)
        self.say(f"the machine sleeps for {seconds:.0f} s")
        self.turns.sleep(seconds)

    def _deploy(self, node: processes.Node) -> None:
        self._start("main", f"{node.name} main", node.leave)

    def _ask(self) -> None:
        draw = self.random
        failed = [row.search_id for row in self.checker.trials.values() if row.state == "failed"]
        if failed and draw.random() < 0.5:
            self._ask_of(draw.choice(failed), "retry")
        elif self.checker.searches:
            self._ask_of(
                draw.choice(list(self.checker.searches)), draw.choice(("cancel", "pause", "pause", "resume", "resume"))
            )

    def _ask_of(self, search_id: int, wish: str) -> None:
        self._start(wish, "user", lambda: processes.ask(self, wish, search_id))

    def _heal(self) -> None:
        self.say("the faults stop")
        self.is_faulty = self.broker.is_faulty = False
        self.faults.per_mille = self.faults.stalls_per_mille = 0
        self.faults.is_down_until_s = 0.0
        self.faults.slowest_s = 0.1
        for node in self.nodes:
            node.is_broken = False
        self.broker.come_up()

    def _wait_for_the_end(self) -> None:
        until_s = self.turns.now_s + BOUND_S
        ended_at_s = self.turns.now_s
        while self.turns.now_s < ended_at_s + self.afterwards_s:
            self.turns.pause(60)
            for search in self.checker.searches.values():
                if search.paused_at is not None and search.finished_at is None:
                    self._ask_of(search.id, "resume")
            if not self.checker.is_quiet():
                ended_at_s = self.turns.now_s
                hold(ended_at_s < until_s, f"I12: not at its end after {BOUND_S:.0f} s", *self.checker.open_rows())
