"""Which errors of a database pass by themselves, and trying again until they do."""

from __future__ import annotations

import functools
import logging
import random
import sqlite3
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gridfleet.storage.errors import first_line

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

#: SQLSTATEs of transactions that PostgreSQL ended in favour of others: serialization failure, deadlock, lock time-out.
CONFLICTS = {"40001", "40P01", "55P03"}
#: What SQLite says of other processes and of the disk; all else are errors of the statement or of the file.
SQLITE_TEMPORARY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
}
#: Seconds for which a transaction that lost a conflict is tried again.
CONFLICT_S = 30
#: Seconds between tries, the first and the longest; each is shortened at random, lest all workers come at once.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0


def is_temporary(error: BaseException) -> bool:
    """Whether a failed transaction may succeed when it is tried again: the database is away, full or busy."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error.orig) in SQLITE_TEMPORARY
    return error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))


def is_conflict(error: BaseException) -> bool:
    """Whether a transaction was ended in favour of another one."""
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error.orig) == sqlite3.SQLITE_BUSY
    return getattr(error.orig, "sqlstate", None) in CONFLICTS


def patiently(
    action: Callable[[], T], *, patience_s: float, may_pass: Callable[[BaseException], bool] = is_temporary
) -> T:
    """Do something in the database, and again while it fails for a reason that may pass.

    Parameters
    ----------
    action : callable
        What to do. It must be guarded, so that it may be done again after a commit whose answer was lost.
    patience_s : float
        Seconds after which the error is raised.
    may_pass : callable, default=is_temporary
        Whether to try again after an error.

    Returns
    -------
    object
        What the action returns.
    """
    began = time.monotonic()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            result = action()
        except SQLAlchemyError as error:
            if not may_pass(error) or time.monotonic() - began > patience_s:
                raise
            if pause_s == FIRST_PAUSE_S:
                logger.warning("the database fails, trying again: %s", first_line(error))
            time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
        else:
            if pause_s > FIRST_PAUSE_S:
                logger.warning("the database answers again, after %.1f s", time.monotonic() - began)
            return result


def retried(transaction: Callable[P, T]) -> Callable[P, T]:
    """Let a function try its transactions again, for a bounded time, when they were ended in favour of others."""

    @functools.wraps(transaction)
    def until_it_wins(*args: P.args, **kwargs: P.kwargs) -> T:
        return patiently(lambda: transaction(*args, **kwargs), patience_s=CONFLICT_S, may_pass=is_conflict)

    return until_it_wins


def _sqlite_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended codes say more in higher bits
