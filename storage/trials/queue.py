"""The trials that wait: which one a worker takes at a message, and which ones a message has to be sent for."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    String,
    Text,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.params import params_digest, params_to_json, structural_params
from gridfleet.storage.schema import Search, Trial, TrialState
from gridfleet.storage.statements import IS_PAUSED, ROWS_PER_STATEMENT, WAITS
from gridfleet.storage.versions import THIS_PYTHON

logger = logging.getLogger(__name__)

#: Whether a trial is of a search that a minor version of Python can evaluate: bytecode that travels is of one.
IS_FOR_PYTHON = (
    select(Search.id)
    .where(
        Search.id == Trial.search_id,
        or_(Search.needs_python.is_(None), Search.needs_python == bindparam("python", type_=String)),
    )
    .exists()
)
_HINT = select(
    Trial.search_id, Trial.structure_digest, WAITS.label("waits"), IS_FOR_PYTHON.label("is_for_python")
).where(Trial.id == bindparam("wanted_id"))
_WAITING_FOR_PYTHON = select(Trial.id).where(WAITS, IS_FOR_PYTHON).order_by(Trial.id).limit(1)
#: The first trial of a search that waits; of those of the structures that a worker has compiled programs for.
WAITING_OF_SEARCH = (
    select(Trial.id).where(Trial.search_id == bindparam("searched_id"), WAITS).order_by(Trial.id).limit(1)
)
WAITING_OF_STRUCTURES = WAITING_OF_SEARCH.where(Trial.structure_digest.in_(bindparam("structures", expanding=True)))


class WaitsForAnotherPythonError(LookupError):
    """A trial waits, but not for this minor version of Python, and none that does is there."""


#: What differs between the new trials of a search, with its types as arrays of PostgreSQL.
_NEW = {"number": Integer, "params": Text, "params_digest": Text, "structure_digest": Text}
_arrays: list[Any] = [bindparam(f"each_{name}", type_=ARRAY(kind)) for name, kind in _NEW.items()]
_news = func.unnest(*_arrays).table_valued(*_NEW).render_derived()
# arrays and not rows of parameters, of which the driver makes a statement each: 30,000 trials took 9.5 s instead of
# 24.4 on a busy machine
_CREATE = insert(Trial).from_select(
    ["search_id", *_NEW],
    select(
        bindparam("of_search", type_=BigInteger),
        *(cast(_news.c[name], JSONB) if name == "params" else _news.c[name] for name in _NEW),
    ),
)


def create_trials(connection: Connection, search_id: int, candidates: Sequence[dict[str, Any]]) -> None:
    """Insert the trials of a search, all queued, in the transaction that inserts the search."""
    for start in range(0, len(candidates), ROWS_PER_STATEMENT):
        some = candidates[start : start + ROWS_PER_STATEMENT]
        rows = [_new_row(number, params_to_json(params)) for number, params in enumerate(some, start)]
        if connection.dialect.name == "sqlite":
            connection.execute(insert(Trial), [{"search_id": search_id, **row} for row in rows])
            continue
        arrays = {f"each_{name}": [row[name] for row in rows] for name in _NEW}
        arrays["each_params"] = list(map(json.dumps, arrays["each_params"]))
        connection.execute(_CREATE, {"of_search": search_id, **arrays})


def _new_row(number: int, shown: dict[str, Any]) -> dict[str, Any]:
    structural, digest = structural_params(shown), params_digest(shown)
    return {
        "number": number,
        "params": shown,
        "params_digest": digest,
        "structure_digest": digest if len(structural) == len(shown) else params_digest(structural),
    }


def in_turn(database: Database, search_id: int) -> list[int]:
    """List the trials of a search as messages are sent for them: those of different structures first.

    Each worker begins with another structure and then stays with it (`choose`).
    """
    seen: Counter[str | None] = Counter()
    turns = []
    with database.read() as connection:
        query = select(Trial.id, Trial.structure_digest).where(Trial.search_id == search_id).order_by(Trial.number)
        for trial_id, structure in connection.execute(query):
            turns.append((seen[structure], trial_id))
            seen[structure] += 1
    return [trial_id for _, trial_id in sorted(turns)]


def choose(database: Database, trial_id: int, structures: Collection[str], *, python: str = THIS_PYTHON) -> int | None:
    """Choose the trial to claim at a message: one whose structure the worker has compiled programs for, if any.

    A message is a hint that its search has work; as many messages are sent as there are trials. To a worker of
    another Python it is a hint that there is work at all: the trials of one search are behind those of others in the
    queue, and whoever takes one of these leaves its message to a worker that can do the first.

    Parameters
    ----------
    database : Database
        The fleet's.
    trial_id : int
        The one that the message names.
    structures : collection of str
        ``structure_digest`` of trials that this worker evaluated.
    python : str, default=THIS_PYTHON
        This worker's minor version of Python.

    Returns
    -------
    int or None
        The trial of the message or another one of its search, or, if that is of another Python, the first of this one
        that waits; None if none waits.

    Raises
    ------
    WaitsForAnotherPythonError
        If only trials of other Pythons wait, of all that the message is a hint to.
    """
    of_python = {"python": python}
    with database.read() as connection:
        hint = connection.execute(_HINT, {"wanted_id": trial_id, **of_python}).one_or_none()
        if hint is None:
            return _chosen(trial_id, None, "there is no such trial")
        if not hint.is_for_python:
            mine: int | None = connection.execute(_WAITING_FOR_PYTHON, of_python).scalar()
            if mine is None and hint.waits:
                raise WaitsForAnotherPythonError
            return _chosen(trial_id, mine, "its search is of another Python; of this one, the first that waits")
        if hint.waits and (not structures or hint.structure_digest in structures):
            return _chosen(trial_id, trial_id, "it waits")
        among = {"searched_id": hint.search_id, "structures": list(structures)}
        known = connection.execute(WAITING_OF_STRUCTURES, among).scalar() if structures else None
        if known is not None:
            return _chosen(trial_id, int(known), "it waits, and programs of its structure are here")
        if hint.waits:
            return _chosen(trial_id, trial_id, "it waits, and none of whose structure programs are here")
        other = connection.execute(WAITING_OF_SEARCH, {"searched_id": hint.search_id}).scalar()
        if other is None:
            return _chosen(trial_id, None, "nothing of its search waits")
        return _chosen(trial_id, int(other), "the message's own does not wait any more")


def _chosen(trial_id: int, chosen: int | None, why: str) -> int | None:
    logger.debug("at the message of trial %d: %s, for %s", trial_id, "none" if chosen is None else chosen, why)
    return chosen


_SESSION = select(Search.session).join(Trial, Trial.search_id == Search.id).where(Trial.id == bindparam("wanted_id"))


def session_of(database: Database, trial_id: int) -> str | None:
    """Return the session of a trial's search; None if it has none, or there is no such trial."""
    with database.read() as connection:
        session: str | None = connection.execute(_SESSION, {"wanted_id": trial_id}).scalar()
        return session


def due_for_publishing(
    database: Database,
    *,
    republish_s: float,
    limit: int = 500,
    backs_off: bool = True,
    only_unpublished: bool = False,
    among: Sequence[int] | None = None,
) -> list[int]:
    """List queued trials that no message can be expected of any more: never published, or long ago.

    Parameters
    ----------
    database : Database
        The fleet's.
    republish_s : float
        Seconds after which a message counts as lost.
    limit : int, default=500
        How many at most.
    backs_off : bool, default=True
        Whether those seconds double with each publication, up to an hour.
    only_unpublished : bool, default=False
        Only those that no message was ever sent for, or not since they were last taken back.
    among : sequence of int, default=None
        Only these trials.
    """
    wait: Any = literal(float(republish_s))
    if backs_off:
        doubled = wait * literal(1).op("<<")(Trial.publish_count - 1)
        wait = case((Trial.publish_count > 6, literal(3600.0)), else_=doubled)
    overdue = seconds_between(database.dialect, Trial.published_at, now()) > wait
    due = select(Trial.id).where(
        WAITS,
        Trial.published_at.is_(None) if only_unpublished else or_(Trial.published_at.is_(None), overdue),
    )
    if among is not None:
        due = due.where(Trial.id.in_(among))
    with database.read() as connection:
        return list(connection.execute(due.order_by(Trial.id).limit(limit)).scalars())


def count_queued(database: Database) -> int:
    """Count the queued trials of all searches that are not paused."""
    with database.read() as connection:
        return int(
            connection.execute(select(func.count()).where(Trial.state == TrialState.QUEUED, ~IS_PAUSED)).scalar_one()
        )


@retried
def mark_published(database: Database, trial_ids: Sequence[int]) -> None:
    """Note that messages were sent; changes no state."""
    with database.write() as connection:
        for start in range(0, len(trial_ids), ROWS_PER_STATEMENT):
            connection.execute(
                update(Trial)
                .where(Trial.id.in_(trial_ids[start : start + ROWS_PER_STATEMENT]), Trial.state == TrialState.QUEUED)
                .values(published_at=now(), publish_count=Trial.publish_count + 1)
            )
