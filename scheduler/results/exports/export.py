"""Write a search somewhere, in one of the forms that there are; what can't be written is said before anything is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.exports.form import Form
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import ExportError


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
    return _write_file(Path(target), lambda part: _writer(form)(database, search, part))


def _writer(form: Form) -> Callable[[Database, reader.SearchSummary, Path], int]:
    from gridfleet.scheduler.results.exports import files

    return {Form.CSV: files.write_csv, Form.PARQUET: files.write_parquet, Form.JSON: files.write_json}[form]


def _write_file(file: Path, write: Callable[[Path], int]) -> int:
    """Have a file that is whole, or not there."""
    require_new(file)
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise ExportError(
            f"{part} can't be made ({error.strerror}); name a file in a folder that can be written"
        ) from error
    try:
        n_trials = write(part)
        require_new(file)
        part.replace(file)
    except OSError as error:
        raise ExportError(f"{file} can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return n_trials


def require_new(file: Path) -> None:
    """Refuse to write over anything, be it a link that leads nowhere."""
    if "://" in str(file) or file.name in ("", "."):
        raise ExportError(f"{str(file)!r} is no file; name one that is not there yet")
    if file.exists() or file.is_symlink():
        raise ExportError(f"{file} is there already; name another file, or remove it")
