"""The proposals of a search, computed once more from its rows and its seed: that nothing else decided can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from sqlalchemy import select

from gridfleet.scheduler.fleet.asker import row_of
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.proposals import halving as rounds
from gridfleet.scheduler.proposals.ask import Proposer
from gridfleet.scheduler.proposals.samplers import Sampler
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import ProposalError
from gridfleet.storage.halving import Halving
from gridfleet.storage.schema import Search
from gridfleet.storage.spaces import Space
from gridfleet.storage.trials import proposed
from gridfleet.storage.trials.proposed import Asking


@dataclass(frozen=True, slots=True)
class Difference:
    """The first proposal that is another one when it is computed again."""

    number: int
    recorded: Any
    again: Any


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What came of computing all proposals of a search again.

    Parameters
    ----------
    n_proposals : int
        How many there are.
    difference : Difference or None
        The first that is another one; None: none is.
    seed : int or None
        Of all of them; None: of a halving search, whose rounds need none.
    optuna_then, optuna_now : str or None
        Its release where the search was submitted, and here.
    """

    n_proposals: int
    difference: Difference | None = None
    seed: int | None = None
    optuna_then: str | None = None
    optuna_now: str | None = None

    def __str__(self) -> str:
        of_what = "scores of the rounds before" if self.seed is None else f"rows and the seed {self.seed}"
        if self.difference is None:
            noun = "proposal follows" if self.n_proposals == 1 else "proposals follow"
            return f"all {self.n_proposals} {noun} from the {of_what}"
        one = self.difference
        said = (
            f"proposal {one.number} does NOT follow from the {of_what}: {one.recorded!r} was recorded, and "
            f"{one.again!r} comes out now; rows were changed, or a trial before it was retried after it"
        )
        if self.optuna_then != self.optuna_now:
            said += f", or it is the release of Optuna, which was {self.optuna_then} and is {self.optuna_now} here"
        return said


def recomputed(fleet: Fleet, search_id: int) -> Recomputed | None:
    """Compute all proposals of a search again.

    Returns
    -------
    Recomputed or None
        None if its trials were stored with it.

    Raises
    ------
    PayloadSignatureError
        If the search is not what was submitted.
    """
    with fleet.database.read() as connection:
        row = connection.execute(select(*Search.__table__.columns).where(Search.id == search_id)).one()
    if row.n_asked is None:
        return None
    searches.check_signature(fleet.settings.verifier(), search_id, row._asdict())
    search = Asking(**{name: getattr(row, name) for name in Asking.__slots__})
    if search.space is None:
        return _rounds(fleet.database, search)
    difference, n_proposals = _proposals(fleet.database, search, search.space)
    try:
        here = metadata.version("optuna")
    except metadata.PackageNotFoundError:  # which a grid needs not
        here = None
    return Recomputed(n_proposals, difference, search.seed, row.optuna_version, here)


def _proposals(database: Database, search: Asking, described: str) -> tuple[Difference | None, int]:
    rows = [row_of(row) for row in proposed.proposed(database, search.id)]
    proposer = Proposer(Space.from_json(described), Sampler.from_json(search.sampler), search.seed)
    for number, row in enumerate(rows):
        try:
            again = proposer.ask(rows[:number], row.unknown)
        except ProposalError as error:
            return Difference(number, row.sample, str(error)), len(rows)
        if again != row.sample:
            return Difference(number, row.sample, again), len(rows)
    return None, len(rows)


def _rounds(database: Database, search: Asking) -> Recomputed:
    halving = Halving.from_json(search.sampler)
    before = proposed.round_trials(database, search, 0)
    n_proposals = 0
    for index in range(1, len(halving.n_candidates)):
        these = proposed.round_trials(database, search, index)
        if not these:
            break
        chosen = rounds.next_round(before, halving, index, search.n_splits)
        for place, (trial, (candidate, shown)) in enumerate(zip(these, chosen, strict=False)):
            if (trial.candidate, trial.params) != (candidate, shown):
                number = halving.first_of(index) + place
                return Recomputed(n_proposals + len(these), Difference(number, trial.candidate, candidate))
        n_proposals += len(these)
        before = these
    return Recomputed(n_proposals)
