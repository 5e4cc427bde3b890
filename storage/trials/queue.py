"""The trials that wait: which one a worker takes at a message, and which ones a message has to be sent for."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    null,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.orm import aliased

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.database.times import UtcDateTime, now
from gridfleet.storage.params import canonical, digest_of, params_digest, params_to_json, structural_params
from gridfleet.storage.schema import Search, Trial, TrialState
from gridfleet.storage.statements import IS_PAUSED, ONE, QUEUED, ROWS_PER_STATEMENT, WAITS
from gridfleet.storage.trials import fair_share
from gridfleet.storage.versions import THIS_PYTHON

logger = logging.getLogger(__name__)

#: Queued trials that are counted; how many more there are would take longer the more there are.
COUNTED = 10_000
#: Trials that one transaction notes as published.
NOTED_AT_ONCE = 1_000
#: Whether a trial is of a search that a minor version of Python can evaluate.
IS_FOR_PYTHON = select(Search.id).where(Search.id == Trial.search_id, fair_share.IS_FOR_PYTHON).exists()
_NEXT = fair_share.NEXT_SEARCH.subquery("next_search")
_NAMED = (
    select(_NEXT.c.id, _NEXT.c.session, Trial.search_id.label("named"))
    .outerjoin(Trial, Trial.id == bindparam("wanted_id"))
    .select_from(_NEXT)
)
_IS_OF_OTHERS = select(Trial.id).where(Trial.id == bindparam("wanted_id"), WAITS, ~IS_FOR_PYTHON)
#: The first trial of a search that waits.
WAITING_OF_SEARCH = (
    select(Trial.id).where(Trial.search_id == bindparam("searched_id"), WAITS).order_by(Trial.id).limit(ONE)
)
_LAST_STARTED = (
    select(Trial.id)
    .where(Trial.search_id == bindparam("searched_id"), Trial.started_at.is_not(None))
    .order_by(Trial.started_at.desc())
    .limit(ONE)
    .correlate(None)
    .scalar_subquery()
)
# PostgreSQL keeps what was claimed in the index for as long as anybody's snapshot is older: not all of it is read
_WAITING_BEHIND = WAITING_OF_SEARCH.where(Trial.id > _LAST_STARTED)
#: Structures that a worker asks for, of those that it has compiled programs for: each is a look of its own into the
#: index. To ask for all at once PostgreSQL reads what is queued until it finds one of them.
MAX_STRUCTURES = 4
_HINTED = select(Trial.id).where(Trial.id == bindparam("hinted_id"), WAITS)


def _has_structure(number: int) -> Any:
    return Trial.structure_digest == bindparam(f"structure_{number}")


def waiting_of_structures(n_structures: int) -> list[Select[Any]]:
    """Return what finds the first trial of a search that waits, for each of the structures of `as_parameters`."""
    return [WAITING_OF_SEARCH.where(_has_structure(number)) for number in range(n_structures)]


def as_parameters(structures: Collection[str]) -> dict[str, str]:
    """Return the parameters of statements that ask for structures: those that a worker met last, first."""
    return {f"structure_{number}": one for number, one in enumerate([*structures][-MAX_STRUCTURES:][::-1])}


def first_there(*waiting: Select[Any]) -> Any:
    """Return the first trial that one of these finds and nobody holds, locked where that is possible."""
    # a row that another transaction holds is passed over: it is being claimed, and whoever waited for it would get
    # nothing; all of a fleet would wait for the lowest id
    return func.coalesce(
        *(one.with_for_update(skip_locked=True).correlate(None).scalar_subquery() for one in waiting), null()
    )


def choice(n_structures: int) -> Any:
    """Return the trial that a worker takes at a message, which has programs for as many structures."""
    known = [_HINTED.where(or_(*map(_has_structure, range(n_structures))))] if n_structures else []
    return first_there(*known, *waiting_of_structures(n_structures), _HINTED, _WAITING_BEHIND, WAITING_OF_SEARCH)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a message leads to: a search of which a trial waits.

    ``trial_id`` is the one that the message names if it is of that search: to be taken unless another fits better.
    """

    trial_id: int | None
    search_id: int
    session: str | None


class WaitsForAnotherPythonError(LookupError):
    """A trial waits, but not for this minor version of Python, and none that does is there."""


#: What differs between the new trials of a search, with its types in PostgreSQL.
_NEW: dict[str, Any] = {"number": Integer, "params": JSONB, "params_digest": Text, "structure_digest": Text}
_REUSE: dict[str, Any] = {"reuse_key": Text, "reused_from": BigInteger}


#: What all trials have that are stored with a halving search: they are its first round.
_ROUND = ("iter", "n_resources")


def _creation(columns: Mapping[str, Any], constants: Sequence[str] = ()) -> Any:
    """Return the statement of PostgreSQL that inserts the trials of a search."""
    # one text and not rows of parameters, of which the driver makes a statement each, nor arrays, of which it writes
    # each item: on a busy machine 20,000 trials took 2.1 s in SQL instead of 5.1
    news = (
        func.json_to_recordset(cast(bindparam("rows_as_json", type_=Text), JSON))
        .table_valued(*(column(name, kind) for name, kind in columns.items()))
        .render_derived(with_types=True)
    )
    same = (bindparam(f"all_{name}", type_=Integer) for name in constants)
    return insert(Trial).from_select(
        ["search_id", *columns, *constants],
        select(bindparam("of_search", type_=BigInteger), *(news.c[name] for name in columns), *same),
    )


_CREATE, _CREATE_WITH_KEYS = _creation(_NEW), _creation({**_NEW, **_REUSE})
_CREATE_ROUND = _creation(_NEW, _ROUND)


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
    connection: Connection,
    search_id: int,
    candidates: Sequence[dict[str, Any]],
    reuse: Reuse | None = None,
    *,
    n_resources: int | None = None,
) -> None:
    """Insert the trials of a search, all queued, in the transaction that inserts the search.

    Those of a halving search are its first round, whose candidates get `n_resources`.
    """
    of_round = {} if n_resources is None else {"iter": 0, "n_resources": n_resources}
    for start in range(0, len(candidates), ROWS_PER_STATEMENT):
        shown = [params_to_json(params) for params in candidates[start : start + ROWS_PER_STATEMENT]]
        rows = [new_row(number, params) for number, params in enumerate(shown, start)]
        if reuse is not None:
            for row in rows:
                row["reuse_key"] = key = reuse.keys[row["number"]]
                row["reused_from"] = None if key is None else reuse.taken.get(key)
        if connection.dialect.name == "sqlite":
            facts = zip(rows, shown, strict=True)
            new = [{"search_id": search_id, **row, "params": params, **of_round} for row, params in facts]
            connection.execute(insert(Trial), new)
        else:
            create = _CREATE_ROUND if of_round else _CREATE if reuse is None else _CREATE_WITH_KEYS
            same = {f"all_{name}": value for name, value in of_round.items()}
            as_json = f"[{','.join(map(_as_json, rows))}]"
            connection.execute(create, {"of_search": search_id, "rows_as_json": as_json, **same})


def new_row(number: int, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between the new trials of a search; ``params`` are canonical JSON."""
    structural, params = structural_params(shown), canonical(shown)
    digest = digest_of(params)
    return {
        "number": number,
        "params": params,
        "params_digest": digest,
        "structure_digest": digest if len(structural) == len(shown) else params_digest(structural),
    }


def _as_json(row: dict[str, Any]) -> str:
    # put together, for params are JSON already
    others = json.dumps({name: value for name, value in row.items() if name != "params"})
    return f'{others[:-1]}, "params": {row["params"]}}}'


def in_turn(database: Database, search_id: int, *, limit: int | None = None) -> list[int]:
    """List the trials of a search that wait for a first message, as these are sent: of different structures first.

    Each worker begins with another structure and then stays with it (`choice`).
    """
    turn = func.row_number().over(partition_by=Trial.structure_digest, order_by=Trial.number)
    waits = (Trial.search_id == search_id, Trial.state == TrialState.QUEUED, Trial.published_at.is_(None))
    query = select(Trial.id).where(*waits).order_by(turn, Trial.number).limit(limit)
    with database.read() as connection:
        return list(connection.execute(query).scalars())


def look(database: Database, trial_id: int, *, python: str = THIS_PYTHON, session: str | None = None) -> Hint | None:
    """Look what a message leads to; `claims.claim_at_message` takes it.

    A message is a hint that there is work, whichever trial it names. The work is of the search whose turn it is
    (`fair_share`): else the one that was submitted first would be evaluated first, whose messages are.

    Parameters
    ----------
    database : Database
        The fleet's.
    trial_id : int
        The one that the message names.
    python : str, default=THIS_PYTHON
        This worker's minor version of Python.
    session : str, default=None
        Whose trials this process evaluates; None: anybody's.

    Returns
    -------
    Hint or None
        None if nothing waits that this Python can evaluate, or there is no such trial.

    Raises
    ------
    WaitsForAnotherPythonError
        If the trial of the message waits for another Python, and nothing for this one.
    """
    wanted = {"wanted_id": trial_id, "python": python, "own_session": session}
    with database.read() as connection:
        found = connection.execute(_NAMED, wanted).one_or_none()
        if found is None:
            if connection.execute(_IS_OF_OTHERS, {"wanted_id": trial_id, "python": python}).first() is not None:
                raise WaitsForAnotherPythonError
            logger.debug("the message of trial %d leads to nothing, for nothing waits", trial_id)
            return None
    if found.named is None:
        logger.debug("the message of trial %d leads to nothing, for there is no such trial", trial_id)
        return None
    logger.debug("the message of trial %d leads to search %d, whose turn it is", trial_id, found.id)
    return Hint(trial_id if found.named == found.id else None, found.id, found.session)


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


_these: Any = bindparam("trial_ids", expanding=True)
_is_unpublished = (WAITS, Trial.published_at.is_(None))
_ended = aliased(Trial)
_NEVER_PUBLISHED = union(
    select(Trial.id).where(Trial.id.in_(_these), *_is_unpublished),
    select(Trial.id)
    .join(Search, Search.id == Trial.search_id)
    .where(Search.refit_of.in_(select(_ended.search_id).where(_ended.id.in_(_these))), *_is_unpublished),
)
_NEVER_PUBLISHED = _NEVER_PUBLISHED.order_by(*_NEVER_PUBLISHED.selected_columns)


def never_published(database: Database, trial_ids: Sequence[int]) -> list[int]:
    """List those of some trials that can be claimed now and that no message was sent for since they were taken back.

    Of trials whose searches have ended, also those of the refits that were let go.
    """
    with database.read() as connection:
        return list(connection.execute(_NEVER_PUBLISHED, {"trial_ids": trial_ids}).scalars())


def count_queued(database: Database, *, most: int = COUNTED) -> int:
    """Count the queued trials of all searches that are not paused; ``most`` if there are as many, or more."""
    # in the order of ix_trials_queued: SQLite would go through the index of all states otherwise
    waiting = select(Trial.id).where(Trial.state == QUEUED, ~IS_PAUSED).order_by(Trial.search_id, Trial.id)
    some = waiting.limit(most).subquery()
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
