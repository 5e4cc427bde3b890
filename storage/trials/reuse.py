"""Results that a new trial takes from one that computed the same before, in the transaction that stores its search."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.orm import aliased

from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Curve, SplitScore, Trial, TrialState, TrialWarning
from gridfleet.storage.statements import ROWS_PER_STATEMENT
from gridfleet.storage.trial_results import RESULT_COLUMNS

_SOURCE = aliased(Trial)
#: A search's trials that take another one's result.
_TAKES = (Trial.search_id == bindparam("of_search"), Trial.reused_from.is_not(None))
_FIND = (
    select(Trial.reuse_key.label("key"), func.min(Trial.id).label("trial_id"))
    .where(Trial.reuse_key.in_(bindparam("keys", expanding=True)), Trial.state == TrialState.COMPLETED)
    .group_by(Trial.reuse_key)
)
_TAKE = (
    update(Trial)
    .where(*_TAKES, Trial.state == TrialState.QUEUED, _SOURCE.id == Trial.reused_from)
    .values(
        state=TrialState.COMPLETED,
        finished_at=now(),
        record_time=_SOURCE.record_time,
        **{name: getattr(_SOURCE, name) for name in RESULT_COLUMNS},
    )
    .execution_options(synchronize_session=False)
)


def _copied(table: Any) -> Any:
    """Return the statement that gives trials the rows of those whose results they take."""
    others = [column for column in table.__table__.columns if column.name != "trial_id"]
    rows = select(Trial.id, *others).join(table, table.trial_id == Trial.reused_from).where(*_TAKES)
    return insert(table).from_select(["trial_id", *(column.name for column in others)], rows)


_COPIES = tuple(_copied(table) for table in (SplitScore, Curve, TrialWarning))


def find_results(connection: Connection, keys: Collection[str]) -> dict[str, int]:
    """Find completed trials by what decides their results.

    Parameters
    ----------
    connection : Connection
        The transaction that goes on to insert trials.
    keys : collection of str
        As ``trials.reuse_key``.

    Returns
    -------
    dict of str to int
        The id of the oldest trial of each key that there is one of.
    """
    found: dict[str, int] = {}
    wanted = list(keys)
    for start in range(0, len(wanted), ROWS_PER_STATEMENT):
        some = wanted[start : start + ROWS_PER_STATEMENT]
        found |= {str(row.key): row.trial_id for row in connection.execute(_FIND, {"keys": some})}
    return found


def take_results(connection: Connection, search_id: int) -> int:
    """Complete the new trials of a search that have ``reused_from``, with what was recorded there.

    Parameters
    ----------
    connection : Connection
        The transaction that inserted them.
    search_id : int
        Their search.

    Returns
    -------
    int
        How many.
    """
    # scores first: nothing is added to what has ended
    for copy in _COPIES:
        connection.execute(copy, {"of_search": search_id})
    return connection.execute(_TAKE, {"of_search": search_id}).rowcount
