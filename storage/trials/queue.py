"""The trials that wait: which one a worker takes at a message, and which ones a message has to be sent for."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Select,
    String,
    Text,
    bindparam,
    cast,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import UtcDateTime, now
from gridfleet.storage.params import params_digest, params_to_json, structural_params
from gridfleet.storage.schema import Search, Trial, TrialState
from gridfleet.storage.statements import IS_PAUSED, ROWS_PER_STATEMENT, WAITS
from gridfleet.storage.versions import THIS_PYTHON

logger = logging.getLogger(__name__)

#: Queued trials that are counted; how many more there are would take longer the more there are.
COUNTED = 10_000
#: Trials that one transaction notes as published.
NOTED_AT_ONCE = 1_000
#: Whether a trial is of a search that a minor version of Python can evaluate: bytecode that travels is of one.
IS_FOR_PYTHON = (
    select(Search.id)
    .where(
        Search.id == Trial.search_id,
        or_(Search.needs_python.is_(None), Search.needs_python == bindparam("python", type_=String)),
    )
    .exists()
)
_SESSION = select(Search.session).where(Search.id == Trial.search_id).scalar_subquery().label("session")
_HINT = select(Trial.search_id, _SESSION, WAITS.label("waits"), IS_FOR_PYTHON.label("is_for_python")).where(
    Trial.id == bindparam("wanted_id")
)
_WAITING_FOR_PYTHON = (
    select(Trial.id, Trial.search_id, _SESSION).where(WAITS, IS_FOR_PYTHON).order_by(Trial.id).limit(1)
)
#: The first trial of a search that waits; of those of the structures that a worker has compiled programs for.
WAITING_OF_SEARCH = (
    select(Trial.id).where(Trial.search_id == bindparam("searched_id"), WAITS).order_by(Trial.id).limit(1)
)
_IS_KNOWN = Trial.structure_digest.in_(bindparam("structures", expanding=True))
WAITING_OF_STRUCTURES = WAITING_OF_SEARCH.where(_IS_KNOWN)
_HINTED = select(Trial.id).where(Trial.id == bindparam("hinted_id"), WAITS)


def _first_there(*waiting: Select[Any]) -> Any:
    """Return the first trial that one of these finds and nobody holds, locked where that is possible."""
    # a row that another transaction holds is passed over: it is being claimed, and whoever waited for it would get
    # nothing; all of a fleet would wait for the lowest id
    return func.coalesce(*(one.with_for_update(skip_locked=True).correlate(None).scalar_subquery() for one in waiting))


#: The trial that a worker takes at a message; one that has compiled programs, rather of the structures of these.
CHOICE = _first_there(_HINTED, WAITING_OF_SEARCH)
CHOICE_OF_STRUCTURES = _first_there(_HINTED.where(_IS_KNOWN), WAITING_OF_STRUCTURES, _HINTED, WAITING_OF_SEARCH)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a message leads to: a search of which a trial waits, and the one to take unless another fits better."""

    trial_id: int
    search_id: int
    session: str | None


class WaitsForAnotherPythonError(LookupError):
    """A trial waits, but not for this minor version of Python, and none that does is there."""


#: What differs between the new trials of a search, with its types as arrays of PostgreSQL.
_NEW = {"number": Integer, "params": Text, "params_digest": Text, "structure_digest": Text}
_REUSE = {"reuse_key": Text, "reused_from": BigInteger}


def _creation(columns: Mapping[str, Any]) -> Any:
    """Return the statement of PostgreSQL that inserts the trials of a search."""
    # arrays and not rows of parameters, of which the driver makes a statement each: 30,000 trials took 9.5 s instead of
    # 24.4 on a busy machine
    arrays: list[Any] = [bindparam(f"each_{name}", type_=ARRAY(kind)) for name, kind in columns.items()]
    news = func.unnest(*arrays).table_valued(*columns).render_derived()
    return insert(Trial).from_select(
        ["search_id", *columns],
        select(
            bindparam("of_search", type_=BigInteger),
            *(cast(news.c[name], JSONB) if name == "params" else news.c[name] for name in columns),
        ),
    )


_CREATE, _CREATE_WITH_KEYS = _creation(_NEW), _creation({**_NEW, **_REUSE})


@dataclass(frozen=True, slots=True)
class Reuse:
    """By which key the result of each trial is found again, and which trials' results they take.

    Parameters
    ----------
    keys : sequence of str or None
        One for each trial, by its number; None: its result is none that another may take.
    taken : mapping of str to int
        The ids of the trials whose results are taken, by their keys.
    """

    keys: Sequence[str | None]
    taken: Mapping[str, int] = field(default_factory=dict)


def create_trials(
    connection: Connection, search_id: int, candidates: Sequence[dict[str, Any]], reuse: Reuse | None = None
) -> None:
    """Insert the trials of a search, all queued, in the transaction that inserts the search."""
    for start in range(0, len(candidates), ROWS_PER_STATEMENT):
        some = candidates[start : start + ROWS_PER_STATEMENT]
        rows = [_new_row(number, params_to_json(params)) for number, params in enumerate(some, start)]
        if reuse is not None:
            for row in rows:
                row["reuse_key"] = key = reuse.keys[row["number"]]
                row["reused_from"] = None if key is None else reuse.taken.get(key)
        if connection.dialect.name == "sqlite":
            connection.execute(insert(Trial), [{"search_id": search_id, **row} for row in rows])
            continue
        arrays = {f"each_{name}": [row[name] for row in rows] for name in rows[0]}
        arrays["each_params"] = list(map(json.dumps, arrays["each_params"]))
        create = _CREATE if reuse is None else _CREATE_WITH_KEYS
        connection.execute(create, {"of_search": search_id, **arrays})


def _new_row(number: int, shown: dict[str, Any]) -> dict[str, Any]:
    structural, digest = structural_params(shown), params_digest(shown)
    return {
        "number": number,
        "params": shown,
        "params_digest": digest,
        "structure_digest": digest if len(structural) == len(shown) else params_digest(structural),
    }


def in_turn(database: Database, search_id: int, *, limit: int | None = None) -> list[int]:
    """List the trials of a search that wait for a first message, as these are sent: of different structures first.

    Each worker begins with another structure and then stays with it (`CHOICE_OF_STRUCTURES`).
    """
    turn = func.row_number().over(partition_by=Trial.structure_digest, order_by=Trial.number)
    waits = (Trial.search_id == search_id, Trial.state == TrialState.QUEUED, Trial.published_at.is_(None))
    query = select(Trial.id).where(*waits).order_by(turn, Trial.number).limit(limit)
    with database.read() as connection:
        return list(connection.execute(query).scalars())


def look(database: Database, trial_id: int, *, python: str = THIS_PYTHON) -> Hint | None:
    """Look what a message leads to; `transitions.claim_at_message` takes it.

    A message is a hint that its search has work, whichever of its trials it names. To a worker of another Python it is
    a hint that there is work at all: the trials of one search are behind those of others in the queue, and whoever
    takes one of these leaves its message to a worker that can do the first.

    Parameters
    ----------
    database : Database
        The fleet's.
    trial_id : int
        The one that the message names.
    python : str, default=THIS_PYTHON
        This worker's minor version of Python.

    Returns
    -------
    Hint or None
        To the search of the message, or, if that is of another Python, of the first trial of this one that waits; None
        if none waits.

    Raises
    ------
    WaitsForAnotherPythonError
        If only trials of other Pythons wait, of all that the message is a hint to.
    """
    of_python = {"python": python}
    with database.read() as connection:
        hint = connection.execute(_HINT, {"wanted_id": trial_id, **of_python}).one_or_none()
        if hint is None:
            return _found(trial_id, None, "there is no such trial")
        if not hint.is_for_python:
            mine = connection.execute(_WAITING_FOR_PYTHON, of_python).one_or_none()
            if mine is None and hint.waits:
                raise WaitsForAnotherPythonError
            found = None if mine is None else Hint(mine.id, mine.search_id, mine.session)
            return _found(trial_id, found, "its search is of another Python; of this one, the first that waits")
        if hint.waits:
            return _found(trial_id, Hint(trial_id, hint.search_id, hint.session), "it waits")
        other = connection.execute(WAITING_OF_SEARCH, {"searched_id": hint.search_id}).scalar()
        if other is None:
            return _found(trial_id, None, "nothing of its search waits")
        return _found(trial_id, Hint(other, hint.search_id, hint.session), "its own trial does not wait any more")


def _found(trial_id: int, hint: Hint | None, why: str) -> Hint | None:
    leads_to = "nothing" if hint is None else hint.trial_id
    logger.debug("the message of trial %d leads to %s, for %s", trial_id, leads_to, why)
    return hint


_MAY_START_NOW = or_(Trial.not_before.is_(None), Trial.not_before <= now())
_QUEUED_OF_SEARCH = select(Trial.id).where(Trial.state == TrialState.QUEUED, _MAY_START_NOW)
#: Those that no message was sent for, or not since they were last taken back; and those whose message is lost. Each
#: reads a piece of one index, however many trials are queued: so the order, in which published_at is first.
_UNPUBLISHED = _QUEUED_OF_SEARCH.where(Trial.published_at.is_(None)).order_by(Trial.published_at, Trial.id)
_LOST = _QUEUED_OF_SEARCH.where(Trial.published_at < bindparam("lost_before", type_=UtcDateTime)).order_by(
    Trial.published_at, Trial.id
)
_WANTED, _AT_MOST = Trial.search_id == bindparam("searched_id"), bindparam("at_most", type_=Integer)
_UNPUBLISHED_OF_SEARCH, _LOST_OF_SEARCH = (one.where(_WANTED).limit(_AT_MOST) for one in (_UNPUBLISHED, _LOST))
_SEARCHES_TO_PUBLISH = (
    select(
        Search.id,
        Search.priority,
        *(
            one.where(Trial.search_id == Search.id).limit(1).correlate(Search).scalar_subquery().label(name)
            for name, one in (("unpublished", _UNPUBLISHED), ("lost", _LOST))
        ),
    )
    .where(Search.finished_at.is_(None), Search.paused_at.is_(None))
    .order_by(Search.priority.desc(), Search.id.desc())
)


def due_for_publishing(
    database: Database, *, republish_s: float, limit: int = 500, oldest: int | None = None
) -> list[int]:
    """List queued trials that no message can be expected of any more: never published, or their message is lost.

    Those of searches with a higher priority first; of searches with the same one in turns, and as many of each as there
    are, for none is to wait until another one has all of its messages.

    Parameters
    ----------
    database : Database
        The fleet's.
    republish_s : float
        Seconds after which a message counts as lost that workers did not find. They take messages in their order, so it
        is lost if it was sent that long before the one that has waited longest.
    limit : int, default=500
        How many at most.
    oldest : int, default=None
        The trial of the message that has waited longest; None: no message waits.
    """
    with database.read() as connection:
        lost_before = _lost_before(connection, republish_s, oldest)
        searches = connection.execute(_SEARCHES_TO_PUBLISH, {"lost_before": lost_before}).all()
        due: list[int] = []
        for _, group in itertools.groupby(searches, key=lambda search: search.priority):
            wanting = [search.id for search in group if search.unpublished is not None or search.lost is not None]
            due += _in_turns(connection, wanting, lost_before, limit - len(due))
        return due


def _lost_before(connection: Connection, republish_s: float, oldest: int | None) -> datetime | None:
    """Return the time before which messages of now queued trials were sent that are lost; None: not known of any."""
    sent_at = select(now()) if oldest is None else select(Trial.published_at).where(Trial.id == oldest)
    at: datetime | None = connection.execute(sent_at).scalar()
    return None if at is None else at - timedelta(seconds=republish_s)


def _in_turns(connection: Connection, search_ids: list[int], lost_before: datetime | None, limit: int) -> list[int]:
    """List due trials of searches, one of each after the other; what one does not need, the others may have."""
    found: list[list[int]] = []
    left = limit
    for number, search_id in enumerate(search_ids):
        if not left:
            break
        share = -(-left // (len(search_ids) - number))
        wanted = {"searched_id": search_id, "lost_before": lost_before}
        mine = list(connection.execute(_UNPUBLISHED_OF_SEARCH, {**wanted, "at_most": share}).scalars())
        if len(mine) < share and lost_before is not None:
            mine += connection.execute(_LOST_OF_SEARCH, {**wanted, "at_most": share - len(mine)}).scalars()
        found.append(mine)
        left -= len(mine)
    turns = itertools.zip_longest(*reversed(found))  # the oldest search first
    return [trial_id for turn in turns for trial_id in turn if trial_id is not None]


def never_published(database: Database, trial_ids: Sequence[int]) -> list[int]:
    """List those of some trials that can be claimed now and that no message was sent for since they were taken back."""
    due = select(Trial.id).where(Trial.id.in_(trial_ids), WAITS, Trial.published_at.is_(None)).order_by(Trial.id)
    with database.read() as connection:
        return list(connection.execute(due).scalars())


def count_queued(database: Database, *, most: int = COUNTED) -> int:
    """Count the queued trials of all searches that are not paused; ``most`` if there are as many, or more."""
    some = select(Trial.id).where(Trial.state == TrialState.QUEUED, ~IS_PAUSED).limit(most).subquery()
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


@retried
def mark_published(database: Database, trial_ids: Sequence[int]) -> None:
    """Note that messages were sent; changes no state."""
    # in transactions of their own, for workers that have the messages already pass over what is locked
    for start in range(0, len(trial_ids), NOTED_AT_ONCE):
        with database.write() as connection:
            connection.execute(
                update(Trial)
                .where(Trial.id.in_(trial_ids[start : start + NOTED_AT_ONCE]), Trial.state == TrialState.QUEUED)
                .values(published_at=now(), publish_count=Trial.publish_count + 1)
            )
