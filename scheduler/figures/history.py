"""The score of each trial in the order in which they were drawn up, and the best so far."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from gridfleet.scheduler.figures import shown
from gridfleet.scheduler.figures.style import OTHERS, SECOND, WINNER, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, Drawn, drawn
from gridfleet.scheduler.reports.pruning import pruner_of
from gridfleet.storage.database.connection import Database
from gridfleet.storage.pruner import SCORE

if TYPE_CHECKING:
    import plotly.graph_objects


def history(database: Database, search_id: int, *, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw each trial's mean score with the deviation over its splits, and the best score up to each.

    Trials that were pruned have another mark, at the score by which they were, or at the bottom.

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
        If no trial has a score.
    """
    found = drawn(database, search_id, most)
    scored = found.require_scored()
    go = graph_objects()
    numbers = [trial.number for trial in scored]
    scores = [trial.mean_test_score or 0.0 for trial in scored]
    best = found.best
    # bars of a thousand points hide them
    deviations = {"type": "data", "array": [trial.std_test_score or 0 for trial in scored], "thickness": 1, "width": 0}
    figure = go.Figure(
        [
            go.Scatter(
                x=numbers,
                y=scores,
                error_y={**deviations, "color": OTHERS} if len(scored) <= 100 else None,
                mode="markers",
                name="trial",
                marker={"color": WINNER, "size": 7 if len(scored) <= 500 else 4, "opacity": 0.7},
                hovertext=[shown.trial(trial) for trial in scored],
                hoverinfo="text",
            ),
            go.Scatter(
                x=numbers,
                y=list(accumulate(scores, max)),
                mode="lines",
                line={"color": SECOND, "shape": "hv", "width": 2},
                name="best so far",
                hoverinfo="skip",
            ),
        ]
    )
    if found.pruned:
        figure.add_scatter(
            x=[trial.number for trial in found.pruned],
            y=_heights(found, is_score=_compares_scores(database, search_id), least=min(scores)),
            mode="markers",
            marker={"symbol": "x-thin", "size": 7, "line": {"color": OTHERS, "width": 1.5}},
            name="pruned",
            hovertext=[shown.trial(trial) for trial in found.pruned],
            hoverinfo="text",
        )
    if best is not None:
        figure.add_scatter(
            x=[best.number],
            y=[best.mean_test_score],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": SECOND},
            name="best",
            hovertext=[shown.trial(best)],
            hoverinfo="text",
        )
    figure.update_xaxes(title_text="trial", rangemode="tozero" if numbers[-1] else "normal")
    figure.update_yaxes(title_text=f"mean test {text(found.metric)}")
    return titled(figure, f"History of {text(found.search.name)}", found.note)


def _compares_scores(database: Database, search_id: int) -> bool:
    pruner = pruner_of(database, search_id)
    return pruner is None or pruner[1] == SCORE


def _heights(found: Drawn, *, is_score: bool, least: float) -> list[float]:
    """Return where pruned trials are drawn: at the score by which they were, else at the bottom."""
    return [
        trial.pruned_value if trial.pruned_value is not None and (is_score or trial.pruned_epoch is None) else least
        for trial in found.pruned
    ]
