"""Learning curves: mean and deviation over the splits, of training and validation, the winner in front."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gridfleet.scheduler.figures.style import (
    OTHERS,
    SECOND,
    WINNER,
    faint,
    graph_objects,
    text,
    thinned,
    titled,
)
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.figures import score
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.schema import Curve, Trial, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects

#: The best trials whose curves are drawn, metrics that get a panel, and points of a line.
MOST_TRIALS, MOST_METRICS, MOST_POINTS = 5, 6, 300
#: Pruned trials whose curves are drawn behind those.
MOST_PRUNED = 20
#: Begins the names of what Keras measures on validation data.
VALIDATION = "val_"

#: By the trial's number and the metric, the curve of each split.
Curves = Mapping[tuple[int, str], Sequence[Sequence[float | None]]]


def curves(database: Database, search_id: int, *, number: int | None = None) -> plotly.graph_objects.Figure:
    """Draw the learning curves of the best trials, or of one.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    number : int, default=None
        Of one trial; None: of the best five.

    Returns
    -------
    plotly.graph_objects.Figure
        A panel for each metric. Of the best trial the mean over the splits with its deviation, on training data and,
        dashed, on validation data; of the others the mean on validation data, or on training data where that is all.
        Those of trials that were pruned between epochs end with a cross.

    Raises
    ------
    NothingToDrawError
        If there are no curves: only Keras models have them, unless ``keep_curves=False``.
    """
    search = reader.find_search(database, search_id)
    if number is None:
        trials = trial_reader.leaderboard(database, search_id, limit=MOST_TRIALS)
        numbers = [trial.number for trial in trials]
        pruned = _pruned(database, search_id)
        scores = {trial.number: trial.mean_test_score for trial in trials}
    else:
        numbers, scores, pruned = [number], {}, {}
    found = _read(database, search_id, numbers)
    numbers = [one for one in numbers if any(of == one for of, _ in found)]
    if not numbers:
        whose = f"search {search.name!r} has" if number is None else f"trial {number} of search {search.name!r} has"
        raise NothingToDrawError(
            f"{whose} no learning curves; trials of Keras models have them when they end, unless keep_curves=False"
        )
    go = graph_objects()
    from plotly.subplots import make_subplots

    metrics = _metrics(found)
    panels = metrics[:MOST_METRICS]
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(rows=n_rows, cols=n_columns, horizontal_spacing=0.1, vertical_spacing=0.28 / n_rows)
    for place, metric in enumerate(panels):
        where = {"row": place // n_columns + 1, "col": place % n_columns + 1}
        for trace in _stopped(go, pruned, metric, with_legend=place == 0):
            figure.add_trace(trace, **where)
        for trace in _panel(go, found, metric, numbers, scores, with_legend=place == 0):
            figure.add_trace(trace, **where)
        figure.update_xaxes(title_text="epoch", **where)
        figure.update_yaxes(title_text=text(metric), **where)
    left_out = "" if len(metrics) <= MOST_METRICS else f"the first {MOST_METRICS} of {len(metrics)} metrics"
    what = f"the best {len(numbers)} trials" if len(numbers) > 1 else f"trial {numbers[0]}"
    spread = "mean ± deviation over the splits" if len(next(iter(found.values()))) > 1 else ""
    titled(figure, f"Learning curves of {text(search.name)}", what, spread, left_out)
    return figure.update_layout(height=330 * n_rows + 130)


def _read(database: Database, search_id: int, numbers: Sequence[int]) -> Curves:
    query = (
        select(Trial.number, Curve.metric, Curve.values)
        .join(Trial, Trial.id == Curve.trial_id)
        .where(Trial.search_id == search_id, Trial.number.in_(numbers))
        .order_by(Trial.number, Curve.metric, Curve.split)
    )
    found: dict[tuple[int, str], list[Sequence[float | None]]] = defaultdict(list)
    with database.read() as connection:
        for number, metric, values in connection.execute(query):
            found[number, metric].append(values)
    return found


def _pruned(database: Database, search_id: int) -> Curves:
    """Read the curves of trials that were pruned in their first split."""
    with database.read() as connection:
        numbers = connection.execute(
            select(Trial.number)
            .where(Trial.search_id == search_id, Trial.state == TrialState.PRUNED, Trial.pruned_epoch.is_not(None))
            .order_by(Trial.number)
            .limit(MOST_PRUNED)
        ).scalars()
        found = list(numbers)
    return _read(database, search_id, found) if found else {}


def _stopped(go: Any, pruned: Curves, metric: str, *, with_legend: bool) -> list[Any]:
    """Draw where trials were pruned: thin lines that end with a cross."""
    lines: list[Any] = []
    for number in sorted({number for number, _ in pruned}):
        values = pruned.get((number, VALIDATION + metric)) or pruned.get((number, metric))
        if values:
            epochs, means, _ = _mean(values)
            lines.append(
                go.Scatter(
                    x=epochs,
                    y=means,
                    mode="lines+markers",
                    line={"color": OTHERS, "width": 0.7, "dash": "dot"},
                    marker={"symbol": "x-thin", "size": [0] * (len(epochs) - 1) + [7], "line": {"width": 1.5}},
                    name="pruned",
                    legendgroup="pruned",
                    showlegend=with_legend and not lines,
                    hovertext=f"trial {number}: pruned",
                    hoverinfo="text+x+y",
                )
            )
    return lines


def _metrics(found: Curves) -> list[str]:
    """Return the names of what was measured, without ``val_``; the loss first, and the rate of learning last."""
    names = {metric for _, metric in found}
    bases = {name.removeprefix(VALIDATION) if name.removeprefix(VALIDATION) in names else name for name in names}
    return sorted(bases, key=lambda name: (name != "loss", name in ("learning_rate", "lr"), name))


def _panel(
    go: Any,
    found: Curves,
    metric: str,
    numbers: Sequence[int],
    scores: Mapping[int, float],
    *,
    with_legend: bool,
) -> list[Any]:
    traces = []
    for number in reversed(numbers[1:]):  # the winner is drawn last
        values = found.get((number, VALIDATION + metric)) or found.get((number, metric))
        if values:
            epochs, means, _ = _mean(values)
            traces.append(
                go.Scatter(
                    x=epochs,
                    y=means,
                    mode="lines",
                    line={"color": OTHERS, "width": 1},
                    name="next best",
                    legendgroup="others",
                    showlegend=with_legend and number == numbers[-1],
                    hovertext=f"trial {number}: {score(scores.get(number))}",
                    hoverinfo="text+x+y",
                )
            )
    for name, label, colour, dash in (
        (metric, "training", WINNER, "solid"),
        (VALIDATION + metric, "validation", SECOND, "dash"),
    ):
        if values := found.get((numbers[0], name)):
            traces += _band(go, values, colour=colour, dash=dash, name=label, with_legend=with_legend)
    return traces


def _band(
    go: Any, values: Sequence[Sequence[float | None]], *, colour: str, dash: str, name: str, with_legend: bool
) -> list[Any]:
    """Draw a mean, and as an area around it the deviation."""
    epochs, means, deviations = _mean(values)
    line = go.Scatter(
        x=epochs,
        y=means,
        mode="lines" if len(epochs) > 1 else "markers",
        line={"color": colour, "dash": dash, "width": 2},
        name=name,
        legendgroup=name,
        showlegend=with_legend,
    )
    if len(values) < 2 or len(epochs) < 2:
        return [line]
    known = [place for place, mean in enumerate(means) if mean is not None]
    upper = [(means[place] or 0) + deviations[place] for place in known]
    lower = [(means[place] or 0) - deviations[place] for place in known]
    x = [epochs[place] for place in known]
    area = go.Scatter(
        x=[*x, *reversed(x)],
        y=[*upper, *reversed(lower)],
        fill="toself",
        fillcolor=faint(colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    return [area, line]


def _mean(values: Sequence[Sequence[float | None]]) -> tuple[list[int], list[float | None], list[float]]:
    """Return epochs, and the mean and deviation over the splits that came so far; a few hundred of them at most."""
    means: list[float | None] = []
    deviations: list[float] = []
    places = list(thinned(range(max(map(len, values), default=0)), MOST_POINTS))
    for epoch in places:
        at = [one[epoch] for one in values if epoch < len(one)]
        known = [value for value in at if value is not None]
        mean = math.fsum(known) / len(known) if known else None
        means.append(mean)
        deviations.append(
            0.0 if mean is None else math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))
        )
    return places, means, deviations
