"""Where the time of a search went: building, tracing, compiling, training, scoring, recording."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from gridfleet.scheduler.figures.style import colour, graph_objects, text, titled
from gridfleet.scheduler.figures.trials import MOST, sample
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.figures import count, rounded
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.schema import Trial

if TYPE_CHECKING:
    import plotly.graph_objects

#: Columns of ``trials`` and what they are called.
PHASES = {
    "build_time": "build",
    "trace_time": "trace",
    "compile_time": "compile",
    "train_time": "train",
    "score_time": "score",
    "record_time": "record",
}


def time_spent(database: Database, search_id: int, *, number: int | None = None) -> plotly.graph_objects.Figure:
    """Draw the seconds that all trials of a search took together, or one of them, by what they were spent on.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    number : int, default=None
        One trial; None: all, of a large search a sample.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial has said yet how long it took.
    """
    search = reader.find_search(database, search_id)
    sums = [func.sum(getattr(Trial, column)).label(column) for column in PHASES]
    query = select(func.count(Trial.score_time).label("n"), *sums).where(Trial.search_id == search_id)
    is_sample = number is None and search.n_trials > MOST
    if number is not None:
        query = query.where(Trial.number == number)
    elif is_sample:
        query = query.where(Trial.number.in_(sample(search.n_trials, MOST, seed=search_id)))
    with database.read() as connection:
        row = connection.execute(query).one()
    seconds = {label: float(getattr(row, column) or 0) for column, label in PHASES.items()}
    total = sum(seconds.values())
    if not total:
        whose = f"search {search.name!r}" if number is None else f"trial {number} of search {search.name!r}"
        raise NothingToDrawError(f"{whose} has not said yet what its time was spent on; a trial does as it ends")
    go = graph_objects()
    figure = go.Figure(
        [
            go.Bar(
                x=[label],
                y=[value],
                marker={"color": colour(place)},
                text=[f"{value / total:.0%}"],
                textposition="outside",
                cliponaxis=False,
                hovertext=[f"{label}: {value:.3g} s, {value / total:.1%}"],
                hoverinfo="text",
                showlegend=False,
            )
            for place, (label, value) in enumerate(seconds.items())
        ]
    )
    figure.update_yaxes(title_text="seconds, all splits", rangemode="tozero")
    figure.update_xaxes(title_text="spent on")
    what = f"{rounded(total)} of {'a sample of ' if is_sample else ''}{count(row.n, 'trial')}"
    return titled(figure, f"Where the time of {text(search.name)} went", what)
