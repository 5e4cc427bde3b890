"""Trials that are added while their search goes on: what is known of those before, and how new ones are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, and_, bindparam, insert, not_, select, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.schema import FINAL_STATES, Search, SplitScore, Trial, TrialState
from gridfleet.storage.statements import changed
from gridfleet.storage.trial_results import NON_FINITE, score_of
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
    """A search of which proposals are wanted; one whose rounds are halved has no space, seed and lookahead."""

    id: int
    name: str
    space: str | None
    sampler: str
    seed: int
    lookahead: int
    asks_in_order: bool
    n_trials: int
    n_asked: int
    n_splits: int
    refit_metric: str
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
    iter, n_resources : int or None
        Of a halving search: its round, and what a candidate gets in that.
    """

    sample: Mapping[str, Any]
    shown: Mapping[str, Any]
    asked_without: Sequence[int]
    iter: int | None = None
    n_resources: int | None = None


@dataclass(frozen=True, slots=True)
class RoundTrial:
    """What became of a candidate in a round of a halving search.

    Parameters
    ----------
    candidate : int
        Which of those of the first round it is.
    params : mapping
        Its hyperparameters as JSON.
    is_final : bool
        Whether it has ended.
    is_let_out : bool
        Whether it ended with an exception that scikit-learn lets out of ``fit`` whatever ``error_score`` is.
    has_raised : bool
        Whether a fit or score raised, and was not just no number.
    scores : mapping of int to float
        By split.
    """

    candidate: int
    params: Mapping[str, Any]
    is_final: bool
    is_let_out: bool
    has_raised: bool
    scores: dict[int, float] = field(default_factory=dict)


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
    .where(Trial.search_id == bindparam("wanted_id"), Trial.number >= bindparam("first_number"))
    .order_by(Trial.number)
)
_ROUND = (
    select(
        Trial.number,
        Trial.sample,
        Trial.params,
        Trial.state,
        Trial.exception,
        Trial.error_type,
        SplitScore.split,
        SplitScore.test_score,
        SplitScore.test_score_reason,
    )
    .outerjoin(SplitScore, and_(SplitScore.trial_id == Trial.id, SplitScore.metric == bindparam("wanted_metric")))
    .where(Trial.search_id == bindparam("wanted_id"), Trial.iter == bindparam("wanted_iter"))
    .order_by(Trial.number, SplitScore.split)
)
_SAMPLES = (
    select(Trial.sample, Trial.state, Trial.iter)
    .where(Trial.search_id == bindparam("wanted_id"))
    .order_by(Trial.number)
)
_TAKE_NUMBERS = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.n_asked == bindparam("known_n_asked"), _ASKS)
    .values(n_asked=Search.n_asked + bindparam("n_more"))
)
_FAIL = update(Search).where(Search.id == bindparam("wanted_id"), _ASKS).values(error=bindparam("why"))
_END = (
    update(Search)
    .where(Search.id == bindparam("wanted_id"), Search.n_asked == bindparam("known_n_asked"), _ASKS)
    .values(is_exhausted=True)
)


def asking(database: Database) -> list[Asking]:
    """List the searches of which proposals are wanted, the oldest first."""
    with database.read() as connection:
        return [Asking(**row._mapping) for row in connection.execute(_ASKING.where(_ASKS))]


def proposed(database: Database, search_id: int, *, first: int = 0) -> Sequence[Row[Any]]:
    """Return what proposals depend on: sample, state, score, asked_without, where a trial was pruned; by number.

    Those before `first` are left out.
    """
    with database.read() as connection:
        return connection.execute(_PROPOSED, {"wanted_id": search_id, "first_number": first}).all()


def samples(database: Database, search_id: int) -> list[Any]:
    """Return the samples of a search's trials, by number; without rounds that were stopped before they began."""
    with database.read() as connection:
        rows = connection.execute(_SAMPLES, {"wanted_id": search_id}).all()
    begun = {row.iter for row in rows if row.iter is None or row.state != TrialState.CANCELLED}
    return [row.sample for row in rows if row.iter in begun]


def round_trials(database: Database, search: Asking, index: int) -> list[RoundTrial]:
    """Return what became of the candidates of a round of a halving search, by number."""
    wanted = {"wanted_id": search.id, "wanted_iter": index, "wanted_metric": search.refit_metric}
    found: dict[int, RoundTrial] = {}
    with database.read() as connection:
        for row in connection.execute(_ROUND, wanted):
            if row.number not in found:
                has_failed = row.state == TrialState.FAILED
                found[row.number] = RoundTrial(
                    candidate=row.number if row.sample is None else row.sample["candidate"],
                    params=row.params,
                    is_final=TrialState(row.state) in FINAL_STATES,
                    is_let_out=has_failed and row.exception is not None,
                    has_raised=has_failed and row.error_type != NON_FINITE,
                )
            if row.split is not None:
                found[row.number].scores[row.split] = score_of(row.test_score, row.test_score_reason)
    return list(found.values())


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
        row |= {"asked_without": list(proposal.asked_without), "iter": proposal.iter}
        rows.append({**row, "n_resources": proposal.n_resources})
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


@retried
def fail_proposals(database: Database, search_id: int, error: str) -> bool:
    """Note why nothing more can be proposed of a search; it is finished when its trials are, and counts as failed.

    Returns
    -------
    bool
        False if it was ended before.
    """
    with database.write() as connection:
        if not changed(connection.execute(_FAIL, {"wanted_id": search_id, "why": error})):
            return False
    searches.finish_search(database, search_id)
    return True
