"""The best score so far of several searches: over their trials, or over the time since each began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gridfleet.scheduler.figures.style import colour, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, Drawn, drawn
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError

if TYPE_CHECKING:
    import plotly.graph_objects

#: Seconds from which on an axis is in minutes, and in hours.
MINUTES_FROM, HOURS_FROM = 300, 18_000
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def best_so_far(
    database: Database,
    search_ids: Sequence[int],
    *,
    over: Literal["trials", "time"] = "trials",
    most: int = MOST,
) -> plotly.graph_objects.Figure:
    """Draw the best score of each search up to each of its trials that ended.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_ids : sequence of int
        Their ids.
    over : {"trials", "time"}, default="trials"
        How many trials were scored by then, or how long the search ran by then.
    most : int, default=2000
        Trials of each that are read at most.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial of any has a score.
    """
    found = [drawn(database, search_id, most) for search_id in search_ids]
    lines = [_line(one, over) for one in found]
    longest = max((line[0][-1] for line in lines if line[0]), default=None)
    if longest is None:
        names = ", ".join(repr(one.search.name) for one in found)
        raise NothingToDrawError(f"no trial of {names} has a score yet")
    unit, size = ("s", 1) if over == "trials" or longest < MINUTES_FROM else ("min", 60)
    unit, size = ("h", 3_600) if over == "time" and longest >= HOURS_FROM else (unit, size)
    go = graph_objects()
    figure = go.Figure()
    for place, (one, (x, y)) in enumerate(zip(found, lines, strict=True)):
        if x:
            figure.add_scatter(
                x=[value / size for value in [*x, longest]],
                y=[*y, y[-1]],
                mode="lines",
                line={"shape": "hv", "color": colour(place), "dash": _DASHES[place % len(_DASHES)], "width": 2},
                name=text(one.search.name, 40),
            )
    metrics = dict.fromkeys(text(one.metric) for one in found)
    figure.update_xaxes(title_text="trials scored" if over == "trials" else f"{unit} since the first trial started")
    figure.update_yaxes(title_text=f"best mean test {' or '.join(metrics)}")
    differ = "" if len(metrics) == 1 else "their metrics differ"
    sampled = "of large searches a sample, with the best" if any(one.is_sample for one in found) else ""
    return titled(figure, "Best score so far", differ, sampled)


def _line(found: Drawn, over: str) -> tuple[list[float], list[float]]:
    """Return where the best so far changes, and to what."""
    ended = sorted(
        (
            (trial.finished_at, trial.number, trial.mean_test_score)
            for trial in found.scored
            if trial.finished_at is not None and trial.mean_test_score is not None
        ),
    )
    starts = [trial.started_at for trial in found.trials if trial.started_at is not None]
    began = found.search.started_at or min(starts, default=None)
    x: list[float] = []
    y: list[float] = []
    for place, (at, number, score) in enumerate(ended, start=1):
        if not y or score > y[-1]:
            if over == "time":
                x.append(max((at - began).total_seconds(), 0.0) if began else 0.0)
            else:
                # of a sample, how many came before is known by its number only
                x.append(float(number + 1 if found.is_sample else place))
            y.append(score)
    if ended and over == "trials":
        x.append(float(found.search.n_trials if found.is_sample else len(ended)))
        y.append(y[-1])
    return x, y
