"""A broker that drops, repeats, delays and reorders messages, forgets all of them, and is down for a while."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as BrokerDown
from redis.exceptions import TimeoutError as BrokerSilent

from tests.simulation.turns import Actor, InvariantError, Turns

#: Seconds after which a late copy of a message arrives at the latest.
LATEST_S = 300
#: Messages that may wait: fewer than the largest search has trials.
MOST = 4


class FaultyBroker:
    """What `gridfleet.worker.broker.publisher.Publisher` is to the fleet, and a queue that workers receive from.

    Parameters
    ----------
    turns : Turns
        The clock.
    random : random.Random
        What draws the faults.
    say : callable
        Writes the log.
    require_stored : callable
        Raises `InvariantError` if a trial is not committed.
    latency_s : callable
        Draws the seconds that a call takes.
    """

    def __init__(
        self,
        turns: Turns,
        random: random.Random,
        say: Callable[[str], None],
        *,
        require_stored: Callable[[int], None],
        latency_s: Callable[[], float],
    ) -> None:
        self.is_faulty = True
        self.is_down = False
        self.queue: list[int] = []
        #: every message ever sent: a copy of any may come again
        self.history: list[int] = []
        self._turns = turns
        self._random = random
        self._say = say
        self._require_stored = require_stored
        self._latency_s = latency_s
        self._waiting: list[Actor] = []

    def publish(self, trial_ids: Sequence[int]) -> None:
        """Take messages, or fail before, amid or after that."""
        try:
            for trial_id in trial_ids:
                self._require_stored(trial_id)
        except InvariantError as error:
            self._turns.fail(error)
        self._turns.pause(self._latency_s())
        self._require_up()
        draw = self._random.random() if self.is_faulty else 1.0
        arrives = trial_ids[: len(trial_ids) // 2] if draw < 0.03 else trial_ids
        self._say(f"sends {list(arrives)}")
        for trial_id in arrives:
            self.history.append(trial_id)
            self._turns.me.sent.add(trial_id)
            for delay_s in self._copies():
                self._turns.later(delay_s, lambda trial_id=trial_id: self.push(trial_id))
        if draw < 0.06:
            raise BrokerSilent("no answer")

    def room(self) -> int:
        """Return how many more messages may wait."""
        self._turns.pause(self._latency_s())
        self._require_up()
        return max(0, MOST - len(self.queue))

    def oldest(self) -> int | None:
        """Return the trial of the message that has waited longest."""
        self._turns.pause(self._latency_s())
        self._require_up()
        return self.queue[0] if self.queue else None

    def receive(self) -> int:
        """Wait for a message; on its way to the worker it may get lost."""
        while True:
            while self.is_down or not self.queue:
                self._waiting.append(self._turns.me)
                self._turns.park()
            message = self.queue.pop(self._random.randrange(len(self.queue)) if self.is_faulty else 0)
            self._turns.pause(self._latency_s())
            if self.is_faulty and self._random.random() < 0.05:
                self._say(f"the message {message} is lost on its way")
                continue
            return message

    def push(self, trial_id: int) -> None:
        """Put a message into the queue."""
        if self.is_down:
            return
        self.queue.append(trial_id)
        self._wake()

    def erase(self) -> None:
        """Forget all messages: FLUSHALL."""
        self.queue.clear()

    def go_down(self, seconds: float) -> None:
        """Fail for some seconds; half of the time, what is queued is lost too."""
        self.is_down = True
        if self._random.random() < 0.5:
            self.queue.clear()
        self._turns.later(seconds, self.come_up)

    def come_up(self) -> None:
        """Answer again."""
        self.is_down = False
        for _ in self.queue:
            self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._turns.wake(self._waiting.pop(0), 0.001)

    def _copies(self) -> list[float]:
        if not self.is_faulty:
            return [0.001]
        draw = self._random.random()
        if draw < 0.12:
            return []
        late: Any = self._random.uniform(1, LATEST_S)
        return [0.001] if draw < 0.7 else [0.001, 0.001] if draw < 0.8 else [0.001, late] if draw < 0.9 else [late]

    def _require_up(self) -> None:
        if self.is_down:
            raise BrokerDown("the broker is down")
