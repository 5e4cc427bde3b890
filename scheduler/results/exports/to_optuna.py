"""A search as a study in a storage of Optuna, which optuna-dashboard opens."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.figures import study as studies
from gridfleet.scheduler.figures.style import optuna_module
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.exports.databases import database_url
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import ExportError, first_line

if TYPE_CHECKING:
    import optuna


def write_study(database: Database, search: reader.SearchSummary, target: str) -> int:
    """Write a study with the search's name, and all its trials.

    Parameters
    ----------
    database : Database
        The fleet's.
    search : SearchSummary
        What to write.
    target : str
        The storage's URL, or a file of SQLite.

    Returns
    -------
    int
        How many trials it has.

    Raises
    ------
    ExportError
        If the storage can't be opened or has a study of this name, or the writing failed; there is none then.
    MissingPackageError
        If Optuna is not installed.
    """
    library = optuna_module()
    url = database_url(target, "optuna")
    with studies.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna's own about what is experimental
        try:
            storage = library.storages.RDBStorage(url)
            made: optuna.Study = library.create_study(
                storage=storage, study_name=search.name, direction="maximize", load_if_exists=False
            )
        except library.exceptions.DuplicatedStudyError as error:
            raise ExportError(
                f"the storage has a study {search.name!r} already; name another file, or remove it: optuna delete-study"
            ) from error
        except (SQLAlchemyError, RuntimeError, library.exceptions.OptunaError) as error:
            raise ExportError(f"Optuna can't use this storage: {first_line(error)}") from error
        try:
            return _write(database, search, made)
        except BaseException:
            library.delete_study(study_name=search.name, storage=storage)
            raise
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _write(database: Database, search: reader.SearchSummary, made: optuna.Study) -> int:
    studies.describe(made, search)
    n_trials = 0
    try:
        for trial in studies.frozen_trials(database, search.id):
            made.add_trial(trial)
            n_trials += 1
    except optuna_module().exceptions.StorageInternalError as error:
        raise ExportError(f"Optuna's storage refuses a trial: {first_line(error.__cause__ or error)}") from error
    return n_trials
