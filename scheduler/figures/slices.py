"""Slices: the scores over each hyperparameter by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gridfleet.scheduler.figures import shown
from gridfleet.scheduler.figures.style import SCALE, SECOND, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, drawn
from gridfleet.scheduler.figures.values import axes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError

if TYPE_CHECKING:
    import plotly.graph_objects

#: Hyperparameters that get a panel.
MOST_PANELS = 12
#: Panels beside each other, and the height of a row of them.
COLUMNS, ROW_HEIGHT = 3, 300
#: What hovering over a trial says, in each panel; texts of their own would be most of what is sent.
HOVER = "trial %{customdata}: %{y:.4~g}<extra></extra>"


def slices(
    database: Database, search_id: int, *, name: str | None = None, most: int = MOST
) -> plotly.graph_objects.Figure:
    """Draw the score of each trial over the values of each hyperparameter, the best of them marked.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    name : str, default=None
        One hyperparameter only.
    most : int, default=2000
        Trials that are drawn at most.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial has a score, no hyperparameter has two values, or none has this name.
    """
    found = drawn(database, search_id, most)
    scored = found.require_scored()
    varied = axes([trial.params for trial in scored])
    if name is not None:
        varied = [axis for axis in axes([trial.params for trial in scored], varied=False) if axis.name == name]
        if not varied:
            raise NothingToDrawError(f"search {found.search.name!r} has no hyperparameter {name!r}")
    if not varied:
        raise NothingToDrawError(f"no hyperparameter of search {found.search.name!r} has two values that were scored")
    go = graph_objects()
    from plotly.subplots import make_subplots

    panels = varied[:MOST_PANELS]
    n_columns = min(COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(
        rows=n_rows, cols=n_columns, shared_yaxes="all", horizontal_spacing=0.04, vertical_spacing=0.28 / n_rows
    )
    # arrays, which plotly checks and writes as a whole: of lists it looks at each value, of each panel again
    scores = np.array([trial.mean_test_score for trial in scored])
    numbers = np.array([trial.number for trial in scored], dtype="int32")
    best = scored.index(max(scored, key=lambda trial: trial.place))
    for place, axis in enumerate(panels):
        row, column = place // n_columns + 1, place % n_columns + 1
        values = np.array(axis.values, dtype="float64" if axis.is_numeric else "int16")
        trace = go.Scatter(
            x=values,
            y=scores,
            mode="markers",
            marker={
                "color": scores.astype("float32"),
                "colorscale": SCALE,
                "opacity": 0.75,
                "size": 7,
            },
            customdata=numbers,
            hovertemplate=HOVER,
            showlegend=False,
        )
        winner = go.Scatter(
            x=[axis.values[best]],
            y=[scored[best].mean_test_score],
            mode="markers",
            marker={"symbol": "star", "size": 13, "color": SECOND, "line": {"width": 1, "color": "white"}},
            hovertext=[shown.trial(scored[best])],
            hoverinfo="text",
            showlegend=False,
        )
        figure.add_traces([trace, winner], rows=[row, row], cols=[column, column])
        figure.update_xaxes(row=row, col=column, **axis.layout())
        if column == 1:
            figure.update_yaxes(title_text=f"mean test {text(found.metric)}", row=row, col=column)
    left_out = "" if len(varied) <= MOST_PANELS else f"the first {MOST_PANELS} of {len(varied)} hyperparameters"
    titled(figure, f"Slices of {text(found.search.name)}", found.note, left_out)
    return figure.update_layout(height=ROW_HEIGHT * n_rows + 150)
