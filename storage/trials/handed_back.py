"""Trials that a worker hands back for its own trouble: when the trial is failed for it, and when the worker has to go.

A full disk, a folder that can't be written, a package that is missing, a defect of gridfleet: the trial is queued again
as it was, and another worker evaluates it. Each such attempt counts against the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now
from gridfleet.storage.errors import DataNotThereError, MissingCodeError, PayloadError, first_line
from gridfleet.storage.outcome import RESULTS, Outcome
from gridfleet.storage.schema import Attempt, Trial, Worker
from gridfleet.storage.trial_results import MAX_ERROR, shorten
from gridfleet.storage.workers import node_of

#: Different workers that have to hand a trial back for one reason before it is failed with that.
WORKERS = 3
#: Times for whatever reasons: their words may differ from worker to worker.
MOST = 3 * WORKERS
#: Attempts in a row, without a result in between, after which a worker takes itself out.
IN_A_ROW = 3
#: Seconds for which a worker counts as living that was seen.
LIVING_S = 60
#: What the reason begins with if the trial needs code that is not installed here.
LACKS = "this worker lacks code that the trial needs: "
#: And if it trains on data by reference that are not here, or others of that name.
LACKS_DATA = "this worker lacks data that the trial needs: "
#: And where it may be a defect of gridfleet, or what the script's own objects do outside of a fit.
OUTSIDE = "an error outside of the model's fits: "


@dataclass(frozen=True, slots=True)
class Story:
    """An attempt that was handed back: who, on which host, why."""

    node: str
    host: str
    reason: str


def reason_of(error: BaseException) -> str:
    """Say what went wrong in one line, in words that are the same on every worker: no names of temporary files."""
    if isinstance(error, MissingCodeError):
        return LACKS + first_line(error)
    if isinstance(error, DataNotThereError):
        return LACKS_DATA + first_line(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    said = f"{type(error).__name__}: {first_line(error)}"
    return said if isinstance(error, PayloadError) else OUTSIDE + said


def told(error: str, reason: str) -> str:
    """Return what an attempt says, the reason in its last line."""
    kept = shorten(reason.replace("\n", " "), MAX_ERROR // 2)
    return f"{error.rstrip()}\n{kept}"


def stories(connection: Connection, trial_id: int) -> list[Story]:
    """List the attempts at a trial that were handed back."""
    rows = connection.execute(
        select(Attempt.worker_id, Attempt.error, Worker.hostname)
        .outerjoin(Worker, Worker.id == Attempt.worker_id)
        .where(Attempt.trial_id == trial_id, Attempt.outcome == Outcome.HANDED_BACK)
    )
    return [
        Story(node := node_of(row.worker_id), row.hostname or node, (row.error or "").rpartition("\n")[2])
        for row in rows
    ]


def is_refused_by_all(connection: Connection, before: Sequence[Story], *, worker_id: str, reason: str) -> bool:
    """Whether a trial that one more worker hands back is to be failed.

    Three workers of different hosts have to agree; where fewer are there, all of them that live, and three times. A
    worker that its host starts again and again is one.

    Parameters
    ----------
    connection : Connection
        An open transaction.
    before : sequence of Story
        The attempts that were handed back before this one.
    worker_id : str
        Who hands it back now.
    reason : str
        Why.
    """
    if len(before) + 1 < WORKERS:
        return False
    host = connection.execute(select(Worker.hostname).where(Worker.id == worker_id)).scalar()
    reason = told("", reason).rpartition("\n")[2]
    every = [*before, Story(node := node_of(worker_id), host or node, reason)]
    same = [story for story in every if story.reason == reason]
    return _agree(connection, same, least=WORKERS) or _agree(connection, every, least=MOST)


def _agree(connection: Connection, found: Sequence[Story], *, least: int) -> bool:
    if len(found) < least:
        return False
    if len({story.host for story in found}) >= WORKERS:
        return True
    seen = connection.execute(select(Worker.id, Worker.stopped_reason).where(Worker.last_seen_at > now(-LIVING_S)))
    rows = [(node_of(row.id), row.stopped_reason is None) for row in seen]
    stopped = {node for node, is_there in rows if not is_there}
    return {node for node, _ in rows} - stopped <= {story.node for story in found}


def why_to_stop(database: Database, worker_id: str) -> str | None:
    """Say why a worker should take itself out: it handed back one trial after the other, whoever's they were.

    Code that is missing, or an error outside of the fits, is no reason as long as it is one search's: it may be its own
    mistake, and would end one worker after the other. Data by reference that are missing are none ever: a file that was
    replaced may be that of several searches.

    Parameters
    ----------
    database : Database
        The fleet's.
    worker_id : str
        One of its processes.

    Returns
    -------
    str or None
        A sentence; None if it should go on.
    """
    last = (
        select(Attempt.outcome, Attempt.error, Trial.search_id)
        .join(Trial, Trial.id == Attempt.trial_id)
        .where(
            Attempt.worker_id.startswith(node_of(worker_id) + "/", autoescape=True),
            Attempt.outcome.in_((*RESULTS, Outcome.HANDED_BACK)),
        )
        .order_by(Attempt.ended_at.desc())
        .limit(IN_A_ROW)
    )
    with database.read() as connection:
        rows = connection.execute(last).all()
    if len(rows) < IN_A_ROW or any(row.outcome != Outcome.HANDED_BACK for row in rows):
        return None
    reasons = [(row.error or "").rpartition("\n")[2] for row in rows]
    if any(reason.startswith(LACKS_DATA) for reason in reasons):
        return None
    if all(reason.startswith((LACKS, OUTSIDE)) for reason in reasons) and len({row.search_id for row in rows}) == 1:
        return None
    return f"it handed back {IN_A_ROW} trials in a row, the last for this reason: {reasons[0]}"
