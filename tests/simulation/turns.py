"""Actors that take turns by a virtual clock: threads of which exactly one runs, in an order that a seed decides."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

#: Characters of a row that are shown; tracebacks come last.
MAX_DETAIL = 900


class Crash(BaseException):
    """The operating system process of the running actor was killed."""


class Over(BaseException):
    """The simulation has ended; unwinds the actors that are left."""


class InvariantError(AssertionError):
    """An invariant does not hold."""


@dataclass(eq=False)
class Life:
    """An operating system process: all its actors stand still together, and die together."""

    name: str
    is_dead: bool = False
    stalled_until_s: float = 0.0
    #: when it woke up last with the machine that it runs on
    slept_until_s: float = -1_000.0
    fell_asleep_s: float = -1_000.0
    #: the actor that is its main thread, and what that does at a signal
    main: Actor | None = None
    on_signal: Callable[[], None] | None = None
    #: whether it holds no trial, and its threads that wait for one
    is_idle: bool = True
    idle: list[Actor] = field(default_factory=list)
    #: of a worker process: what it shows its main process, and what that does when it begins a trial
    sign: Any = None
    on_begin: Callable[[], None] = lambda: None


@dataclass(eq=False)
class Actor:
    """What does one thing after another: a worker process, its heartbeat, a reconciler, a user."""

    name: str
    role: str
    life: Life
    #: what a signal handler would do, before the actor's next step
    interrupt: Callable[[], None] | None = None
    #: trials that it sent messages for and did not note as published yet
    sent: set[int] = field(default_factory=set)
    #: whether it may end what a worker process of this id holds
    speaks_for: Callable[[str], bool] = lambda _: False
    gate: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None


class Turns:
    """The agenda and the clock.

    Parameters
    ----------
    after_turn : callable
        Called with the actor after each of its turns; what it raises ends the simulation.
    """

    def __init__(self, after_turn: Callable[[Actor], None]) -> None:
        self.now_s = 0.0
        self.current: Actor | None = None
        self._after_turn = after_turn
        self._agenda: list[tuple[float, int, Actor | Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._actors: list[Actor] = []
        self._main = threading.Lock()
        self._main.acquire()
        self.is_over = self._is_unwinding = False
        self._failure: BaseException | None = None

    @property
    def me(self) -> Actor:
        """The actor whose turn it is."""
        assert self.current is not None
        return self.current

    def start(
        self, name: str, act: Callable[[], None], *, role: str, life: Life | None = None, delay_s: float = 0
    ) -> Actor:
        """Put a new actor on the agenda."""
        actor = Actor(name, role, life or Life(name))
        actor.gate.acquire()
        actor.thread = threading.Thread(target=self._live, args=(actor, act), name=name, daemon=True)
        self._actors.append(actor)
        actor.thread.start()
        self.wake(actor, delay_s)
        return actor

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Put something on the agenda that takes no time and touches no database."""
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._numbers), call))

    def wake(self, actor: Actor, delay_s: float = 0) -> None:
        """Put an actor that is parked on the agenda."""
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._numbers), actor))

    def pause(self, seconds: float) -> None:
        """Let the others go on for some virtual seconds."""
        self.wake(self.me, seconds)
        self.park()

    def park(self) -> None:
        """Let the others go on until somebody wakes this actor."""
        me = self.me
        self._end_turn(me)
        following = self._next()
        self.current = following
        if following is not me:
            (following.gate if following else self._main).release()
            me.gate.acquire()
        if self.is_over:
            raise Over
        if me.life.is_dead:
            raise Crash(me.life.name)
        if me.interrupt is not None:
            call, me.interrupt = me.interrupt, None
            call()

    def sleep(self, seconds: float) -> None:
        """Let all processes that live stand still, as on a machine that sleeps."""
        until_s = self.now_s + seconds
        for actor in self._actors:
            actor.life.stalled_until_s = max(actor.life.stalled_until_s, until_s)
            actor.life.slept_until_s = until_s
            actor.life.fell_asleep_s = self.now_s

    def end(self) -> None:
        """End the simulation."""
        self.is_over = True
        raise Over

    def fail(self, error: BaseException) -> None:
        """End the simulation with an error, whatever the code on the stack would do with it."""
        self._failure = self._failure or error
        self.end()

    def run(self) -> None:
        """Let the actors act until one ends the simulation.

        Raises
        ------
        InvariantError
            What an actor failed with.
        """
        self.current = self._next()
        if self.current is not None:
            self.current.gate.release()
            self._main.acquire()
        self.is_over = self._is_unwinding = True
        for actor in self._actors:
            if actor.thread is not None and actor.thread.is_alive():
                self.current = actor
                actor.gate.release()
                actor.thread.join()
        if self._failure is not None:
            raise self._failure

    def _live(self, actor: Actor, act: Callable[[], None]) -> None:
        actor.gate.acquire()
        try:
            with suppress(Crash):
                if not self.is_over:
                    act()
            self._end_turn(actor)
        except Over:
            pass
        except BaseException as error:
            self._failure = self._failure or error
            self.is_over = True
        if not self._is_unwinding:
            self.current = following = None if self.is_over else self._next()
            (following.gate if following else self._main).release()

    def _end_turn(self, actor: Actor) -> None:
        if self.is_over:
            raise Over
        try:
            self._after_turn(actor)
        except BaseException as error:
            self.fail(error)

    def _next(self) -> Actor | None:
        while self._agenda:
            at_s, _, entry = heapq.heappop(self._agenda)
            self.now_s = max(self.now_s, at_s)
            if not isinstance(entry, Actor):
                entry()
            elif entry.life.stalled_until_s > self.now_s and not entry.life.is_dead:
                heapq.heappush(self._agenda, (entry.life.stalled_until_s, next(self._numbers), entry))
            else:
                return entry
        return None


def hold(condition: Any, invariant: str, *details: object) -> None:
    """Raise unless an invariant holds."""
    if not condition:
        raise InvariantError("\n  ".join([invariant, *(_shortened(str(detail)) for detail in details)]))


def _shortened(detail: str) -> str:
    return detail if len(detail) <= MAX_DETAIL else detail[:MAX_DETAIL] + "…"
