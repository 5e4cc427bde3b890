"""What ``gridfleet submit`` does: a search file, validated, then queued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gridfleet.scheduler.fleet.connection import Fleet, connect, read_only
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.search_file.description import parse
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.submission.names import check_name_is_free
from gridfleet.storage.errors import GridfleetError, InvalidSearchError, NameTakenError, SearchNotFoundError, first_line
from gridfleet.storage.settings import load_settings
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow


@dataclass(frozen=True)
class Submitted:
    """A search that is in the database, and whose it is."""

    handle: SearchHandle
    is_new: bool
    stops_with_us: bool


def submit_file(
    path: Path, *, name: str | None, exist_ok: bool, resume: bool = False, reuse: bool = False
) -> Submitted:
    """Queue the search of a YAML file.

    Parameters
    ----------
    path : Path
        The file.
    name : str or None
        Instead of the name in the file.
    exist_ok : bool
        Whether a search that has the name already is fine.
    resume : bool, default=False
        Whether a search that has the name already is gone on with, if it is the same; also if the file says so.
    reuse : bool, default=False
        Whether trials that were computed before take the results of then; also if the file says so.

    Returns
    -------
    Submitted

    Raises
    ------
    GridfleetError
        One sentence; nothing of the search is stored then.
    """
    if exist_ok and resume:
        raise InvalidSearchError(
            "--exist-ok leaves a search alone that is there, and --resume goes on with it; give one of them"
        )
    settings = load_settings()
    had_fleet = not settings.is_embedded or client.is_running(settings)
    described = parse(read_document(path))
    chosen = name or described.name or path.stem
    if exist_ok and (found := _existing(chosen)) is not None:
        return Submitted(found, is_new=False, stops_with_us=False)
    resumes, reuses = resume or described.load_if_exists, reuse or described.reuse
    if not resumes and (fleet := _database_only()) is not None:
        check_name_is_free(fleet.database, chosen, for_command=True)
    quiet_tensorflow()  # the file's model may import it
    # scikit-learn takes a second to import, which a name that is taken need not wait for
    from gridfleet.scheduler.search_file.search import load_search
    from gridfleet.scheduler.submit import submit

    loaded = load_search(described, path)
    was_there = resumes and _existing(chosen) is not None
    try:
        handle = submit(
            loaded.search, loaded.X, loaded.y, name=chosen, load_if_exists=resumes, reuse=reuses, **loaded.params
        )
    except NameTakenError:
        found = _existing(chosen) if exist_ok else None  # another process was faster
        if found is None:
            raise
        return Submitted(found, is_new=False, stops_with_us=False)
    except GridfleetError:
        raise
    except (TypeError, ValueError) as error:  # scikit-learn's own checks
        raise InvalidSearchError(f"{path}: scikit-learn refuses the search: {first_line(error)}") from error
    return Submitted(handle, is_new=not was_there, stops_with_us=not had_fleet)


def _existing(name: str) -> SearchHandle | None:
    fleet = _database_only()
    if fleet is None:
        return None
    try:
        found = reader.find_search(fleet.database, name)
    except SearchNotFoundError:
        return None
    return SearchHandle(fleet, found.id, found.name)


def _database_only() -> Fleet | None:
    """Connect without starting a fleet; a configured database may still have to be migrated."""
    settings = load_settings()
    if not settings.is_embedded:
        return connect()
    return read_only() if client.has_database(settings) else None
