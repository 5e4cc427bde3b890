"""A worker: Celery's main process, its children, and what happens when one of them or all have to go."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import migrations, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NoConnectionLeftError, SettingsError, first_line
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.trials import queue, transitions
from gridfleet.storage.trials.held import held_by
from gridfleet.worker.broker.publisher import MAX_MESSAGES, Publisher
from gridfleet.worker.broker.top_up import top_up
from gridfleet.worker.guards.health_file import touch_for_ever
from gridfleet.worker.guards.sign_of_life import FOLDER_VARIABLE
from gridfleet.worker.main_process.environment import prepare_environment
from gridfleet.worker.main_process.exit_status import TOOK_ITSELF_OUT
from gridfleet.worker.main_process.root import refuse_root
from gridfleet.worker.main_process.self_test import note_fitness, require_folders, require_readable_payload
from gridfleet.worker.trial.process import NODE_VARIABLE

if TYPE_CHECKING:
    from celery import Celery

    from gridfleet.worker.main_process.watchdog import Watchdog

logger = logging.getLogger(__name__)

#: Seconds between looks whether a worker process has ended.
LOOK_S = 0.5
#: Seconds between tries to get a connection where the database has none left.
WAIT_S = 1.0
#: Seconds that letting go of trials may take at SIGTERM before the worker stops all the same.
RELEASE_S = 5


def run_worker(
    settings: Settings,
    *,
    concurrency: int,
    may_be_root: bool = False,
    tensorflow: bool = True,
) -> NoReturn:
    """Run a worker until a signal stops it, and exit: with 0 at a signal, with Celery's own status if it failed.

    With `TOOK_ITSELF_OUT` if it handed back one trial after the other, for reasons of its own.

    Parameters
    ----------
    settings : Settings
        Of a fleet, or of an embedded one that was started (so with both URLs set).
    concurrency : int
        How many trials it evaluates at once, each in a process of its own.
    may_be_root : bool, default=False
        Whether root is welcome anywhere: an embedded fleet runs as its script does.
    tensorflow : bool, default=True
        Whether TensorFlow is imported now, and not only when a search needs it.

    Raises
    ------
    GridfleetError
        If broker, database, schema, keys or user are not as they should be.
    UnfitWorkerError
        If a folder can't be written, or a payload not be read.
    """
    if not may_be_root:
        refuse_root(settings)
    _refuse_secret_key(settings)
    require_folders(settings)
    prepare_environment(settings, concurrency)
    # billiard reads REMAP_SIGTERM at import
    from celery import signals
    from celery.exceptions import SecurityWarning

    from gridfleet.worker.broker.app import create_app
    from gridfleet.worker.broker.keys import Keys
    from gridfleet.worker.trial import logs  # noqa: F401 - Celery calls what it connects

    with closing(Database(settings)) as database:
        wait_for_connection(database)
        migrations.require_current(database)
        store = PayloadStore(database, settings)
        store.check_key()
        require_readable_payload(settings, store)
        note_fitness(database)
        keys = Keys(fleet_id(database))
    with closing(Publisher(settings, keys)) as publisher:
        publisher.check()

    app = create_app(settings, keys)
    # while nothing is connected
    end_orphans = _fork_processes(app, tensorflow=tensorflow) if settings.forks_processes else None
    database, publisher = Database(settings), Publisher(settings, keys)
    hooks = _Hooks(settings, database, publisher, node=os.environ[NODE_VARIABLE], end_orphans=end_orphans)
    signals.worker_init.connect(hooks.on_init, weak=False)
    signals.worker_ready.connect(hooks.on_ready, weak=False)
    warnings.simplefilter("ignore", SecurityWarning)  # of root, which was decided above
    app.set_default()
    try:
        app.worker_main(
            [
                "--quiet",  # no banner
                "worker",
                f"--concurrency={concurrency}",
                f"--hostname={os.environ[NODE_VARIABLE]}@%h",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
            ]
        )
    finally:
        hooks.on_end()
    sys.exit(hooks.exit_status())


def wait_for_connection(database: Database) -> None:
    """Make sure that the database answers; while others have all of its connections, say so once, and wait.

    Raises
    ------
    DatabaseUnreachableError
        If it does not answer.
    """
    is_told = False
    while True:
        try:
            return database.check()
        except NoConnectionLeftError as error:
            if not is_told:
                logger.warning("this worker waits: %s", error)
            is_told = True
            time.sleep(WAIT_S)


def _refuse_secret_key(settings: Settings) -> None:
    """Refuse to hold what signs: a model's code reads whatever its worker can."""
    if settings.secret_key is not None:
        raise SettingsError(
            f"{PREFIX}SECRET_KEY is set, or in the secrets folder, where a worker starts; its models could read it and "
            f"sign what they like. Take it away from here, and set {PREFIX}PUBLIC_KEY={settings.signer().public_key}"
        )
    if settings.new_secret_key is not None:
        raise SettingsError(
            f"{PREFIX}NEW_SECRET_KEY is set, or in the secrets folder, where a worker starts; its models could read "
            "it. Take it away from here: it is for `gridfleet rekey`"
        )


def _fork_processes(app: Celery, *, tensorflow: bool) -> Callable[[Collection[int]], None]:
    """Let the app's processes be forked; returns what ends the orphans of those that died."""
    from gridfleet.worker.main_process import pool
    from gridfleet.worker.main_process.template import Template

    template = Template(tensorflow=tensorflow)
    pool.fork_from(template)
    app.conf.worker_pool = f"{pool.__name__}:{pool.TaskPool.__name__}"
    return template.end_orphans


class _Hooks:
    """What the main process does at events of the worker."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        publisher: Publisher,
        *,
        node: str,
        end_orphans: Callable[[Collection[int]], None] | None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._end_orphans = end_orphans
        self._node = node
        self._pool: Any = None
        self._watchdog: Watchdog | None = None
        self._worker: Any = None
        self._is_stopped = False
        self._took_itself_out = False

    def on_init(self, sender: Any, **_: Any) -> None:
        """Remember the worker, which keeps its exit status to itself."""
        self._worker = sender

    def exit_status(self) -> int:
        """Return 0 at a signal, even where Celery calls that a failure; else what Celery says."""
        if self._took_itself_out:
            return TOOK_ITSELF_OUT
        return 0 if self._is_stopped else int(self._worker.exitcode or 0)

    def on_ready(self, sender: Any, **_: Any) -> None:
        """Say that the worker is there; from now on its processes are watched, and SIGTERM lets go of trials first."""
        from gridfleet.worker.main_process.lost_process import process_lost
        from gridfleet.worker.main_process.watchdog import Watchdog

        self._pool = sender.pool
        self._watchdog = Watchdog(
            self._settings,
            self._database,
            Path(os.environ[FOLDER_VARIABLE]),
            node=self._node,
            processes=self._processes,
            publish_again=self._publish_again,
            top_up=self._top_up,
            drain=self._drain,
            take_out=self._take_out,
        )
        process_lost.connect(self._watchdog.on_process_lost, weak=False)
        self._watchdog.start()
        # a process whose pipe has closed may not quite be gone, and Celery looks again only after 5 s
        sender.hub.call_repeatedly(LOOK_S, sender.pool.maintain_pool)
        if self._end_orphans is not None:
            sender.hub.call_repeatedly(LOOK_S, lambda: self._end_orphans(self._processes()))
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, self._let_go_before(signal.getsignal(number)))
        logger.warning("worker %s is ready", self._node)
        touch_for_ever(self._settings.health_path)  # last: whoever sees it may stop this worker at once

    def on_end(self) -> None:
        """Let go of what a process claimed while the worker stopped, and end what its model's code left running."""
        if self._watchdog is not None:
            self._release_all_or_give_up()
        if self._end_orphans is not None:
            self._end_orphans([])

    def _take_out(self) -> None:
        """End as at a deploy, but say by the exit status that it was this worker's own trouble."""
        self._took_itself_out = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _processes(self) -> list[int]:
        if self._pool._pool is None:  # it has ended, with its processes, and a timer or the watchdog looks once more
            return []
        return [pid for pid in self._pool.info["processes"] if pid is not None]  # None: about to be started

    def _drain(self) -> None:
        """Take nothing new, and end when what runs has: as at SIGINT."""
        from celery.worker import state

        if state.should_stop is None:
            logger.warning(
                "worker %s was asked to drain: it takes nothing new, and ends when what it runs has",
                self._node,
            )
            state.should_stop = os.EX_OK  # the main thread looks at it all the time

    def _let_go_before(self, handler: Any) -> Any:
        def let_go_and_go_on(number: int, frame: FrameType | None) -> None:
            self._is_stopped = True
            if self._watchdog is not None:
                self._watchdog.stop()
            # first, so that they claim nothing more; Celery would wait for ever for one that hangs
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._release_all_or_give_up()
            if callable(handler):
                handler(number, frame)

        return let_go_and_go_on

    def _release_all_or_give_up(self) -> None:
        # in a thread with a bound: the database may be what is down
        thread = threading.Thread(target=self._release_all, daemon=True)
        thread.start()
        thread.join(RELEASE_S)

    def _release_all(self) -> None:
        try:
            held = held_by(self._database, self._node)
            for one in held:
                transitions.release(self._database, one)
            if held:
                self._publish_again([one.trial_id for one in held])
            workers.note_ended(self._database, self._node)
        except SQLAlchemyError as error:  # the reconciler will, when their leases are over
            logger.warning("trials could not be let go: %s", first_line(error))

    def _publish_again(self, trial_ids: Sequence[int]) -> None:
        # not those that have to wait before they are tried again: they are the reconciler's
        ready = queue.never_published(self._database, trial_ids)
        try:
            self._publisher.publish(ready)
        except RedisError as error:  # the reconciler will
            logger.warning("could not publish %d trials again: %s", len(ready), error)
            return
        queue.mark_published(self._database, ready)

    def _top_up(self) -> None:
        """Fill the queue while trials run here: short ones may empty it between two passes of the reconciler."""
        try:
            if self._publisher.room() > MAX_MESSAGES // 2:
                top_up(self._settings, self._database, self._publisher)
        except RedisError as error:  # the reconciler will
            logger.warning("could not publish trials that wait: %s", error)
