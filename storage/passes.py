"""The one row that says when a reconciler last looked after the fleet, and where it runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from sqlalchemy import select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.schema import ReconcilerPass


@dataclass(frozen=True, slots=True)
class LastPass:
    """The last pass of any reconciler.

    Parameters
    ----------
    hostname, pid : str, int
        Of its process.
    age_s : float
        How many seconds ago it was, by the database's clock.
    """

    hostname: str
    pid: int
    age_s: float


def note_pass(database: Database, *, notifies: bool = False) -> None:
    """Note that a reconciler of this process looked after the fleet, and whether it tells anybody of events."""
    here = {"hostname": socket.gethostname(), "pid": os.getpid(), "last_pass_at": now(), "notifies": notifies}
    with database.write() as connection:
        connection.execute(update(ReconcilerPass).values(**here))


def note_notifies(database: Database, notifies: bool) -> None:
    """Note whether anybody is told of events, before the first pass: from then on they are written, or not."""
    with database.write() as connection:
        connection.execute(update(ReconcilerPass).values(notifies=notifies))


def last_pass(database: Database) -> LastPass | None:
    """Return the last pass of any reconciler; None: there was none yet."""
    age_s = seconds_between(database.dialect, ReconcilerPass.last_pass_at, now())
    query = select(ReconcilerPass.hostname, ReconcilerPass.pid, age_s)
    with database.read() as connection:
        row = connection.execute(query.where(ReconcilerPass.last_pass_at.is_not(None))).one_or_none()
    return None if row is None else LastPass(row[0], row[1], float(row[2]))
