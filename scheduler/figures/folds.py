"""The scores of the best trials split by split: whether the splits agree, and whether the winner leads by more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from gridfleet.scheduler.figures.style import OTHERS, SECOND, WINNER, colour, graph_objects, text, titled
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.figures import count, score, with_deviation
from gridfleet.scheduler.reports.tables import metric_of
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.schema import SplitScore, Trial

if TYPE_CHECKING:
    import plotly.graph_objects

#: The best trials that are drawn, and splits of each.
MOST_TRIALS, MOST_SPLITS = 10, 100
#: Splits up to which each has a colour of its own.
COLOURED = 6


def folds(
    database: Database, search_id: int, *, metric: str | None = None, number: int | None = None
) -> plotly.graph_objects.Figure:
    """Draw the score of each split of the best trials, and their means.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    metric : str, default=None
        Of several; None: the one that ranks the trials.
    number : int, default=None
        One trial only; None: the best ten.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If there are no scores, or none by this metric.
    """
    search = reader.find_search(database, search_id)
    asked = metric or search.refit_metric
    ranked = (
        trial_reader.leaderboard(database, search_id, limit=MOST_TRIALS)
        if number is None
        else [one for one in [trial_reader.trial_of(database, search_id, number)] if one is not None]
    )
    places = {trial.number: place for place, trial in enumerate(ranked)}
    query = (
        select(Trial.number, SplitScore.split, SplitScore.test_score)
        .join(Trial, Trial.id == SplitScore.trial_id)
        .where(
            Trial.search_id == search_id,
            Trial.number.in_(places),
            SplitScore.metric == asked,
            SplitScore.split < MOST_SPLITS,
            SplitScore.test_score.is_not(None),
        )
        .order_by(SplitScore.split, Trial.number)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
        if not rows:
            raise NothingToDrawError(_nothing(search, asked, _metrics(connection, search_id, places)))
    go = graph_objects()
    figure = go.Figure()
    splits = sorted({row.split for row in rows})
    for split in splits:
        of_split = sorted((row for row in rows if row.split == split), key=lambda row: places[row.number])
        figure.add_scatter(
            x=[places[row.number] for row in of_split],
            y=[row.test_score for row in of_split],
            mode="lines+markers" if len(places) > 1 else "markers",
            line={"width": 1, "color": colour(split) if len(splits) <= COLOURED else OTHERS},
            marker={"size": 7},
            opacity=0.8,
            name=f"split {split}",
            showlegend=len(splits) <= COLOURED,
            hovertext=[f"trial {row.number}, split {split}: {score(row.test_score)}" for row in of_split],
            hoverinfo="text",
        )
    means = {}
    for trial in ranked:
        of_trial = [row.test_score for row in rows if row.number == trial.number]
        if of_trial:
            means[trial.number] = sum(of_trial) / len(of_trial)
    figure.add_scatter(
        x=[places[one] for one in means],
        y=list(means.values()),
        mode="markers",
        marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": [SECOND, *[WINNER] * (len(means) - 1)]}},
        name="mean",
        hovertext=[
            f"trial {one}: {with_deviation(mean, _deviation([row.test_score for row in rows if row.number == one]))}"
            for one, mean in means.items()
        ],
        hoverinfo="text",
    )
    figure.update_xaxes(
        title_text="trial, the best first",
        tickmode="array",
        tickvals=list(places.values()),
        ticktext=[str(one) for one in places],
        range=[-0.5, len(places) - 0.5],
    )
    shown = metric_of(search) if asked == search.refit_metric else asked
    figure.update_yaxes(title_text=f"test {text(shown)}")
    left_out = "" if search.n_splits <= MOST_SPLITS else f"the first {MOST_SPLITS} of {count(search.n_splits, 'split')}"
    what = "the best trial" if len(means) == 1 and number is None else f"the best {len(means)} trials"
    return titled(
        figure,
        f"Scores by split of {text(search.name)}",
        what if number is None else f"trial {number}",
        left_out,
    )


def _nothing(search: reader.SearchSummary, metric: str, metrics: list[str]) -> str:
    if not metrics or metric in metrics:
        return f"search {search.name!r} has no scores of splits yet"
    return f"search {search.name!r} has no metric {metric!r}; it has {', '.join(map(repr, metrics))}"


def _metrics(connection: Connection, search_id: int, numbers: Iterable[int]) -> list[str]:
    """Return the metrics that some trials have."""
    query = (
        select(SplitScore.metric)
        .join(Trial, Trial.id == SplitScore.trial_id)
        .where(Trial.search_id == search_id, Trial.number.in_(numbers))
        .distinct()
        .order_by(SplitScore.metric)
    )
    return list(connection.execute(query).scalars())


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5)
