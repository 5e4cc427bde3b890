"""Trials that are proposed while their search goes on: what is known of those before, and how new ones are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, bindparam, insert, not_, select, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.statements import changed
from gridfleet.storage.trials.queue import new_row

#: Whether proposals of a search are wanted.
_ASKS = and_(
    Search.n_asked.is_not(None),
    not_(searches.NOTHING_TO_ASK),
    Search.finished_at.is_(None),
    Search.deleted_at.is_(None),
    Search.paused_at.is_(None),
)


@dataclass(frozen=True, slots=True)
class Asking:
    """A search of which proposals are wanted."""

    id: int
    name: str
    space: str
    sampler: str
    seed: int
    lookahead: int
    asks_in_order: bool
    n_trials: int
    n_asked: int
    pruner: str | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial that is to be added.

    Parameters
    ----------
    sample : mapping
        Its point in the space.
    shown : mapping
        Its hyperparameters as JSON.
    asked_without : sequence of int
        The numbers of earlier trials whose results it was proposed without.
    """

    sample: Mapping[str, Any]
    shown: Mapping[str, Any]
    asked_without: Sequence[int]


_ASKING = select(*(getattr(Search, name) for name in Asking.__slots__)).order_by(Search.id)
_PROPOSED = (
    select(
        Trial.number,
        Trial.sample,
        Trial.state,
        Trial.mean_test_score,
        Trial.asked_without,
        Trial.pruned_split,
        Trial.pruned_epoch,
        Trial.pruned_value,
    )
    .where(Trial.search_id == bindparam("wanted_id"))
    .order_by(Trial.number)
)
_TAKE_NUMBERS = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.n_asked == bindparam("known_n_asked"), _ASKS)
    .values(n_asked=Search.n_asked + bindparam("n_more"))
)
_END = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.n_asked == bindparam("known_n_asked"), _ASKS)
    .values(is_exhausted=True)
)


def asking(database: Database) -> list[Asking]:
    """List the searches of which proposals are wanted, the oldest first."""
    with database.read() as connection:
        return [Asking(**row._mapping) for row in connection.execute(_ASKING.where(_ASKS))]


def proposed(database: Database, search_id: int) -> Sequence[Row[Any]]:
    """Return what proposals depend on, by number: sample, state, score, asked_without and where a trial was pruned."""
    with database.read() as connection:
        return connection.execute(_PROPOSED, {"wanted_id": search_id}).all()


def samples(database: Database, search_id: int) -> list[Any]:
    """Return the samples of a search's trials, by number."""
    return [row.sample for row in proposed(database, search_id)]


def add_proposals(
    database: Database, search_id: int, proposals: Sequence[Proposal], *, n_asked: int
) -> list[int] | None:
    """Add the next trials of a search in one transaction, unless another process was faster, or it was ended.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        The search.
    proposals : sequence of Proposal
        Its next trials, in their order.
    n_asked : int
        How many it had when these were asked for.

    Returns
    -------
    list of int or None
        Their ids, of which messages are to be sent; None: nothing was added.
    """
    rows = []
    for number, proposal in enumerate(proposals, n_asked):
        row = new_row(number, dict(proposal.shown))
        row |= {"search_id": search_id, "params": dict(proposal.shown), "sample": dict(proposal.sample)}
        rows.append({**row, "asked_without": list(proposal.asked_without)})
    taken = {"wanted_id": search_id, "known_n_asked": n_asked, "n_more": len(rows)}
    with database.write() as connection:
        if not changed(connection.execute(_TAKE_NUMBERS, taken)):
            return None
        connection.execute(insert(Trial), rows)
        added = select(Trial.id).where(Trial.search_id == search_id, Trial.number >= n_asked).order_by(Trial.number)
        return list(connection.execute(added).scalars())


def end_proposals(database: Database, search_id: int, *, n_asked: int) -> bool:
    """Note that the space of a search has nothing new; it is finished when its trials are.

    Returns
    -------
    bool
        False if another process was faster.
    """
    with database.write() as connection:
        if not changed(connection.execute(_END, {"wanted_id": search_id, "known_n_asked": n_asked})):
            return False
    searches.finish_search(database, search_id)
    return True
