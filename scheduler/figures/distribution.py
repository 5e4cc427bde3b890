"""How the scores of a search are distributed: for each score the share of trials that are no better (EDF)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gridfleet.scheduler.figures.style import colour, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, drawn
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError

if TYPE_CHECKING:
    import plotly.graph_objects


def distribution(database: Database, search_ids: Sequence[int], *, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw for each score how many trials of each search reach no more: a line far to the right is a good search.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_ids : sequence of int
        Their ids.
    most : int, default=2000
        Trials of each that are drawn at most; of a large search a fair sample.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial of any has a score.
    """
    found = [drawn(database, search_id, most) for search_id in search_ids]
    go = graph_objects()
    figure = go.Figure()
    for place, one in enumerate(found):
        scores = sorted(trial.mean_test_score for trial in one.fair if trial.mean_test_score is not None)
        if scores:
            figure.add_scatter(
                x=scores,
                y=[(n + 1) / len(scores) for n in range(len(scores))],
                mode="lines",
                line={"shape": "hv", "color": colour(place)},
                name=text(one.search.name, 40),
            )
    if not figure.data:
        raise NothingToDrawError(f"no trial of {', '.join(repr(one.search.name) for one in found)} has a score yet")
    figure.update_xaxes(title_text=f"mean test {' or '.join(dict.fromkeys(text(one.metric) for one in found))}")
    figure.update_yaxes(title_text="share of trials", range=[0, 1.02])
    return titled(figure, "Distribution of the scores", *(one.note for one in found if len(found) == 1))
