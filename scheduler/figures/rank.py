"""Two hyperparameters against each other: a point for each trial, coloured by its rank among all of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from gridfleet.scheduler.figures import shown
from gridfleet.scheduler.figures.heatmap import MOST_CELLS, chosen
from gridfleet.scheduler.figures.style import SCALE, SECOND, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, drawn
from gridfleet.scheduler.figures.values import Axis, axes
from gridfleet.storage.database.connection import Database

if TYPE_CHECKING:
    import plotly.graph_objects

#: What hovering over a trial says.
HOVER = "trial %{customdata[0]}: rank %{customdata[1]}<extra></extra>"
#: How far from the place of its value a point may stand: trials with equal values would hide each other.
SPREAD = 0.3


def rank(
    database: Database, search_id: int, first: str | None = None, second: str | None = None, *, most: int = MOST
) -> plotly.graph_objects.Figure:
    """Draw each trial at its values of two hyperparameters, in the colour of its rank: where the good ones lie.

    One score that is far from all others leaves these their colours, as it would not by the scores themselves.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    first, second : str, default=None
        Their names; by default the first ones that have two values or more.
    most : int, default=2000
        Trials that are drawn at most.

    Returns
    -------
    plotly.graph_objects.Figure
        Of hyperparameters with 25 values or less, the points of one value lie around it.

    Raises
    ------
    NothingToDrawError
        If fewer than two trials have a score, or the search has not two such hyperparameters.
    """
    found = drawn(database, search_id, most)
    by_number = found.require_scored(2)
    x, y = chosen(found, axes([trial.params for trial in by_number]), first, second)
    # the best are drawn last, above the others
    order = sorted(
        range(len(by_number)), key=lambda place: (by_number[place].mean_test_score or 0.0, -by_number[place].number)
    )
    scored = [by_number[place] for place in order]
    scores = np.array([trial.mean_test_score for trial in scored])
    # equal scores share the best of their ranks
    ranks = 1 + len(scores) - np.searchsorted(scores, scores, side="right")
    chance = random.Random(search_id)  # noqa: S311 - a figure, and the same one each time
    x_values, y_values = _spread(x, chance)[order], _spread(y, chance)[order]
    go = graph_objects()
    figure = go.Figure(
        go.Scatter(
            x=x_values,
            y=y_values,
            mode="markers",
            marker={
                "color": ranks,
                "colorscale": SCALE,
                "reversescale": True,
                "cmin": 1,
                "cmax": len(scored),
                "size": 8,
                "opacity": 0.85,
                "showscale": True,
                "colorbar": {
                    "title": {"text": "rank"},
                    "tickvals": [1, len(scored)],
                    "ticktext": ["best", "worst"],
                },
            },
            customdata=np.stack([[trial.number for trial in scored], ranks], axis=1),
            hovertemplate=HOVER,
        )
    )
    figure.add_scatter(
        x=x_values[-1:],
        y=y_values[-1:],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": SECOND, "line": {"color": "white", "width": 1}},
        hovertext=[shown.trial(scored[-1])],
        hoverinfo="text",
        name="best",
    )
    figure.update_xaxes(**_layout(x))
    figure.update_yaxes(**_layout(y))
    among = "ranked among these" if found.is_sample else ""
    titled(figure, f"Rank over {x.title} and {y.title} of {text(found.search.name)}", found.note, among)
    return figure.update_layout(showlegend=False)


def _has_places(axis: Axis) -> bool:
    return not axis.is_numeric or axis.n_values <= MOST_CELLS


def _spread(axis: Axis, chance: random.Random) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not _has_places(axis):
        return np.array(axis.values)
    places = {value: place for place, value in enumerate(sorted(set(axis.values)))}
    return np.array([places[value] + chance.uniform(-SPREAD, SPREAD) for value in axis.values])


def _layout(axis: Axis) -> dict[str, Any]:
    if not axis.is_numeric or not _has_places(axis):
        return axis.layout()
    texts = dict(zip(axis.values, axis.texts(), strict=True))
    ticks = [texts[value] for value in sorted(texts)]
    return {
        "title": {"text": axis.title},
        "tickmode": "array",
        "tickvals": list(range(len(ticks))),
        "ticktext": ticks,
        "range": [-0.5, len(ticks) - 0.5],
    }
