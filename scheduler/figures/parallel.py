"""Parallel coordinates: a line through the hyperparameters of each trial, to its score. An axis can be brushed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gridfleet.scheduler.figures.style import SCALE, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, drawn
from gridfleet.scheduler.figures.values import Axis, axes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError

if TYPE_CHECKING:
    import plotly.graph_objects

#: Hyperparameters beside each other that can still be told apart.
MOST_AXES = 12
#: Categories of an axis that get their texts.
MOST_LABELS = 30
BRACKETS = str.maketrans("<>", "‹›")


def parallel(database: Database, search_id: int, *, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw a line through each trial's hyperparameters to its score, at most 2,000 of them.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    most : int, default=2000
        Trials that are drawn at most.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial has a score, or all have the same hyperparameters.
    """
    found = drawn(database, search_id, most)
    # the best are drawn last, above the others
    scored = sorted(found.require_scored(), key=lambda trial: trial.mean_test_score or 0)
    varied = axes([trial.params for trial in scored])
    if not varied:
        raise NothingToDrawError(
            f"search {found.search.name!r} has tried one combination only; nothing can be compared"
        )
    go = graph_objects()
    scores = [trial.mean_test_score for trial in scored]
    figure = go.Figure(
        go.Parcoords(
            dimensions=[
                *map(_dimension, varied[:MOST_AXES]),
                {"label": text(found.metric), "values": scores},
            ],
            line={
                "color": scores,
                "colorscale": SCALE,
                "showscale": True,
                "colorbar": {"title": {"text": text(found.metric)}},
            },
            labelangle=-20 if len(varied) > 4 else 0,
        )
    )
    left_out = "" if len(varied) <= MOST_AXES else f"the first {MOST_AXES} of {len(varied)} hyperparameters"
    titled(figure, f"Parallel coordinates of {text(found.search.name)}", found.note, left_out)
    return figure.update_layout(margin={"t": 150, "l": 90})


def _dimension(axis: Axis) -> dict[str, Any]:
    if not axis.is_numeric:
        places = range(len(axis.labels)) if len(axis.labels) <= MOST_LABELS else ()
        return {
            "label": axis.title,
            "values": axis.values,
            "tickvals": list(places),
            # entities would be shown here as they are, and brackets are what makes HTML elsewhere
            "ticktext": [axis.labels[place].translate(BRACKETS) for place in places],
        }
    if not axis.is_log:
        return {"label": axis.title, "values": axis.values}
    # plotly has no logarithmic axes here: the values are the powers, and the texts the numbers
    ticks = axis.log_ticks()
    return {
        "label": axis.title,
        "values": [math.log10(value) for value in axis.values],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:.6g}" for tick in ticks],
    }
