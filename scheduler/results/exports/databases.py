"""The databases that Optuna and MLflow write into: a URL, or a file of SQLite; never one that a fleet has."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from gridfleet.storage.errors import ExportError, first_line
from gridfleet.storage.urls import without_secrets

#: A table that each fleet has, and neither Optuna nor MLflow.
FLEET_S_TABLE = "searches"


def database_url(target: str, program: str) -> str:
    """Return the URL of the database that somebody means.

    Parameters
    ----------
    target : str
        A URL, or the name of a file of SQLite, which is made if it is not there.
    program : str
        Whose tables it has or gets, for errors.

    Raises
    ------
    ExportError
        If it does not answer, is no database, or is a fleet's.
    """
    url = target if "://" in target else f"sqlite:///{_file(target)}"
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            _file(str(parsed.database or ""))
        shown = without_secrets(parsed)
        engine = create_engine(parsed)
    except (ArgumentError, ImportError, ValueError) as error:
        raise ExportError(
            f"{target.partition('://')[0]}://… is no URL of a database ({first_line(error)}); name a file, or a URL as "
            f"sqlite:///{program}.db"
        ) from error
    try:
        is_fleet_s = inspect(engine).has_table(FLEET_S_TABLE)
    except SQLAlchemyError as error:
        raise ExportError(f"{shown} can't be opened for {program}: {first_line(error)}") from error
    finally:
        engine.dispose()
    if is_fleet_s:
        raise ExportError(f"{shown} is the database of a fleet; name another one for {program}")
    return url


def _file(name: str) -> Path:
    file = Path(name)
    if not name or file.is_dir():
        raise ExportError(f"{name!r} is no file; name one, or the URL of a database")
    if not file.absolute().parent.is_dir():
        raise ExportError(f"there is no folder {file.absolute().parent}; make it, or name another file")
    return file.absolute()
