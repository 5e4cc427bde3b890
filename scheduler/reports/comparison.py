"""Searches side by side: what came of them, and in what they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text
from sqlalchemy import select

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.figures import with_deviation
from gridfleet.scheduler.reports.param_values import names_of
from gridfleet.scheduler.reports.tables import console, metric_of, table_of_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search

#: Columns of the table ``searches`` that say how a search was made, in the order in which they are shown.
SETTINGS = (
    "strategy",
    "estimator",
    "random_state",
    "scoring",
    "refit_metric",
    "splitter",
    "n_splits",
    "fit_mode",
    "trial_timeout",
    "search_timeout",
    "priority",
    "reuse",
    "submitted_by",
    "git_commit",
    "git_dirty",
    "gridfleet_version",
    "python_version",
    "tensorflow_version",
    "keras_version",
    "scikit_learn_version",
)
#: Columns with the digest of something, of which only whether it is the same is worth a line.
DIGESTS = {
    "x_digest": "X",
    "y_digest": "y",
    "splits_digest": "splits",
    "space_digest": "space",
    "sources_digest": "modules of the script",
    "packages_digest": "packages",
}


@dataclass(frozen=True)
class Line:
    """One thing that searches have.

    Parameters
    ----------
    what : str
        Its name, where there is one that of SQL's column.
    values : tuple of object
        What each has.
    is_shown : bool, default=False
        Whether it is shown though it is equal.
    """

    what: str
    values: tuple[Any, ...]
    is_shown: bool = False

    @property
    def differs(self) -> bool:
        """Whether not all have the same."""
        return any(value != self.values[0] for value in self.values)


def compare(database: Database, *searches: reader.SearchSummary) -> list[Line]:
    """Return what came of searches, and all in which they differ."""
    counts = [reader.progress(database, search.id).counts for search in searches]
    best = [trial_reader.best_trial(database, search.id) for search in searches]
    scores = ["none" if one is None else with_deviation(one.mean_test_score, one.std_test_score) for one in best]
    params = [{} if one is None else one.params for one in best]
    lines = [
        Line("state", tuple(search.shown_state for search in searches), is_shown=True),
        Line("trials", tuple(counts), is_shown=True),
        Line("metric", tuple(map(metric_of, searches))),
        Line("best score", tuple(scores), is_shown=True),
    ]
    lines += [
        Line(f"best {name}", tuple(str(one[name]) if name in one else "" for one in params))
        for name in names_of(params)
    ]
    made = [_made(database, search.id) for search in searches]
    lines += [Line(column, tuple(one[column] for one in made)) for column in SETTINGS]
    lines += [Line(DIGESTS[column], tuple(_shortened(one[column]) for one in made)) for column in DIGESTS]
    return [line for line in lines if line.is_shown or line.differs]


def print_comparison(lines: list[Line], first: reader.SearchSummary, second: reader.SearchSummary) -> None:
    """Print what `compare` found, a line each."""
    out = console()
    rows = [[line.what, *map(_shown, line.values)] for line in lines]
    out.print(table_of_lines(["", first.name, second.name], rows, numbers_right=False))
    if not any(line.differs for line in lines):
        out.print(Text("nothing else that is stored of them differs"))


def as_json(lines: list[Line], first: reader.SearchSummary, second: reader.SearchSummary) -> dict[str, Any]:
    """Return what `compare` found as JSON types."""
    return {
        "searches": [first.name, second.name],
        "lines": [{"what": line.what, "values": list(line.values), "differs": line.differs} for line in lines],
    }


def _made(database: Database, search_id: int) -> dict[str, Any]:
    columns = [getattr(Search, column) for column in (*SETTINGS, *DIGESTS)]
    with database.read() as connection:
        return dict(connection.execute(select(*columns).where(Search.id == search_id)).one()._mapping)


def _shortened(digest: str | None) -> str:
    return "none" if digest is None else digest[:8]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
