"""The fleet that this process talks to: its settings, database, payloads and broker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError

from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.reconciler import Reconciler
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchNotFoundError
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import PREFIX, Settings, load_settings
from gridfleet.storage.trials import queue

if TYPE_CHECKING:
    from gridfleet.worker.broker.publisher import Publisher


class Fleet:
    """Everything that a client needs of a fleet; connections open when they are first used.

    Parameters
    ----------
    settings : Settings
        With both URLs set; `connect` and `read_only` fill in those of an embedded fleet.
    is_embedded : bool
        Whether it belongs to this folder.
    n_workers : int or None
        Worker processes that an embedded fleet starts with, None for one per core.
    """

    def __init__(self, settings: Settings, *, is_embedded: bool, n_workers: int | None = None) -> None:
        self.settings = settings
        self.is_embedded = is_embedded
        self._n_workers = n_workers
        self.database = Database(settings)

    @cached_property
    def payloads(self) -> PayloadStore:
        """The payload store."""
        return PayloadStore(self.database, self.settings)

    @cached_property
    def publisher(self) -> Publisher:
        """The way to the broker."""
        from gridfleet.worker.broker.keys import Keys
        from gridfleet.worker.broker.publisher import Publisher

        return Publisher(self.settings, Keys(fleet_id(self.database)))

    def check(self) -> None:
        """Make sure that the database and the broker answer and the schema is this release's; the key is not looked at.

        Raises
        ------
        DatabaseUnreachableError, BrokerUnreachableError, SchemaVersionError, SettingsError
            One sentence with the address and what to do.
        """
        self.database.check()
        migrations.upgrade(self.database)
        self.publisher.check()

    def publish(self, trial_ids: Sequence[int]) -> bool:
        """Send messages for stored trials, as many as the queue has room for; the rest is the reconciler's business.

        Returns
        -------
        bool
            Whether the broker took them.
        """
        try:
            trial_ids = trial_ids[: self.publisher.room()]
            self.publisher.publish(trial_ids)
        except RedisError:
            return False
        with contextlib.suppress(OperationalError):  # they are sent once more then, which harms nothing
            queue.mark_published(self.database, trial_ids)
        return True

    def tell(self) -> bool:
        """Tell whoever proposes trials that there may be something to propose.

        Returns
        -------
        bool
            Whether the broker took it; they look by themselves as well.
        """
        try:
            self.publisher.tell()
        except RedisError:
            return False
        return True

    def reconciler(self) -> Reconciler:
        """Return what puts this fleet right."""
        return Reconciler(self.settings, self.database, self.publisher)

    def keep_running(self) -> None:
        """Start this folder's fleet again if its owner stopped it; does nothing on a configured fleet."""
        if not self.is_embedded:
            return
        running = client.ensure_running(load_settings().replace(home=self.settings.home), n_workers=self._n_workers)
        if running.broker_url != self.settings.broker_url:
            self.settings = running
            self.__dict__.pop("publisher", None)


_connected: dict[tuple[Settings, str, int], Fleet] = {}


def connect(*, n_jobs: int | None = None) -> Fleet:
    """Connect to the configured fleet, or to this folder's own, which is started if it does not run.

    Parameters
    ----------
    n_jobs : int, default=None
        Worker processes of an embedded fleet that has to be started; None and -1: one per core,
        -2: all cores but one.

    Returns
    -------
    Fleet
        Whose database and broker answer and whose schema is up to date.
    """
    settings = load_settings()
    # another folder, other variables or a forked child: another fleet, other connections
    key = (settings, str(settings.home.resolve()), os.getpid())
    fleet = _connected.get(key)
    if fleet is None:
        n_workers = _n_processes(n_jobs)
        if settings.is_embedded:
            running = client.ensure_running(settings, n_workers=n_workers)
            fleet = Fleet(running, is_embedded=True, n_workers=n_workers)
        else:
            fleet = Fleet(settings, is_embedded=False)
        fleet.check()
        fleet.settings.signer()  # who connects submits; a public key alone would be noticed late
        fleet.payloads.check_key()
        _connected[key] = fleet
    else:
        fleet.keep_running()
        fleet.database.check()
        fleet.publisher.check()
    return fleet


def read_only() -> Fleet:
    """Connect to where results are, without starting anything.

    Returns
    -------
    Fleet
        Whose database answers; its broker may not.

    Raises
    ------
    SearchNotFoundError
        If no fleet is configured and none ever ran in this folder.
    """
    settings = load_settings()
    if settings.is_embedded:
        if not client.has_database(settings):
            raise SearchNotFoundError(
                f"no search was ever run in {settings.home.resolve()}; `gridfleet up` starts a fleet there, "
                f"{PREFIX}HOME names the folder of another one, {PREFIX}DATABASE_URL its database"
            )
        fleet = Fleet(client.stored(settings), is_embedded=True)
        fleet.database.check()
        migrations.upgrade(fleet.database)
        return fleet
    fleet = Fleet(settings, is_embedded=False)
    fleet.database.check()
    migrations.require_current(fleet.database)
    return fleet


def _n_processes(n_jobs: int | None) -> int | None:
    if n_jobs is None or n_jobs == -1:
        return None
    if n_jobs > 0:
        return n_jobs
    import joblib  # takes 0.2 s, which those who only read results need not wait

    return max(1, int(joblib.cpu_count()) + 1 + n_jobs)
