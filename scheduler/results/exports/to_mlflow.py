"""A search as an experiment of MLflow, with one run a trial."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.cells import cell_text
from gridfleet.scheduler.reports.tables import metric_of
from gridfleet.scheduler.reports.whole_trials import WholeTrial, iterate
from gridfleet.scheduler.results.exports.databases import database_url
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import ExportError, MissingPackageError, first_line
from gridfleet.storage.plain import plain, plain_lines
from gridfleet.storage.schema import TrialState

#: What MLflow's names may not have; it would make folders of some of it.
_NOT_IN_NAMES = re.compile(r"[^\w .:-]", re.ASCII)
#: Characters of a name, of the value of a param, and of a tag: MLflow takes no more.
MAX_NAME, MAX_VALUE, MAX_TAG = 200, 6_000, 5_000
#: Entities that MLflow takes at once.
AT_ONCE = 100
STATUS = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.PRUNED: "KILLED",
    TrialState.CANCELLED: "KILLED",
    TrialState.RUNNING: "RUNNING",
    TrialState.QUEUED: "SCHEDULED",
}


def write_runs(database: Database, search: reader.SearchSummary, target: str) -> int:
    """Write an experiment with the search's name, and a run for each trial.

    Parameters
    ----------
    database : Database
        The fleet's.
    search : SearchSummary
        What to write.
    target : str
        MLflow's tracking URI: of a server (``http://…``), of a database, or the name of a file of SQLite.

    Returns
    -------
    int
        How many runs it has.

    Raises
    ------
    ExportError
        If MLflow can't be reached, or has an experiment of this name.
    MissingPackageError
        If MLflow is not installed.
    """
    is_server = target.startswith(("http://", "https://"))
    uri = target if is_server else database_url(target, "mlflow")
    _import()
    with _quiet():
        return _write_experiment(database, search, uri, is_server=is_server)


def _import() -> None:
    # MLflow tells its makers what is done with it, unless it is told not to before it is imported
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # seven by default, which take four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow.tracking  # noqa: F401 - it sets the levels of its loggers
    except ImportError as error:
        raise MissingPackageError(f"MLflow is needed for this: pip install 'gridfleet[mlflow]' ({error})") from error


def _write_experiment(database: Database, search: reader.SearchSummary, uri: str, *, is_server: bool) -> int:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    n_runs = 0
    try:
        client = MlflowClient(tracking_uri=uri)
        if client.get_experiment_by_name(search.name) is not None:
            raise ExportError(
                f"MLflow has an experiment {search.name!r} already; name another file, or rename or delete it there"
            )
        folder = None if is_server or not uri.startswith("sqlite:///") else _artifacts(uri)
        experiment = client.create_experiment(search.name, artifact_location=folder, tags=_facts(search))
        for trial in iterate(database, search.id):
            _write(client, experiment, search, trial)
            n_runs += 1
    except MlflowException as error:
        said = plain(first_line(error)).replace(_user_of(uri), "")
        raise ExportError(f"MLflow refuses the search: {said}") from error
    return n_runs


def _user_of(uri: str) -> str:
    """Return the user and the password in a URI, with the @ behind them."""
    place, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    return place + (at or "@@")  # which is in no message


def _artifacts(uri: str) -> str:
    """Return a folder beside the database: MLflow would note one in the folder that this runs in."""
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def _facts(search: reader.SearchSummary) -> dict[str, str]:
    facts = {"strategy": search.strategy, "estimator": search.estimator, "metric": metric_of(search)}
    return {
        name: plain_lines(value)[:MAX_TAG] for name, value in {**facts, "submitted_by": search.submitted_by}.items()
    }


def _write(client: Any, experiment: str, search: reader.SearchSummary, trial: WholeTrial) -> None:
    from mlflow.entities import Metric, Param

    started, ended = _ms(trial.started_at or trial.finished_at), _ms(trial.finished_at)
    run = client.create_run(
        experiment, start_time=started, run_name=f"{search.name} {trial.number}", tags=_tags(search, trial)
    )
    names = names_of(trial.params)
    params = [
        Param(names[name], plain_lines(cell_text(value) or "None")[:MAX_VALUE]) for name, value in trial.params.items()
    ]
    metrics = [Metric(name, value, ended or 0, step) for name, value, step in _metrics(trial)]
    for first in range(0, max(len(params), len(metrics)), AT_ONCE):
        until = first + AT_ONCE
        client.log_batch(run.info.run_id, metrics=metrics[first:until], params=params[first:until])
    status = STATUS[TrialState(trial.state)]
    if status in ("RUNNING", "SCHEDULED"):
        client.update_run(run.info.run_id, status=status)
    else:
        client.set_terminated(run.info.run_id, status=status, end_time=ended)


def _tags(search: reader.SearchSummary, trial: WholeTrial) -> dict[str, str]:
    tags = {
        "number": trial.number,
        "state": trial.state,
        "seed": trial.seed,
        "worker_id": trial.worker_id,
        "fit_mode": trial.fit_mode,
        "error_type": trial.error_type,
        "error": trial.error,
        "mlflow.user": search.submitted_by,
        "mlflow.source.name": "gridfleet",
    }
    return {name: plain_lines(str(value))[-MAX_TAG:] for name, value in tags.items() if value is not None}


def _metrics(trial: WholeTrial) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step: of the scores of splits, the split."""
    for name in ("mean_test_score", "std_test_score", "mean_fit_time"):
        value = getattr(trial, name)
        if value is not None:
            yield name, value, 0
    for kind, scores in (("test", trial.test_scores), ("train", trial.train_scores)):
        for metric, name in names_of(scores).items():
            for split, value in scores[metric].items():
                if value is not None:
                    yield f"split_{kind}_{name}", value, split


def names_of(names: Any) -> dict[str, str]:
    """Return for each name one that MLflow takes, no two of them the same.

    Examples
    --------
    >>> names_of(["C", "a/b", "a b", "../x"])
    {'C': 'C', 'a/b': 'a_b', 'a b': 'a b', '../x': '_._x'}
    """
    found: dict[str, str] = {}
    for name in names:
        clean = wanted = re.sub(r"^[. ]|\.(?=\.)", "_", _NOT_IN_NAMES.sub("_", name))[:MAX_NAME].rstrip() or "_"
        n = 1
        while clean.lower() in map(str.lower, found.values()):
            n += 1
            clean = f"{wanted} {n}"
        found[name] = clean
    return found


def _ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1_000)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let MLflow say nothing about its tables, and nothing of the releases that it was made for."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
