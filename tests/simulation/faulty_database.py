"""A database with a clock of its own, whose every transaction is a turn and whose every statement may be the last."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import ClauseElement, Connection, ExceptionContext, StaticPool, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from gridfleet.storage.database import sqlite as sqlite_database
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import SQLITE_TIME
from gridfleet.storage.settings import Settings
from tests.simulation.turns import Actor, Crash, Life, Turns

#: When the virtual clock begins: no real time is near it, so one that slips in is seen.
EPOCH = datetime(2001, 1, 1)  # noqa: DTZ001 - what is stored says that it is UTC
#: Tables between whose rows a simulation begins with none, children first.
TABLES = (
    "leases",
    "curves",
    "trial_warnings",
    "split_scores",
    "attempts",
    "trials",
    "searches",
    "texts",
    "payload_chunks",
    "payloads",
)

#: Where something can go wrong: before a statement, or before a transaction and around its commit.
Point = ClauseElement | str
BEGIN = "begin"


def shown_time(seconds: float) -> str:
    """Return a virtual time as the database stores it."""
    time = EPOCH + timedelta(milliseconds=round(seconds * 1000))
    return f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}+00:00"


class Faults(Protocol):
    """Decides what goes wrong."""

    def begin_operation(self) -> None:
        """Note that the present actor begins something new."""

    def latency_s(self) -> float:
        """Return the virtual seconds until a transaction begins or a message arrives."""

    def at(self, point: Point) -> None:
        """Raise if this is the point at which something goes wrong: `Crash` or an error of database or broker."""


class Calm:
    """Nothing goes wrong."""

    def begin_operation(self) -> None:
        """Do nothing."""

    def latency_s(self) -> float:
        """Return a moment."""
        return 0.01

    def at(self, point: Point) -> None:
        """Do nothing."""


class RandomFaults:
    """One operation in so many is hit, at any of its statements.

    Parameters
    ----------
    random : random.Random
        Draws them.
    turns : Turns
        The clock, and who acts.
    say : callable
        Writes the log.
    per_mille, stalls_per_mille : int
        How many operations of a thousand are hit, and at how many transactions a process stands still.
    slowest_s : float
        Seconds that a transaction may have to wait.
    """

    def __init__(
        self,
        random: random.Random,
        turns: Turns,
        say: Callable[[str], None],
        *,
        per_mille: int,
        stalls_per_mille: int,
        slowest_s: float,
    ) -> None:
        #: until when the database does not answer at all
        self.is_down_until_s = 0.0
        self.per_mille = per_mille
        self.stalls_per_mille = stalls_per_mille
        self.slowest_s = slowest_s
        self._random = random
        self._turns = turns
        self._say = say
        self._fuses: dict[Actor, tuple[int, str]] = {}

    def begin_operation(self) -> None:
        """Draw what goes wrong in the operation that the present actor begins."""
        self._fuses.pop(self._turns.me, None)
        if self._random.random() * 1000 < self.per_mille:
            kind = "crash" if self._random.random() < 0.6 else "outage"
            self._fuses[self._turns.me] = 1 + self._random.randrange(self._random.choice((4, 12, 24))), kind

    def latency_s(self) -> float:
        """Return a moment; now and then the whole process stands still, for longer than a lease maybe."""
        draw = self._random.random()
        if draw * 1000 < self.stalls_per_mille:
            self._turns.me.life.stalled_until_s = self._turns.now_s + self._random.uniform(5, 100)
            self._say("stands still")
        return self.slowest_s * draw**3

    def at(self, point: Point) -> None:
        """Count down to the fault of this operation."""
        if point is BEGIN and self._turns.now_s < self.is_down_until_s:
            raise _outage()
        to_go, kind = self._fuses.get(self._turns.me, (0, ""))
        if to_go > 1:
            self._fuses[self._turns.me] = to_go - 1, kind
        elif to_go == 1:
            del self._fuses[self._turns.me]
            strike(kind, point, self._turns.me.life, self._say)


class FaultAt:
    """Exactly one fault in a simulation, at its n-th point."""

    def __init__(self, n: int, kind: str, turns: Turns, say: Callable[[str], None]) -> None:
        self.points = 0
        self.n = n
        self._kind = kind
        self._turns = turns
        self._say = say

    def begin_operation(self) -> None:
        """Do nothing."""

    def latency_s(self) -> float:
        """Return a moment."""
        return 0.01

    def at(self, point: Point) -> None:
        """Raise at the n-th call."""
        self.points += 1
        if self.points == self.n:
            strike(self._kind, point, self._turns.me.life, self._say)


def strike(kind: str, point: Point, life: Life, say: Callable[[str], None]) -> None:
    """Let the fault happen."""
    statement = point if isinstance(point, str) else str(point.compile(dialect=sqlite.dialect()))
    say(f"{kind} at: {' '.join(statement.split())[:60]}")
    if kind == "crash":
        life.is_dead = True
        raise Crash(life.name)
    raise _outage()


def _outage() -> OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return OperationalError("a statement", None, error)


class FaultyDatabase(Database):
    """An SQLite in memory, shared by all actors; only one of them is ever in a transaction.

    The production code's own ``BEGIN IMMEDIATE`` serialises writers in the same way, so what is lost by that is
    nothing: all that can differ in order are whole transactions.
    """

    def __init__(self) -> None:
        super().__init__(Settings(database_url="sqlite://"))
        self.turns: Turns | None = None
        self.faults: Faults = Calm()
        #: what went wrong that no fault explains
        self.defect: str | None = None
        self._shown: tuple[float, str] = (-1.0, "")
        self.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        event.listen(self.engine, "connect", sqlite_database.prepare)
        event.listen(self.engine, "connect", self._connected)
        event.listen(self.engine, "begin", sqlite_database.begin)
        # not before_cursor_execute: what is raised there and is no error closes the connection, and with it all
        event.listen(self.engine, "before_execute", self._before_statement)
        event.listen(self.engine, "handle_error", self._note_error)
        with self.engine.connect():
            pass

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a writing transaction: a turn, with a fault before any statement and around the commit."""
        self._take_turn()
        with super().write() as connection:
            yield connection
            self.faults.at("commit")
        self.faults.at("committed, not answered")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a reading transaction: a turn."""
        self._take_turn()
        with super().read() as connection:
            yield connection

    def close(self) -> None:
        """Keep the one connection: with it, all would be gone."""

    def forget(self) -> None:
        """Delete what the last simulation left."""
        self.turns, self.faults, self.defect = None, Calm(), None
        if self.raw.in_transaction:
            self.raw.execute("ROLLBACK")
        views = self.raw.execute("SELECT name FROM sqlite_master WHERE type = 'view' AND name LIKE 'search-%'")
        for (view,) in views.fetchall():
            self.raw.execute(f'DROP VIEW "{view}"')
        for table in TABLES:
            self.raw.execute(f"DELETE FROM {table}")

    def _take_turn(self) -> None:
        if self.turns is not None:
            self.turns.pause(self.faults.latency_s())
            self.faults.at(BEGIN)

    def _connected(self, raw: sqlite3.Connection, _record: Any) -> None:
        self.raw = raw
        # takes the place of SQLite's own: production code reads the clock in no other way
        raw.create_function("strftime", -1, self._strftime)

    def _before_statement(self, _connection: Any, statement: Any, *_: Any) -> None:
        if self.turns is not None:
            self.faults.at(statement)

    def _note_error(self, context: ExceptionContext) -> None:
        # faults are raised before SQLite is asked: what it refuses is a defect, even where somebody catches it
        if isinstance(context.original_exception, sqlite3.Error):
            self.defect = f"{context.original_exception}: {context.statement}"

    def _strftime(self, *arguments: Any) -> str | None:
        if len(arguments) != 3 or arguments[:2] != (SQLITE_TIME, "now") or not str(arguments[2]).endswith(" seconds"):
            self.defect = f"the clock is asked in a way that is not simulated: strftime{arguments}"
            return None
        plus_s = float(arguments[2].removesuffix(" seconds"))
        now_s = self.turns.now_s if self.turns is not None else 0.0
        if self._shown[0] != now_s + plus_s:
            self._shown = now_s + plus_s, shown_time(now_s + plus_s)
        return self._shown[1]
