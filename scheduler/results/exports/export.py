"""Write a search somewhere, in one of the forms that there are; what can't be written is said before anything is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.exports.form import Form
from gridfleet.scheduler.results.exports.new_file import write_new
from gridfleet.storage.database.connection import Database


def export(database: Database, name: str | int, form: Form, target: str) -> int:
    """Write all trials of a search, as they are now.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        The search's name, or its id.
    form : Form
        As what.
    target : str
        For CSV, Parquet and JSON a file that is not there yet. For Optuna and MLflow the URL of a storage, or a file of
        SQLite, which may have other studies or experiments.

    Returns
    -------
    int
        How many trials were written.

    Raises
    ------
    SearchNotFoundError
        If there is no such search.
    ExportError
        If it can't be written there.
    MissingPackageError
        If Optuna or MLflow is not installed.
    """
    search = reader.find_search(database, name)
    if form == Form.OPTUNA:
        from gridfleet.scheduler.results.exports.to_optuna import write_study

        return write_study(database, search, target)
    if form == Form.MLFLOW:
        from gridfleet.scheduler.results.exports.to_mlflow import write_runs

        return write_runs(database, search, target)
    return write_new(Path(target), lambda part: _writer(form)(database, search, part))


def _writer(form: Form) -> Callable[[Database, reader.SearchSummary, Path], int]:
    from gridfleet.scheduler.results.exports import files

    return {Form.CSV: files.write_csv, Form.PARQUET: files.write_parquet, Form.JSON: files.write_json}[form]
