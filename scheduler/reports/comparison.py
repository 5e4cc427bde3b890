"""Two searches side by side: what came of them, and in what they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text
from sqlalchemy import select

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.figures import with_deviation
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
    """One thing that two searches have.

    Parameters
    ----------
    what : str
        Its name, where there is one that of SQL's column.
    first, second : object
        What each has.
    is_shown : bool, default=False
        Whether it is shown though it is equal.
    """

    what: str
    first: Any
    second: Any
    is_shown: bool = False

    @property
    def differs(self) -> bool:
        """Whether the two have not the same."""
        return bool(self.first != self.second)


def compare(database: Database, first: reader.SearchSummary, second: reader.SearchSummary) -> list[Line]:
    """Return what came of two searches, and all in which they differ."""
    counts = [reader.progress(database, search.id).counts for search in (first, second)]
    best = [trial_reader.best_trial(database, search.id) for search in (first, second)]
    scores = ["none" if one is None else with_deviation(one.mean_test_score, one.std_test_score) for one in best]
    params = [{} if one is None else one.params for one in best]
    lines = [
        Line("state", first.shown_state, second.shown_state, is_shown=True),
        Line("trials", counts[0], counts[1], is_shown=True),
        Line("metric", metric_of(first), metric_of(second)),
        Line("best score", scores[0], scores[1], is_shown=True),
    ]
    for name in dict.fromkeys([*params[0], *params[1]]):
        values = [str(one[name]) if name in one else "" for one in params]
        lines.append(Line(f"best {name}", values[0], values[1]))
    made = [_made(database, search.id) for search in (first, second)]
    lines += [Line(column, made[0][column], made[1][column]) for column in SETTINGS]
    lines += [Line(DIGESTS[column], *_same_or_not(made[0][column], made[1][column])) for column in DIGESTS]
    return [line for line in lines if line.is_shown or line.differs]


def print_comparison(lines: list[Line], first: reader.SearchSummary, second: reader.SearchSummary) -> None:
    """Print what `compare` found, a line each."""
    out = console()
    rows = [[line.what, _shown(line.first), _shown(line.second)] for line in lines]
    out.print(table_of_lines(["", first.name, second.name], rows, numbers_right=False))
    if not any(line.differs for line in lines):
        out.print(Text("nothing else that is stored of them differs"))


def as_json(lines: list[Line], first: reader.SearchSummary, second: reader.SearchSummary) -> dict[str, Any]:
    """Return what `compare` found as JSON types."""
    return {
        "searches": [first.name, second.name],
        "lines": [{"what": line.what, "values": [line.first, line.second], "differs": line.differs} for line in lines],
    }


def _made(database: Database, search_id: int) -> dict[str, Any]:
    columns = [getattr(Search, column) for column in (*SETTINGS, *DIGESTS)]
    with database.read() as connection:
        return dict(connection.execute(select(*columns).where(Search.id == search_id)).one()._mapping)


def _same_or_not(first: str | None, second: str | None) -> tuple[str, str]:
    """Show digests by their first characters."""
    shown = ["none" if digest is None else digest[:8] for digest in (first, second)]
    return shown[0], shown[1]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
