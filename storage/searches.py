"""What users ask of a whole search: pause, resume, try the failed trials again; and what its time limit asks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.schema import Epoch, Search, SearchState, SplitScore, Trial, TrialState
from gridfleet.storage.trials.transitions import IS_PAUSED, NOT_HELD, cancel_trials, changed, finish_search

#: What a trial that starts all over has in its columns; ``attempt`` only grows.
_NEW: dict[str, Any] = {
    **NOT_HELD,
    "failures": 0,
    "cancel_requested": False,
    "not_before": None,
    "published_at": None,
    "publish_count": 0,
    "started_at": None,
    "finished_at": None,
    "mean_test_score": None,
    "std_test_score": None,
    "mean_fit_time": None,
    "error_type": None,
    "error": None,
}


@retried
def pause_search(database: Database, search_id: int) -> bool:
    """Pause a search: none of its trials starts any more; those that run go on to their end.

    Returns
    -------
    bool
        False if it was paused or finished already.
    """
    return _change_search(database, search_id, Search.paused_at.is_(None), paused_at=now())


@retried
def resume_search(database: Database, search_id: int) -> bool:
    """Go on with a paused search; the reconciler publishes its trials again.

    Returns
    -------
    bool
        False if it was not paused.
    """
    with database.write() as connection:
        # trials before their search, as a claim locks them; their messages were consumed while it was paused
        connection.execute(
            update(Trial)
            .where(Trial.search_id == search_id, Trial.state == TrialState.QUEUED, IS_PAUSED)
            .values(published_at=None, publish_count=0)
        )
        resumed = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None), Search.paused_at.is_not(None))
            .values(paused_at=None)
        )
        return changed(resumed)


@retried
def retry_failed(database: Database, search_id: int) -> int:
    """Queue the failed trials of a search once more, with their whole budget, because somebody asks for it.

    The only way out of a final state. The scores that ``error_score`` gave them go; the story of their
    attempts stays. The reconciler publishes them. A ``search_timeout`` that stopped the search does not stop it
    once more, and what it cancelled stays cancelled.

    Returns
    -------
    int
        How many trials; 0 for a cancelled search, whose trials stay as they are.
    """
    failed = select(Trial.id).where(Trial.search_id == search_id, Trial.state == TrialState.FAILED)
    with database.write() as connection:
        if database.dialect == "postgresql":  # locked in one order, and before the scores go
            connection.execute(failed.order_by(Trial.id).with_for_update())
        open_again = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.state != SearchState.CANCELLED, failed.exists())
            .values(state=SearchState.RUNNING, finished_at=None)
        )
        if not changed(open_again):
            return 0
        for table in (SplitScore, Epoch):
            connection.execute(delete(table).where(table.trial_id.in_(failed)))
        return connection.execute(
            update(Trial)
            .where(Trial.search_id == search_id, Trial.state == TrialState.FAILED)
            .values(state=TrialState.QUEUED, **_NEW)
        ).rowcount


def overdue_searches(database: Database) -> list[int]:
    """List the searches that take longer than their ``search_timeout`` and are not told to stop yet."""
    running_s = seconds_between(database.dialect, Search.started_at, now())
    with database.read() as connection:
        return list(
            connection.execute(
                select(Search.id).where(
                    Search.finished_at.is_(None),
                    Search.state == SearchState.RUNNING,
                    Search.error.is_(None),
                    running_s > Search.search_timeout,
                )
            ).scalars()
        )


@retried
def stop_search(database: Database, search_id: int) -> bool:
    """End a search whose time is over, with what is there: as a cancellation, but it counts as completed.

    Returns
    -------
    bool
        False if it was finished or stopped already.
    """
    with database.write() as connection:
        cancel_trials(connection, search_id)
        limit_s = connection.execute(select(Search.search_timeout).where(Search.id == search_id)).scalar()
        stopped = connection.execute(
            update(Search)
            .where(Search.id == search_id, Search.finished_at.is_(None), Search.error.is_(None))
            .values(error=f"stopped after search_timeout={limit_s:g} s")
        )
        if not changed(stopped):
            connection.rollback()
            return False
    finish_search(database, search_id)
    return True


def _change_search(database: Database, search_id: int, condition: Any, **values: Any) -> bool:
    with database.write() as connection:
        statement = update(Search).where(Search.id == search_id, Search.finished_at.is_(None), condition)
        return changed(connection.execute(statement.values(**values)))
