"""What a worker tries before it says that it is ready: its folders, its disk, one payload. It claims nothing."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, PayloadError, PayloadSignatureError, UnfitWorkerError, first_line
from gridfleet.storage.payloads.host_cache import cache_folder
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.private_folder import why_not_made
from gridfleet.storage.settings import PREFIX, Settings

#: What is written into each folder: more than a file system keeps beside the file's name, or left of its last block.
SAMPLE = bytes(range(256)) * 4_096


def require_folders(settings: Settings) -> None:
    """Write, read back and remove a file in every folder that a worker uses.

    Parameters
    ----------
    settings : Settings
        Where they are.

    Raises
    ------
    UnfitWorkerError
        If that fails; it is noted in the table of workers too, as far as the database can be reached.
    """
    with _noted(settings):
        for folder, remedy in _folders(settings):
            _try_folder(folder, remedy)


def require_readable_payload(settings: Settings, store: PayloadStore) -> None:
    """Fetch one payload as a trial does, if there is one.

    Raises
    ------
    UnfitWorkerError
        If it can't be had.
    """
    with _noted(settings), suppress(PayloadSignatureError):  # of an older release, or changed: no worker can read it
        try:
            store.check_readable()
        except PayloadSignatureError:
            raise
        except (OSError, PayloadError) as error:
            raise UnfitWorkerError(
                f"this worker can't read a payload ({first_line(error)}); it needs its cache, {PREFIX}CACHE_DIR"
            ) from error


def note_fitness(database: Database) -> None:
    """Note that a worker of this host starts, if one did not before."""
    workers.note_fit(database, hostname=socket.gethostname())


def _folders(settings: Settings) -> Iterator[tuple[Path, str]]:
    cache = cache_folder(settings)
    remedy = f"make room, let this user write there, or set {PREFIX}CACHE_DIR to another folder"
    _make(cache)
    for folder in (cache, cache / "sources", cache / "xla"):
        if folder == cache or folder.exists():
            yield folder, remedy
    yield _temporary(), "make room, let this user write there, or set TMPDIR to another folder"
    if settings.health_path is not None:
        remedy = f"make room, let this user write there, or set {PREFIX}HEALTH_FILE to a file in another folder"
        with suppress(OSError):
            settings.health_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield settings.health_path.parent, remedy


def _make(cache: Path) -> None:
    reason = why_not_made(cache)
    if reason is not None:
        raise UnfitWorkerError(f"the cache is not private: {reason}; or set {PREFIX}CACHE_DIR to another folder")


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UnfitWorkerError(f"{error.strerror}; make room in one, or set TMPDIR to another folder") from error


def _try_folder(folder: Path, remedy: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="gridfleet-test-") as file:
            file.write(SAMPLE)
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that there is no room
            file.seek(0)
            is_same = file.read() == SAMPLE
    except OSError as error:
        raise _unfit(folder, error, remedy) from error
    if not is_same:
        raise UnfitWorkerError(f"{folder} gives back other bytes than were written there; {remedy}")


def _unfit(folder: Path, error: OSError, remedy: str) -> UnfitWorkerError:
    return UnfitWorkerError(f"this worker can't write into {folder} ({error.strerror or error}); {remedy}")


@contextmanager
def _noted(settings: Settings) -> Iterator[None]:
    """Note an `UnfitWorkerError` where people look for workers; the database may be away."""
    try:
        yield
    except UnfitWorkerError as error:
        with suppress(SQLAlchemyError, GridfleetError), closing(Database(settings)) as database:
            workers.note_unfit(database, hostname=socket.gethostname(), pid=os.getpid(), reason=str(error))
        raise
