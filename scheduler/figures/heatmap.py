"""Two hyperparameters against each other: a cell for each pair of values, a contour where they are continuous."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gridfleet.scheduler.figures import shown
from gridfleet.scheduler.figures.study import study_of
from gridfleet.scheduler.figures.style import SCALE, SECOND, graph_objects, optuna_module, text, titled
from gridfleet.scheduler.figures.trials import MOST, Drawn, DrawnTrial, drawn
from gridfleet.scheduler.figures.values import Axis, axes
from gridfleet.scheduler.reports.figures import count, score
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError

if TYPE_CHECKING:
    import plotly.graph_objects

#: Values of a hyperparameter up to which it gets a row or column of cells.
MOST_CELLS = 25


def heatmap(
    database: Database, search_id: int, first: str | None = None, second: str | None = None, *, most: int = MOST
) -> plotly.graph_objects.Figure:
    """Draw the best score of each pair of values of two hyperparameters.

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
        Cells; Optuna's contour, where both are numbers of more than 25 values.

    Raises
    ------
    NothingToDrawError
        If no trial has a score, or the search has not two such hyperparameters.
    """
    found = drawn(database, search_id, most)
    scored = found.require_scored(2)
    x, y = chosen(found, axes([trial.params for trial in scored]), first, second)
    if x.is_numeric and y.is_numeric and min(x.n_values, y.n_values) > MOST_CELLS:
        figure = _contour(found, x, y)
    else:
        figure = _cells(scored, x, y)
    best = found.best
    if best is not None and not getattr(figure.data[0], "texttemplate", None):
        place = next(place for place, trial in enumerate(scored) if trial is best)
        figure.add_scatter(
            x=[x.values[place] if _is_continuous(x) else x.texts()[place]],
            y=[y.values[place] if _is_continuous(y) else y.texts()[place]],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": SECOND, "line": {"color": "white", "width": 1}},
            hovertext=[shown.trial(best)],
            hoverinfo="text",
            name="best",
        )
    titled(figure, f"{x.title} and {y.title} of {text(found.search.name)}", found.note)
    return figure.update_layout(showlegend=False)


def _is_continuous(axis: Axis) -> bool:
    return axis.is_numeric and axis.n_values > MOST_CELLS


def chosen(found: Drawn, varied: Sequence[Axis], first: str | None, second: str | None) -> tuple[Axis, Axis]:
    """Return two of a search's hyperparameters: those with these names, else the first ones.

    Raises
    ------
    NothingToDrawError
        If there are not two, or none has such a name.
    """
    by_name = {axis.name: axis for axis in varied}
    for name in (first, second):
        if name is not None and name not in by_name:
            raise NothingToDrawError(
                f"search {found.search.name!r} has no hyperparameter {name!r} with two values that were scored"
            )
    others = [name for name in by_name if name not in (first, second)]
    x = first or (others.pop(0) if others else None)
    y = second or (others.pop(0) if others else None)
    if x is None or y is None or x == y:
        has = f"has {count(len(by_name), 'hyperparameter')}" if by_name else "has no hyperparameter"
        raise NothingToDrawError(f"search {found.search.name!r} {has} with two values that were scored; it takes two")
    return by_name[x], by_name[y]


def _cells(scored: Sequence[DrawnTrial], x: Axis, y: Axis) -> plotly.graph_objects.Figure:
    go = graph_objects()
    columns, rows = _ticks(x), _ticks(y)
    if _is_continuous(x) or _is_continuous(y) or len(columns) * len(rows) > MOST:
        return _points(scored, x, y)
    best: dict[tuple[str, str], DrawnTrial] = {}
    n_trials: dict[tuple[str, str], int] = {}
    for trial, column, row in zip(scored, x.texts(), y.texts(), strict=True):
        cell = (column, row)
        n_trials[cell] = n_trials.get(cell, 0) + 1
        if cell not in best or _score(trial) > _score(best[cell]):
            best[cell] = trial
    winner = max(scored, key=lambda trial: (_score(trial), -trial.number))
    cells = [[best.get((column, row)) for column in columns] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=rows,
            z=[[None if trial is None else trial.mean_test_score for trial in row] for row in cells],
            text=[[_label(trial, winner) for trial in row] for row in cells],
            texttemplate="%{text}" if len(columns) * len(rows) <= 100 else None,
            hovertext=[
                [
                    ""
                    if trial is None
                    else f"{shown.trial(trial)}<br>best of {count(n_trials[column, row], 'trial')} here"
                    for column, trial in zip(columns, line, strict=True)
                ]
                for row, line in zip(rows, cells, strict=True)
            ],
            hoverinfo="text",
            colorscale=SCALE,
            colorbar={"title": {"text": "best score"}},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title_text=x.title, type="category")
    return figure.update_yaxes(title_text=y.title, type="category")


def _label(trial: DrawnTrial | None, winner: DrawnTrial) -> str:
    if trial is None:
        return ""
    return f"{'★ ' if trial is winner else ''}{score(trial.mean_test_score)}"


def _points(scored: Sequence[DrawnTrial], x: Axis, y: Axis) -> plotly.graph_objects.Figure:
    go = graph_objects()
    figure = go.Figure(
        go.Scatter(
            x=x.values if _is_continuous(x) else x.texts(),
            y=y.values if _is_continuous(y) else y.texts(),
            mode="markers",
            marker={
                "color": [trial.mean_test_score for trial in scored],
                "colorscale": SCALE,
                "size": 9,
                "showscale": True,
                "colorbar": {"title": {"text": "score"}},
            },
            hovertext=[shown.trial(trial) for trial in scored],
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title_text=x.title, type=_kind(x))
    return figure.update_yaxes(title_text=y.title, type=_kind(y))


def _kind(axis: Axis) -> str:
    return ("log" if axis.is_log else "linear") if _is_continuous(axis) else "category"


def _contour(found: Drawn, x: Axis, y: Axis) -> plotly.graph_objects.Figure:
    optuna = optuna_module()
    study = study_of(found, only=(x.name, y.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure: Any = optuna.visualization.plot_contour(study, params=["0", "1"])
    figure.update_traces(colorscale=SCALE, colorbar_title_text="score", selector={"type": "contour"})
    figure.update_xaxes(title_text=x.title)
    return figure.update_yaxes(title_text=y.title)


def _ticks(axis: Axis) -> list[str]:
    texts = dict(zip(axis.values, axis.texts(), strict=True))
    return [texts[value] for value in sorted(texts)]


def _score(trial: DrawnTrial) -> float:
    assert trial.mean_test_score is not None  # noqa: S101 - of those that were scored
    return trial.mean_test_score
