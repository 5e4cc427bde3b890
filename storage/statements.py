"""SQL that the transitions of trials and of searches are made of.

What every trial runs is built once, as a module is imported: SQLAlchemy needs 0.4 ms to build such a statement and
0.04 ms to run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult, Integer, String, and_, case, func, insert, literal_column, or_, select
from sqlalchemy.engine import Connection

from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Search, Trial, TrialState

#: Rows of one statement's list of parameters.
ROWS_PER_STATEMENT = 5_000

#: What a trial that no worker holds has in its columns.
NOT_HELD: dict[str, Any] = {"token": None, "worker_id": None, "deadline_at": None}
#: What a queued trial has in its columns whose messages, if any were sent, are used up.
NOT_PUBLISHED: dict[str, Any] = {"published_at": None, "publish_count": 0}

#: Constants: in a plan that PostgreSQL keeps it uses an index of queued trials only if the state is no parameter, and
#: to plan takes longer than to run.
ONE = literal_column("1", Integer)
QUEUED = literal_column(f"'{TrialState.QUEUED}'", String)
#: How many trials of a search are there, and how many there will be: two numbers while they are proposed.
N_STORED = func.coalesce(Search.n_asked, Search.n_trials)
N_TO_EVALUATE = case((Search.is_exhausted, Search.n_asked), else_=Search.n_trials)
#: Whether a trial is of a paused search.
IS_PAUSED = Trial.search_id.in_(select(Search.id).where(Search.paused_at.is_not(None)))
#: Whether nothing but its state can keep a trial from being claimed.
MAY_START = and_(or_(Trial.not_before.is_(None), Trial.not_before <= now()), ~IS_PAUSED)
#: Whether a trial can be claimed now.
WAITS = and_(Trial.state == QUEUED, MAY_START)


def changed(result: CursorResult[Any]) -> bool:
    """Whether a statement changed its one row."""
    return result.rowcount == 1


def insert_all(connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, however many."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        connection.execute(insert(table), rows[start : start + ROWS_PER_STATEMENT])
