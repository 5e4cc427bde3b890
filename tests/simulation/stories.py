"""Lives of a fleet without chance: what happens is written down, and exactly one fault, at the n-th statement."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation import processes
from tests.simulation.faulty_database import FaultAt
from tests.simulation.simulation import Simulation
from tests.simulation.world import World


@dataclass(frozen=True)
class Story:
    """What happens.

    Parameters
    ----------
    ends : tuple of str
        What the first evaluations come to (`processes.ENDS`); all later ones give a score.
    seconds : float, default=5.0
        How long they take.
    events : tuple of (float, str), default=()
        Seconds and a user's wish, ``deploy`` or ``erase``.
    trial_timeout, search_timeout : float, default=None
        Of the search.
    is_submitted_for_real : bool, default=False
        Whether by `submission.store`, whose statements are hit in one story only: it takes its time.
    n_trials : int, default=2
        Of the search. A worker goes on from one to the next for `GO_ON_S` at a message.
    """

    ends: tuple[str, ...]
    seconds: float = 5.0
    events: tuple[tuple[float, str], ...] = ()
    trial_timeout: float | None = None
    search_timeout: float | None = None
    is_submitted_for_real: bool = False
    n_trials: int = 2


#: Together they take every way of a trial and of a search.
STORIES = {
    "a search": Story(("score", "score"), is_submitted_for_real=True),
    "a search that has fewer processes than trials": Story(("score", "error"), seconds=2.0, n_trials=4),
    "failures, tried again": Story(("error", "nan", "score"), events=((40, "retry"),)),
    "deaths": Story(("death", "no memory", "bad payload")),
    "a cancelled search": Story(("hang", "score"), events=((12, "cancel"),)),
    "a paused search": Story(("score", "death"), events=((3, "pause"), (60, "resume"))),
    "a deploy": Story(("hang", "score"), events=((9, "deploy"),)),
    "an erased broker": Story(("score", "score"), events=((0.5, "erase"),)),
    "trials that take too long": Story(("hang", "score"), events=((90, "retry"),), trial_timeout=30.0),
    "a search that takes too long": Story(("hang", "hang"), search_timeout=40.0),
    "a stopped search, tried again": Story(("error",), seconds=20.0, events=((50, "retry"),), search_timeout=5.0),
}


class ScriptedSimulation(Simulation):
    """A simulation of a story.

    Parameters
    ----------
    world : World
        The database, emptied.
    story : str
        One of `STORIES`.
    n : int
        At which point in the life of the database the fault is; beyond the last one: none.
    kind : str
        ``crash`` or ``outage``.
    """

    afterwards_s = 60.0

    def __init__(self, world: World, story: str, n: int, kind: str) -> None:
        super().__init__(world, seed=0)
        self.script = STORIES[story]
        self._ends = list(self.script.ends)
        self._title = f"{story}, {kind} at point {n}"
        self.is_faulty = self.broker.is_faulty = False
        self.at = FaultAt(n, kind, self.turns, self.say)
        world.database.faults = self.at

    def was_struck(self) -> bool:
        """Whether the fault has happened: not if its point is beyond the story's end."""
        return self.at.points >= self.at.n

    def draw_end(self) -> tuple[str, float]:
        """Return what the next evaluation comes to, and how long it takes."""
        return (self._ends.pop(0) if self._ends else "score"), self.script.seconds

    def _report(self, what: str) -> str:
        log = "\n".join(self.log)
        return f"{self._title}\n{log}\n\n{what}"

    def _story(self) -> None:
        self.nodes = [processes.Node(self, "a", 2)]
        self.turns.start("reconciler", lambda: self._reconcile(True), role="reconciler", delay_s=17)
        self._start("submit", "client", self._submit_told)
        for at_s, event in self.script.events:
            self.turns.later(at_s, lambda event=event: self._happen(event))
        self.turns.pause(max([100.0, *(at_s for at_s, _ in self.script.events)]))
        self._wait_for_the_end()
        self.turns.end()

    def _submit_told(self) -> None:
        script = self.script
        processes.submit(
            self,
            script.n_trials,
            trial_timeout=script.trial_timeout,
            search_timeout=script.search_timeout,
            for_real=script.is_submitted_for_real,
        )

    def _happen(self, event: str) -> None:
        if event == "erase":
            self._erase()
        elif event == "deploy":
            self._deploy(self.nodes[0])
        elif self.checker.searches:
            self._ask_of(1, event)
