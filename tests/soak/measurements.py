"""What a fleet uses, sampled while it runs: memory, file descriptors, logs, connections."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from redis.exceptions import RedisError

from tests.soak.system import System

#: Seconds between samples.
SAMPLE_S = 5.0
#: Samples below which a third says nothing.
MIN_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class Bound:
    """What of something may grow between the first third of a run and the last."""

    unit: str
    most: float


#: By what is measured. Processes end and begin, so of each role the one that lived longest is looked at.
BOUNDS = {
    "memory of a worker": Bound("MB", 40),
    "file descriptors of a worker": Bound("", 10),
    "memory of a scheduler": Bound("MB", 40),
    "file descriptors of a scheduler": Bound("", 10),
    "write-ahead log": Bound("MB", 256),
    "connections to the database": Bound("", 20),
    "memory of the broker": Bound("MB", 20),
    "keys of the broker": Bound("", 5),
    "connections to the broker": Bound("", 30),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """How much of something there was in the first and in the last third of a run, as medians."""

    what: str
    first: float
    last: float
    minutes: float

    @property
    def is_too_much(self) -> bool:
        """Whether it grew beyond its bound."""
        return self.last - self.first > BOUNDS[self.what].most


class Meter:
    """Takes samples of a system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._series: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._next_at = 0.0

    def tick(self) -> None:
        """Take a sample if it is time."""
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + SAMPLE_S
        for role, services in (("worker", self._system.workers), ("scheduler", self._system.schedulers)):
            for service in services:
                with suppress(psutil.Error):
                    process = psutil.Process(service.process.pid)
                    self._note(f"memory of a {role}", process.memory_info().rss / 1e6, process.pid)
                    self._note(f"file descriptors of a {role}", process.num_fds(), process.pid)
        with suppress(RedisError):
            self._sample_broker()
        with suppress(psycopg.Error, OSError):
            self._sample_database()

    def growths(self) -> list[Growth]:
        """Return how everything grew; of processes, the one of each role that lived longest."""
        longest: dict[str, Sequence[tuple[float, float]]] = {}
        for (what, _), samples in self._series.items():
            longest[what] = max(longest.get(what, []), samples, key=len)
        return [_growth(what, samples) for what, samples in longest.items() if len(samples) >= MIN_SAMPLES]

    def _sample_broker(self) -> None:
        info = self._system.redis.info()
        self._note("memory of the broker", info["used_memory"] / 1e6)
        self._note("connections to the broker", info["connected_clients"])
        self._note("keys of the broker", self._system.redis.dbsize())

    def _sample_database(self) -> None:
        postgresql = self._system.postgresql
        if postgresql is None:
            wal = Path(f"{self._system.database.url.database}-wal")
            self._note("write-ahead log", wal.stat().st_size / 1e6)
            return
        segments = (postgresql.server.pgdata / "pg_wal").iterdir()
        self._note("write-ahead log", sum(file.stat().st_size for file in segments if file.is_file()) / 1e6)
        counting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gridfleet'"
        with postgresql.connect() as connection:
            ((connections,),) = connection.execute(counting).fetchall()
        self._note("connections to the database", connections)

    def _note(self, what: str, value: float, pid: int = 0) -> None:
        self._series[what, pid].append((time.monotonic(), value))


def _growth(what: str, samples: Sequence[tuple[float, float]]) -> Growth:
    third = len(samples) // 3
    first, last = (statistics.median(value for _, value in part) for part in (samples[:third], samples[-third:]))
    return Growth(what, first, last, (samples[-1][0] - samples[0][0]) / 60)
