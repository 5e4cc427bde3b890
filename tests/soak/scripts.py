"""Scripts of users that are killed in the middle of their searches, started again, and come to the same end."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

from tests.soak.script import OTHER_SCORES
from tests.soak.searches import Searches, Submitted
from tests.soak.system import Service, System

#: Seconds after its start at which a script is killed, and how often that happens to one.
KILLED_AFTER_S = (3.0, 15.0)
KILLS = (1, 3)
#: Seconds until one that was killed, or met a broken part, is started again; and between one and the next.
AGAIN_S = (0.2, 3.0)
BETWEEN_S = 10.0


@dataclass(slots=True)
class Running:
    """A script, and how often it is to be killed yet."""

    submitted: Submitted
    service: Service
    kills: int
    kill_at: float
    again_at: float | None = None
    was_killed: bool = False


class Scripts:
    """Runs one script after the other and kills it a few times, by SIGKILL.

    Parameters
    ----------
    system : System
        Where they run.
    searches : Searches
        Where their searches are noted.
    seed : int
        The same seed kills after the same seconds.
    """

    def __init__(self, system: System, searches: Searches, seed: int) -> None:
        self._system = system
        self._searches = searches
        self._random = random.Random(f"{seed}: scripts")
        self._running: Running | None = None
        self._next_at = time.monotonic()
        self._violations: list[str] = []
        self.done: Counter[str] = Counter()

    def tick(self) -> None:
        """Start a script if none runs, and kill it if it is time."""
        if self._running is None and time.monotonic() >= self._next_at:
            self._begin()
        self._look()

    def tick_at_peace(self) -> None:
        """Let the script that runs come to its end."""
        if self._running is not None:
            self._running.kills = 0
        self._look()

    def are_idle(self) -> bool:
        """Whether no script is on its way."""
        return self._running is None

    def violations(self) -> list[str]:
        """Tell which scripts got other scores than scikit-learn's, or did not come to their end."""
        if self._running is None:
            return self._violations
        return [*self._violations, f"a script did not come to its end: {self._last_words(self._running)}"]

    def _begin(self) -> None:
        submitted = self._searches.of_script()
        command = (sys.executable, "-m", "tests.soak.script", submitted.name, str(submitted.number))
        service = self._system.start_script(f"script {submitted.number}", command)
        self._running = Running(submitted, service, self._random.randint(*KILLS), self._kill_at())

    def _look(self) -> None:
        one = self._running
        if one is None:
            return
        status = one.service.process.poll()
        if status is None:
            if one.kills and time.monotonic() >= one.kill_at:
                one.service.process.kill()
                one.kills -= 1
                one.was_killed = True
                self.done["script killed"] += 1
        elif status in (0, OTHER_SCORES):
            self._end(one, status)
        elif one.again_at is None:
            self.done["script ended by a fault"] += not one.was_killed
            one.again_at = time.monotonic() + self._random.uniform(*AGAIN_S)
        elif time.monotonic() >= one.again_at:
            one.service.start()
            one.submitted.n_resumes += 1
            one.again_at, one.was_killed, one.kill_at = None, False, self._kill_at()
            self.done["script started again"] += 1

    def _end(self, one: Running, status: int) -> None:
        self._running = None
        self._next_at = time.monotonic() + BETWEEN_S
        self.done["script that came to its end"] += 1
        if status == OTHER_SCORES:
            self._violations.append(f"script {one.submitted.number}: {self._last_words(one)}")

    def _kill_at(self) -> float:
        return time.monotonic() + self._random.uniform(*KILLED_AFTER_S)

    def _last_words(self, one: Running) -> str:
        lines = one.service.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"
