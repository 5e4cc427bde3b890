"""How all figures look, and what may stand in them: texts of users are escaped, for plotly takes them for HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gridfleet.scheduler.reports.plain import plain
from gridfleet.storage.errors import MissingPackageError

if TYPE_CHECKING:
    import plotly.graph_objects

#: Colours that colour-blind people can tell apart, by Okabe and Ito; the one of the winner is the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
WINNER, SECOND, OTHERS = COLOURS[0], COLOURS[1], "#A6A6A6"
#: Of scores: it grows lighter evenly, for all eyes and in grey.
SCALE = "Viridis"
#: Characters of a name or value in a figure.
MAX_TEXT = 40

_GRID = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)", "automargin": True}
_LAYOUT: dict[str, Any] = {
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#262626"},
    "colorway": COLOURS,
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "hovermode": "closest",
    "hoverlabel": {"align": "left"},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1.0},
    "margin": {"t": 90, "r": 30, "b": 60, "l": 70},
}


def graph_objects() -> Any:
    """Return plotly's module of that name.

    Raises
    ------
    MissingPackageError
        If plotly is not installed.
    """
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise _missing("plotly", error) from error
    return plotly.graph_objects


def optuna_module() -> Any:
    """Return the module `optuna`, which is to log nothing about studies that are made of rows.

    Raises
    ------
    MissingPackageError
        If Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise _missing("optuna", error) from error
    return optuna


def _missing(package: str, error: ImportError) -> MissingPackageError:
    extra = "optuna" if package == "optuna" else "page"
    return MissingPackageError(f"{package} is needed for this: pip install 'gridfleet[{extra}]' ({error})")


def text(value: object, most: int = MAX_TEXT) -> str:
    """Return what somebody stored as a figure may show it: in one line, shortened in its middle, escaped."""
    # not quotes, whose entities plotly shows as they are
    return html.escape(shortened(plain(str(value)), most), quote=False)


def shortened(value: str, most: int = MAX_TEXT) -> str:
    """Take characters from the middle of a text that is longer than `most`."""
    n_first = most // 2
    return value if len(value) <= most else f"{value[:n_first]}…{value[len(value) - (most - n_first - 1) :]}"


def titled(figure: plotly.graph_objects.Figure, title: str, *notes: str) -> plotly.graph_objects.Figure:
    """Give a figure the look of all, a title, and below it what a reader has to know.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        Which is changed.
    title : str
        May hold what somebody stored, if that went through `text`.
    *notes : str
        Empty ones are left out.
    """
    below = " · ".join(filter(None, notes))
    figure.update_layout(
        template={"layout": {"xaxis": _GRID, "yaxis": _GRID}},
        title={"text": title, "subtitle": {"text": below, "font": {"size": 12}}, "x": 0, "xref": "paper"},
        **_LAYOUT,
    )
    return figure


def colour(place: int) -> str:
    """Return one of the colours by its place, from the first again after the last."""
    return COLOURS[place % len(COLOURS)]


def faint(colour: str, opacity: float = 0.2) -> str:
    """Return a colour of `COLOURS` as plotly fills an area with it."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def thinned(values: Sequence[Any], most: int) -> Sequence[int]:
    """Return the places of at most so many values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return range(len(values))
    return sorted({round(place * (len(values) - 1) / (most - 1)) for place in range(most)})
