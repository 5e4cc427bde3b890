"""What a running trial reports between epochs and behind splits: stored with how it stands, in one transaction.

Whoever holds the trial asks; the report, what it was compared with and the decision are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.engine import Connection

from gridfleet.storage.database.connection import Database
from gridfleet.storage.pruner import WILCOXON, Pruner, Standing, cut_between, place_of_cut
from gridfleet.storage.schema import Decision, Report, Search, SplitScore, Trial, TrialState
from gridfleet.storage.trials.held import LOCK_HELD, Held

#: ``reports.step`` where a split has ended.
AT_THE_END = 0


@dataclass(frozen=True, slots=True)
class Racer:
    """A trial that is compared with others of its search.

    Parameters
    ----------
    search_id, number : int
        Which trial.
    pruner : Pruner
        By what.
    newest : int or None
        It is compared with trials up to this number, which have ended when it begins; None: with all that are there.
    """

    search_id: int
    number: int
    pruner: Pruner
    newest: int | None = None


_OF_OTHERS = and_(
    Trial.search_id == bindparam("of_search"),
    Trial.number <= bindparam("newest"),
    Trial.number != bindparam("own_number"),
)
_AT_THE_SAME_STEP = and_(
    Report.trial_id == Trial.id,
    Report.split == bindparam("at_split"),
    Report.step == bindparam("at_step"),
    Report.value.is_not(None),
)
_IN_BRACKET = (
    (cast(Trial.number, BigInteger) * bindparam("stride", type_=BigInteger)) % bindparam("n_places", type_=BigInteger)
).between(bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger))
_IS_COMPLETED: ColumnElement[bool] = Trial.state == literal(TrialState.COMPLETED)
_BETTER = case((Report.value > bindparam("value", type_=Double), 1))
_COUNTS = (func.count(Report.value), func.count(_BETTER), func.count())
#: How many others there are at this step, how many are better, and how many there are whatever they reported.
_AMONG_ALL = select(*_COUNTS).select_from(Trial).join(Report, _AT_THE_SAME_STEP).where(_OF_OTHERS, _IN_BRACKET)
_AMONG_COMPLETED = (
    select(*_COUNTS).select_from(Trial).outerjoin(Report, _AT_THE_SAME_STEP).where(_OF_OTHERS, _IS_COMPLETED)
)
_AROUND_CUT = (
    select(Report.value)
    .join(Trial, _AT_THE_SAME_STEP)
    .where(_OF_OTHERS, _IS_COMPLETED)
    .order_by(Report.value)
    .limit(2)
    .offset(bindparam("n_below"))
)
_BEST = (
    select(Trial.id, Trial.mean_test_score)
    .where(_OF_OTHERS, _IS_COMPLETED, Trial.mean_test_score.is_not(None))
    .order_by(Trial.mean_test_score.desc(), Trial.number)
    .limit(1)
)
_SCORES_OF_BEST = (
    select(SplitScore.test_score)
    .where(
        SplitScore.trial_id == bindparam("best_id"),
        SplitScore.metric == bindparam("of_metric"),
        SplitScore.split <= bindparam("at_split"),
    )
    .order_by(SplitScore.split)
)
_REPORTS = (
    select(
        Trial.number,
        Report.trial_id,
        Report.split,
        Report.step,
        Report.value,
        Report.n_compared,
        Report.rank,
        Report.decision,
    )
    .join(Trial, Trial.id == Report.trial_id)
    .where(Trial.search_id == bindparam("of_search"))
    .order_by(Trial.number, Report.split, Report.step)
)
#: What an attempt that was lost left, and what a commit did whose answer was.
_FORGET_ALL = delete(Report).where(Report.trial_id == bindparam("of_trial"))
_FORGET_SAME = _FORGET_ALL.where(Report.split == bindparam("at_split"), Report.step == bindparam("at_step"))


def report(
    database: Database,
    held: Held,
    racer: Racer,
    *,
    split: int,
    step: int,
    value: float | None,
    best: float | None,
    is_first: bool,
) -> bool | None:
    """Store what a running trial reports, and decide whether it goes on.

    Parameters
    ----------
    database : Database
        The fleet's.
    held : Held
        The trial and the token of the attempt.
    racer : Racer
        What it is compared with.
    split, step : int
        Where it is; reports of the same place are compared.
    value : float or None
        Greater is better; None: not finite.
    best : float or None
        The best value of this trial at this and at earlier steps of the split, by which median and percentile go.
    is_first : bool
        Whether the attempt has reported nothing yet; what earlier ones left is removed then.

    Returns
    -------
    bool or None
        Whether the trial goes on; None if it is not held with this token, and nothing was stored.
    """
    compared = best if racer.pruner.compares_completed else value
    place = _place(racer, split, step)
    stands = partial(_among_others, racer=racer, place=place, compared=compared)
    return _report(database, held, place, value, stands, is_first=is_first)


def report_beside_best(
    database: Database, held: Held, racer: Racer, *, scores: Sequence[float], metric: str, is_first: bool
) -> bool | None:
    """Store a trial's mean behind a split, and decide by its scores beside those of the best trial, split by split.

    Parameters
    ----------
    database, held, racer, is_first
        As for `report`.
    scores : sequence of float
        Of the splits that have ended.
    metric : str
        Whose scores they are.

    Returns
    -------
    bool or None
        As `report`.
    """
    place = _place(racer, len(scores) - 1, AT_THE_END)
    stands = partial(_beside_best, racer=racer, place=place, scores=scores, metric=metric)
    return _report(database, held, place, sum(scores) / len(scores), stands, is_first=is_first)


@dataclass(frozen=True, slots=True)
class Redecided:
    """A report whose decision is another one when it is made again, or which was compared with others.

    Parameters
    ----------
    number, split, step : int
        The trial's, and where it reported.
    stored, again : tuple of (int, int or None, str)
        How many it was compared with, its rank and the decision: then, and of the rows of now.
    """

    number: int
    split: int
    step: int
    stored: tuple[int, int | None, str]
    again: tuple[int, int | None, str]


def decide_again(database: Database, search_id: int) -> tuple[int, list[Redecided]]:
    """Make all decisions of a search with a seed again, from its rows alone.

    Parameters
    ----------
    database : Database
        Where it is.
    search_id : int
        A search with a pruner, whose trials know only of those that had ended before: without a seed it is not recorded
        what was there.

    Returns
    -------
    n_decisions : int
        How many there are; 0 if this search has none that could be made again.
    differing : list of Redecided
        Those that come to something else; all of them also where trials were retried since.
    """
    facts = select(Search.pruner, Search.lookahead, Search.asks_in_order, Search.refit_metric)
    with database.read() as connection:
        search = connection.execute(facts.where(Search.id == search_id)).one()
        if search.pruner is None or not search.asks_in_order:
            return 0, []
        pruner = Pruner.from_json(search.pruner)
        reports = connection.execute(_REPORTS, {"of_search": search_id}).all()
        differing: list[Redecided] = []
        best: dict[tuple[int, int], float] = {}
        for row in reports:
            racer = Racer(search_id, row.number, pruner, row.number - search.lookahead)
            place = _place(racer, row.split, row.step)
            if pruner.name == WILCOXON:
                scores = _scores_of(connection, row.trial_id, row.split, search.refit_metric)
                standing, goes_on = _beside_best(connection, racer, place, scores, search.refit_metric)
            else:
                so_far = _best_of((row.value, best.get((row.number, row.split)))) if row.step else row.value
                if row.step and so_far is not None:
                    best[row.number, row.split] = so_far
                compared = so_far if pruner.compares_completed else row.value
                standing, goes_on = _among_others(connection, racer, place, compared)
            stored = (row.n_compared, row.rank, row.decision)
            again = _decided(standing, row.value, goes_on)
            if stored != again:
                differing.append(Redecided(row.number, row.split, row.step, stored, again))
    return len(reports), differing


def _best_of(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _scores_of(connection: Connection, trial_id: int, split: int, metric: str) -> list[float]:
    found = connection.execute(_SCORES_OF_BEST, {"best_id": trial_id, "of_metric": metric, "at_split": split})
    return [score for score in found.scalars() if score is not None]


def _among_others(
    connection: Connection, racer: Racer, place: Mapping[str, Any], compared: float | None
) -> tuple[Standing, bool]:
    standing = _standing(connection, racer, {**place, "value": compared})
    return standing, racer.pruner.goes_on(compared, standing)


def _beside_best(
    connection: Connection, racer: Racer, place: Mapping[str, Any], scores: Sequence[float], metric: str
) -> tuple[Standing, bool]:
    best = connection.execute(_BEST, dict(place)).one_or_none()
    if best is None:
        return Standing(0, 0), True
    of_best = _scores_of(connection, best.id, place["at_split"], metric)
    if len(of_best) != len(scores):
        return Standing(0, 0), True
    standing = Standing(1, int(best.mean_test_score > sum(scores) / len(scores)))
    return standing, racer.pruner.goes_on_beside(scores, of_best, best.mean_test_score)


def _decided(standing: Standing, value: float | None, goes_on: bool) -> tuple[int, int | None, str]:
    rank = None if value is None else standing.rank
    return standing.n_compared, rank, str(Decision.KEPT if goes_on else Decision.PRUNED)


def _report(
    database: Database,
    held: Held,
    place: dict[str, Any],
    value: float | None,
    stands: Callable[[Connection], tuple[Standing, bool]],
    *,
    is_first: bool,
) -> bool | None:
    with database.write() as connection:
        own = {"wanted_id": held.trial_id, "holder_token": held.token}
        if connection.execute(LOCK_HELD, own).first() is None:
            return None
        forget = _FORGET_ALL if is_first else _FORGET_SAME
        connection.execute(forget, {**place, "of_trial": held.trial_id})
        standing, goes_on = stands(connection)
        n_compared, rank, decision = _decided(standing, value, goes_on)
        row = {
            "trial_id": held.trial_id,
            "split": place["at_split"],
            "step": place["at_step"],
            "value": value,
            "n_compared": n_compared,
            "rank": rank,
            "decision": decision,
        }
        connection.execute(insert(Report), [row])
    return bool(goes_on)


def _place(racer: Racer, split: int, step: int) -> dict[str, Any]:
    return {
        "of_search": racer.search_id,
        "own_number": racer.number,
        "newest": 2**31 - 1 if racer.newest is None else racer.newest,
        "at_split": split,
        "at_step": step,
    }


def _standing(connection: Connection, racer: Racer, place: dict[str, Any]) -> Standing:
    if not racer.pruner.compares_completed:
        bracket = racer.pruner.bracket_of(racer.number)
        of_bracket = {name: getattr(bracket, name) for name in ("first", "last", "stride", "n_places")}
        n_compared, n_better, _ = connection.execute(_AMONG_ALL, {**place, **of_bracket}).one()
        return Standing(n_compared, n_better)
    n_compared, n_better, n_completed = connection.execute(_AMONG_COMPLETED, place).one()
    cut = None
    if n_compared:
        n_below, part = place_of_cut(n_compared, racer.pruner.keeps_quantile)
        around: Sequence[Any] = connection.execute(_AROUND_CUT, {**place, "n_below": n_below}).scalars().all()
        cut = cut_between(around[0], around[-1], part)
    return Standing(n_compared, n_better, n_completed, cut)
