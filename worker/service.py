"""A worker: Celery's main process, its children, and what happens when one of them or all have to go."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from redis.exceptions import RedisError

from storage import migrations, trials
from storage.database import Database
from storage.payloads import PayloadStore, cache_folder
from storage.settings import Settings
from worker.cores import usable_cores
from worker.process import NODE_VARIABLE

logger = logging.getLogger(__name__)

#: Seconds between touches of the health file.
HEALTH_S = 10
#: Seconds that letting go of trials may take at SIGTERM before the worker stops all the same.
RELEASE_S = 5

#: Bytes that XLA's compiled programs may take on this host's disk; one of a small model takes 0.3 MB.
XLA_CACHE_BYTES = 500_000_000

#: Variables that libraries read at import for the number of their threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def run_worker(settings: Settings, *, concurrency: int, log_level: str = "WARNING") -> None:
    """Run a worker until it is told to stop.

    Parameters
    ----------
    settings : Settings
        Of a fleet, or of an embedded one that was started (so with both URLs set).
    concurrency : int
        How many trials it evaluates at once, each in a process of its own.
    log_level : str, default="WARNING"
        What Celery logs.

    Raises
    ------
    GridfleetError
        If broker, database, schema or secret key are not as they should be.
    """
    _prepare_environment(concurrency, cache_folder(settings) / "xla")
    # billiard reads REMAP_SIGTERM at import
    from celery import signals

    from worker.celery_app import create_app
    from worker.publishing import Publisher

    database = Database(settings)
    database.check()
    migrations.require_current(database)
    PayloadStore(database, settings).check_key()
    publisher = Publisher(settings)
    publisher.check()

    hooks = _Hooks(settings, database, publisher, node=os.environ[NODE_VARIABLE])
    signals.worker_ready.connect(hooks.on_ready, weak=False)
    signals.task_failure.connect(hooks.on_task_failure, weak=False)
    app = create_app(settings)
    app.set_default()
    app.worker_main(
        [
            "--quiet",  # no banner
            "worker",
            f"--concurrency={concurrency}",
            f"--loglevel={log_level}",
            f"--hostname={os.environ[NODE_VARIABLE]}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


def threads_per_process(concurrency: int) -> int:
    """Return the threads that each of `concurrency` processes gets of this machine's cores."""
    return max(1, usable_cores() // concurrency)


def touch_for_ever(path: Path) -> None:
    """Keep a health file young from a thread of this process."""
    stopped = threading.Event()

    def touch() -> None:
        while True:
            path.touch()
            stopped.wait(HEALTH_S)

    threading.Thread(target=touch, name="health", daemon=True).start()


def bound_folder(folder: Path, max_bytes: int) -> bool:
    """Make a private folder, remove its oldest files beyond a size; returns whether it is this user's own."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = folder.stat()
    if stat.st_uid != os.geteuid() or stat.st_mode & 0o022:
        return False  # programs that another user put there would run here
    total = 0
    for size, file in sorted(((f.stat(), f) for f in folder.iterdir() if f.is_file()), key=lambda p: -p[0].st_mtime):
        total += size.st_size
        if total > max_bytes:
            file.unlink(missing_ok=True)
    return True


class _Hooks:
    """What the main process does at events of the worker."""

    def __init__(self, settings: Settings, database: Database, publisher: Any, *, node: str) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._node = node

    def on_ready(self, **_: Any) -> None:
        """Say that the worker is there; from now on SIGTERM lets go of its trials first."""
        touch_for_ever(self._settings.health_path)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, self._release_before(signal.getsignal(number)))
        logger.warning("worker %s is ready", self._node)

    def on_task_failure(self, args: Any = (), exception: BaseException | None = None, **_: Any) -> None:
        """Take back the trial of a child that died or was killed at its time limit.

        Celery calls this in the main process, for a time limit twice: the token makes it idempotent.
        """
        if not args:
            return
        outcome = "timeout" if type(exception).__name__ == "TimeLimitExceeded" else "worker_lost"
        for held in trials.held_by(self._database, self._node, trial_id=args[0]):
            trials.lose(
                self._database, held, outcome=outcome, error=str(exception), max_failures=self._settings.max_failures
            )
        self._publish_again([args[0]])

    def _release_before(self, handler: Any) -> Any:
        def release_and_go_on(number: int, frame: FrameType | None) -> None:
            # in a thread with a bound: the database may be what is down
            thread = threading.Thread(target=self._release_all, daemon=True)
            thread.start()
            thread.join(RELEASE_S)
            if callable(handler):
                handler(number, frame)

        return release_and_go_on

    def _release_all(self) -> None:
        held = trials.held_by(self._database, self._node)
        for one in held:
            trials.release(self._database, one)
        self._publish_again([one.trial_id for one in held])

    def _publish_again(self, trial_ids: list[int]) -> None:
        # not those that have to wait before they are tried again: they are the reconciler's
        ready = trials.due_for_publishing(self._database, republish_s=self._settings.republish_s, among=trial_ids)
        try:
            self._publisher.publish(ready)
        except RedisError as error:  # the reconciler will
            logger.warning("could not publish %d trials again: %s", len(ready), error)
            return
        trials.mark_published(self._database, ready)


def _prepare_environment(concurrency: int, xla_folder: Path) -> None:
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    os.environ.setdefault(NODE_VARIABLE, f"{socket.gethostname()}-{secrets.token_hex(4)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "TF_XLA_FLAGS" not in os.environ and bound_folder(xla_folder, XLA_CACHE_BYTES):
        # what one process of this host compiled, another one loads: 0.27 s and not 0.48 s
        os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={xla_folder}"
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads_per_process(concurrency)))
