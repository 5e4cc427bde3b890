"""The process that owns an embedded fleet: it starts broker and workers, puts right what is lost, stops all at the end.

``python -m gridfleet.scheduler.fleet.local.supervisor HOME WORKERS OWNER`` is how a script starts it, and with
``--without-tensorflow`` if nothing needs that yet.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import chdir, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet import asker
from gridfleet.scheduler.fleet.local.broker import LocalBroker
from gridfleet.scheduler.fleet.local.children import dies_with_us
from gridfleet.scheduler.fleet.local.client import ALREADY_RUNNING, WITHOUT_TENSORFLOW
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.fleet.local.variables import variables_of_libraries
from gridfleet.scheduler.fleet.reconciler import Reconciler
from gridfleet.storage import migrations
from gridfleet.storage import workers as stored_workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, LocalFleetError, UnfitWorkerError
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.logs import log_to_stderr
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import held_by
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.publisher import Publisher
from gridfleet.worker.guards.orphans import adopt_orphans, end_orphans
from gridfleet.worker.main_process.exit_status import TOOK_ITSELF_OUT

#: Seconds between looks at processes, and of the reconciler of an embedded fleet.
LOOK_S = 1.0
#: Seconds after which a worker is started again that could not work here; each time twice as many, to the most.
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0


def run(settings: Settings, *, n_workers: int, owner: int | None = None, tensorflow: bool = True) -> None:
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
    tensorflow : bool, default=True
        Whether the workers import TensorFlow as they start, and not only when a search needs it.
    """
    log_to_stderr(settings.log_level, settings.log_format, service="supervisor")
    folder = Folder(settings.home)
    folder.prepare()
    with folder.owned() as got_it:
        if not got_it:
            sys.exit(ALREADY_RUNNING)
        with chdir(folder.work):  # and with this process all that it starts
            _Supervisor(settings, folder, n_workers, owner, tensorflow=tensorflow).run()


class _Supervisor:
    def __init__(
        self, settings: Settings, folder: Folder, n_workers: int, owner: int | None, *, tensorflow: bool
    ) -> None:
        self._folder = folder
        self._n_workers = n_workers
        self._owner = owner
        self._tensorflow = tensorflow
        self._started_at = datetime.now(UTC).isoformat()
        self._stop = False
        self._broker: LocalBroker | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        #: Those that another one took the place of: they take nothing new, and finish what they run.
        self._draining: list[subprocess.Popen[bytes]] = []
        self._worker_again_at = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self._database: Database | None = None
        self._settings = settings
        #: When the fleet was last used, as far as it was looked; None: its owner lives.
        self._used_at: float | None = None

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        adopt_orphans()
        try:
            self._watch(self._start())
        finally:
            self._folder.withdraw()
            self._shut_down()

    def _on_signal(self, *_: Any) -> None:
        self._stop = True

    def _start(self) -> Database:
        broker = self._broker = LocalBroker(self._folder)
        self._settings = self._folder.settings(self._settings, broker.url)
        self._folder.make_database()
        database = self._database = Database(self._settings)
        database.check()
        migrations.upgrade(database)
        # whoever held trials died with the last fleet of this folder
        _release_all(database)
        stored_workers.prune(database)
        self._worker = self._start_worker()
        self._folder.forget_wanted_workers()
        self._announce(broker)
        return database

    def _announce(self, broker: LocalBroker) -> None:
        self._folder.announce(
            {
                "pid": os.getpid(),
                "owner": self._owner,
                "broker_url": broker.url,
                "socket": str(broker.socket),
                "n_workers": self._n_workers,
                "variables": variables_of_libraries(),
                "linger_s": self._settings.linger_s,
                "started_at": self._started_at,
            }
        )

    def _start_worker(self) -> subprocess.Popen[bytes]:
        # billiard would warn of semaphores, which it clears away, when `_shut_down` kills
        warnings = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:semaphore_tracker")))
        environment = {**self._settings.worker_environment(), "PYTHONWARNINGS": warnings}
        command = [sys.executable, "-P", "-m", "gridfleet.worker", str(self._n_workers)]
        if not self._tensorflow:
            command.append(WITHOUT_TENSORFLOW)
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **dies_with_us(signal.SIGTERM))

    def _watch(self, database: Database) -> None:
        publisher = Publisher(self._settings, Keys(fleet_id(database)))
        # messages of before died with the last broker, so queued trials are published again at once
        Reconciler(self._settings.replace(republish_s=0), database, publisher).try_once()
        reconciler = Reconciler(self._settings, database, publisher)
        asker.start(self._settings.replace(reconcile_s=LOOK_S))
        while not self._stop and self._is_wanted():
            if self._broker is not None and (status := self._broker.exit_status()) is not None:
                raise LocalFleetError(f"the broker ended with status {status}")
            self._look_after_workers()
            self._folder.bound_log()
            reconciler.try_once()

    def _look_after_workers(self) -> None:
        """Start another worker for one that ended, or if another number of processes is wanted."""
        drained = [worker for worker in self._draining if worker.poll() is not None]
        status = None if self._worker is None else self._worker.poll()
        if drained or status is not None:
            self._draining = [worker for worker in self._draining if worker not in drained]
            self._end_orphans()
        wanted = self._folder.wanted_workers() or self._n_workers
        if wanted != self._n_workers:
            self._change_workers(wanted)
        elif status is not None:
            self._worker = self._start_again(status)
        elif self._worker is None and time.monotonic() >= self._worker_again_at:
            self._worker = self._start_worker()

    def _change_workers(self, wanted: int) -> None:
        """Go on with another number of processes, at once: what runs may take hours, in which others would wait."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(signal.SIGINT)
            self._draining.append(self._worker)
        self._n_workers = wanted
        self._worker = self._start_worker()
        if self._broker is not None:
            self._announce(self._broker)

    def _start_again(self, status: int) -> subprocess.Popen[bytes] | None:
        """Start a worker in place of one that has ended: a while later if it had trouble of its own."""
        self._worker_again_at = -math.inf
        if status in (UnfitWorkerError.exit_status, TOOK_ITSELF_OUT):
            self._worker_again_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
            return None
        return self._start_worker()

    def _end_orphans(self) -> None:
        """End what models of a dead worker left running."""
        workers = [worker for worker in (self._worker, *self._draining) if worker is not None]
        own = [worker.pid for worker in workers if worker.poll() is None]
        end_orphans(own if self._broker is None else [self._broker.pid, *own])

    def _is_wanted(self) -> bool:
        """Wait a moment; whether the owner lives, or the last script that used the fleet went a short time ago."""
        if self._owner is None:
            time.sleep(LOOK_S)
            return True
        if self._used_at is None:
            if self._has_owner():
                return True
            self._used_at = time.monotonic()
        elif self._folder.is_used():
            self._used_at = time.monotonic()
        left_s = self._used_at + self._settings.linger_s - time.monotonic()
        time.sleep(min(max(left_s, 0), LOOK_S))
        return left_s > 0

    def _has_owner(self) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        # a forked child of the owner may keep the pipe open, so look at the parent too
        return not readable and os.getppid() == self._owner

    def _shut_down(self) -> None:
        # Celery's own way to stop takes two seconds, in which it would do no more than this; the processes
        # that evaluate trials die with their parent, and without a token they could not write any more
        for worker in filter(None, (self._worker, *self._draining)):
            worker.kill()
            worker.wait()
        if self._worker is not None:
            self._end_orphans()
        if self._broker is not None:
            self._broker.stop()
        if self._database is not None:
            with suppress(SQLAlchemyError):  # the next fleet of this folder does it
                _release_all(self._database)


def _release_all(database: Database) -> None:
    """Let go of the trials of worker processes, which are all dead, and note that."""
    for held in held_by(database, None):
        transitions.release(database, held)
    stored_workers.note_ended(database, None)


if __name__ == "__main__":
    try:
        run(
            load_settings().replace(home=Path(sys.argv[1])),
            n_workers=int(sys.argv[2]),
            owner=int(sys.argv[3]),
            tensorflow=WITHOUT_TENSORFLOW not in sys.argv[4:],
        )
    except GridfleetError as error:
        sys.exit(str(error))
