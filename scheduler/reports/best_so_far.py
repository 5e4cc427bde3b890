"""How the best score of searches grew from trial to trial: few points of each, for a line as small as a word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate

from sqlalchemy import and_, or_, select

from gridfleet.scheduler.reports.fair_sample import drawn
from gridfleet.scheduler.reports.trial_reader import best_first
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, Trial

#: Trials of a search that are looked at, beside the best.
LOOKED_AT = 100


def best_so_far(database: Database, sizes: Mapping[int, int]) -> dict[int, Sequence[float]]:
    """Return the best score after each of some trials, by number.

    Parameters
    ----------
    database : Database
        The fleet's.
    sizes : mapping of int to int
        How many trials a search has, by its id.

    Returns
    -------
    dict of int to sequence of float
        By id; searches without a score are left out. The last value is the best score of all.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for search_id, n_trials in sizes.items():
        by_size[n_trials].append(search_id)
    if not by_size:
        return {}
    # the same numbers for all searches of a size, for each condition of its own takes as long as many rows
    looked_at = [
        and_(Trial.search_id.in_(ids), Trial.number.in_(drawn(n_trials, n_trials, LOOKED_AT)))
        for n_trials, ids in by_size.items()
    ]
    columns = (Trial.search_id, Trial.number, Trial.mean_test_score)
    best = best_first(Search.id).with_only_columns(Trial.id).limit(1).correlate(Search).scalar_subquery()
    sampled = [search_id for search_id, n_trials in sizes.items() if n_trials > LOOKED_AT]
    bests = select(*columns).join_from(Search, Trial, Trial.id == best).where(Search.id.in_(sampled))
    # not only what is scored: SQLite would go through the whole index of the best
    scored = select(*columns).where(or_(*looked_at))
    found: dict[int, dict[int, float]] = defaultdict(dict)
    with database.read() as connection:
        rows = [*connection.execute(scored), *connection.execute(bests)]
    for row in rows:
        if row.mean_test_score is not None:
            found[row.search_id][row.number] = row.mean_test_score
    return {
        search_id: list(accumulate((scores[number] for number in sorted(scores)), max))
        for search_id, scores in found.items()
    }
