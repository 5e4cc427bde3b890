"""The command that writes a search for other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from gridfleet.scheduler.cli.connected import choose_search, open_results
from gridfleet.scheduler.cli.output import say
from gridfleet.scheduler.cli.which_search import NamedSearch
from gridfleet.scheduler.results.exports.form import Form


def export(
    name: NamedSearch,
    target: Annotated[
        str,
        typer.Argument(metavar="FILE|URL", help="A new file, or a storage of Optuna or MLflow.", show_default=False),
    ],
    to: Annotated[Form, typer.Option("--to", help="What to write.", show_default=False)],
) -> None:
    """Write all trials of a search for other programs.

    CSV, Parquet and JSON: a file that is not there yet. A study of Optuna, or an experiment of MLflow: the URL of a
    database, of MLflow also of a server, or a file of SQLite.
    """
    from gridfleet.scheduler.reports.figures import count
    from gridfleet.scheduler.results.exports import export as exports

    database = open_results().database
    search = choose_search(database, name)
    n_trials = exports.export(database, search.id, to, target)
    shown = target if "://" not in target else f"the {to} at {target.partition('://')[0]}://…"
    say(f"{shown} has {count(n_trials, 'trial')} of {search.name}")
