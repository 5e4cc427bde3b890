"""How much each hyperparameter decides about which trials are good: Optuna's PED-ANOVA."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from gridfleet.scheduler.figures.study import study_of
from gridfleet.scheduler.figures.style import WINNER, graph_objects, optuna_module, text, titled
from gridfleet.scheduler.figures.trials import Drawn, drawn
from gridfleet.scheduler.figures.values import axes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.schema import TrialState

if TYPE_CHECKING:
    import plotly.graph_objects

#: Trials that are looked at, half of them a fair sample where there are more: Optuna takes 0.3 s for these.
MOST = 1_000
#: Bars that can still be read.
MOST_BARS = 25


def importances(database: Database, search_id: int, *, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw how much each hyperparameter decides about which trials are among the best tenth; together they are 1.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    most : int, default=1000
        Trials that are looked at at most.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If fewer than two trials have a score, or fewer than two hyperparameters have two values.
    """
    found = drawn(database, search_id, most)
    by_name = importance_of(found)
    shown = sorted(by_name.items(), key=lambda item: item[1])[-MOST_BARS:]
    go = graph_objects()
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in shown],
            y=list(range(len(shown))),
            orientation="h",
            marker={"color": WINNER},
            text=[f"{value:.2f}" if value >= 0.01 else "<0.01".replace("<", "&lt;") for _, value in shown],
            textposition="outside",
            cliponaxis=False,
            hovertext=[f"{text(name)}: {value:.4f}" for name, value in shown],
            hoverinfo="text",
        )
    )
    names = [text(name, 40) for name, _ in shown]
    figure.update_yaxes(tickmode="array", tickvals=list(range(len(shown))), ticktext=names, title_text="hyperparameter")
    figure.update_xaxes(title_text="importance (PED-ANOVA)", rangemode="tozero")
    left_out = "" if len(by_name) <= MOST_BARS else f"the first {MOST_BARS} of {len(by_name)} hyperparameters"
    titled(figure, f"What decides in {text(found.search.name)}", found.note, left_out)
    return figure.update_layout(height=max(320, 28 * len(shown) + 170))


def importance_of(found: Drawn) -> dict[str, float]:
    """Return the importance of each hyperparameter with several values, in the order in which they first appear."""
    found.require_scored(2)
    scored = [trial for trial in found.fair if trial.state == TrialState.COMPLETED]
    names = [axis.name for axis in axes([trial.params for trial in scored])]
    shared = [name for name in names if all(name in trial.params for trial in scored)]
    if len(shared) < 2:
        has = f"only {shared[0]!r}" if shared else "no hyperparameter"
        raise NothingToDrawError(
            f"{has} of search {found.search.name!r} has two values that were scored; importances compare two or more"
        )
    scores = {trial.mean_test_score for trial in scored}
    if len(scores) < 2:
        raise NothingToDrawError(f"all trials of search {found.search.name!r} have the same score: nothing decides")
    study = study_of(found, only=shared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA says that it is experimental
        by_place = optuna_module().importance.get_param_importances(study)
    return {name: by_place.get(str(place), 0.0) for place, name in enumerate(shared)}
