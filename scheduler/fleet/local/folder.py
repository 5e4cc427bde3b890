"""The files of an embedded fleet: database, key, log, lock, and what the running one says of itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import SecretStr

from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.private_folder import is_locked, read_private_file, why_not_private
from gridfleet.storage.search_states import FLEET_LOCK
from gridfleet.storage.settings import PREFIX, Settings

#: Bytes of the log from which on it is begun anew.
MAX_LOG_BYTES = 5_000_000
#: What the system says where a disk, or this user's share of it, takes nothing more.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes that a disk has to take that is not full: less than the database's first pages.
PROBE_BYTES = 65_536
#: Seconds for which a supervisor waits for the lock: a script that looks holds it for a moment.
LOCK_S = 1.0


class Folder:
    """The files of an embedded fleet, all of them this user's alone.

    Who can put a key, a search or the address of a broker there runs code as this user, so there is no other way
    to these files than this class.

    Parameters
    ----------
    home : Path
        The folder. It need not be there yet.

    Raises
    ------
    LocalFleetError
        If it, or one of its files, is a link, belongs to another user, or has rights for others.
    """

    def __init__(self, home: Path) -> None:
        # not the folder's own link, which is refused
        home = Path(os.path.abspath(home))  # noqa: PTH100 (Path.absolute leaves `..`)
        self.home = home.parent.resolve() / home.name
        self.database = self.home / "gridfleet.db"
        self.key = self.home / "secret.key"
        #: The key from now on, while `gridfleet rekey` signs with it.
        self.new_key = self.home / "secret.key.new"
        self.log = self.home / "fleet.log"
        #: What was in the log before, once that had become large.
        self.old_log = self.home / "fleet.log.1"
        self.broker = self.home / "broker"
        #: The current folder of the fleet's processes: nothing lies there that could stand in for anything.
        self.work = self.home / "work"
        self._state = self.home / "fleet.json"
        self._lock = self.home / FLEET_LOCK
        self._users = self.home / "users.lock"
        self._wanted = self.home / "workers"
        self._check()

    def prepare(self, *, rekeys: bool = False) -> None:
        """Make the folder and its key, readable by this user only; refuse one whose rekeying did not end.

        `rekeys` is for who goes on with that.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFleetError(
                f"the folder {self.home} can't be made ({error.strerror}); set {PREFIX}HOME to one that can"
            ) from error
        self._check()  # another user may have been faster
        if self.new_key.exists() and not rekeys:
            raise LocalFleetError(
                f"{self.new_key} is there, for `gridfleet rekey` was interrupted; run it again, and what is stored has "
                "one key"
            )
        try:
            self._make_files()
        except OSError as error:
            if error.errno in FULL:
                raise LocalFleetError(self._full(error)) from error
            raise LocalFleetError(
                f"the folder {self.home} can't be written to ({error.strerror}); make room or rights, or set "
                f"{PREFIX}HOME to another"
            ) from error

    def _make_files(self) -> None:
        self.work.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError), open(self.home / ".gitignore", "x", opener=_private) as file:
            file.write("*\n")  # the key and the database are nobody's to commit
        if not self.key.exists():
            draft = self.home / f"secret.key.{os.getpid()}"
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
            try:
                os.link(draft, self.key)  # unlike rename, never replaces another process's key
            except FileExistsError:
                pass
            finally:
                draft.unlink()

    def make_new_key(self) -> SecretStr:
        """Return the key from now on; made unless a rekeying that was interrupted left it."""
        if not self.new_key.exists():
            draft = self.home / f"secret.key.new.{os.getpid()}"
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())  # what is signed with it is on the disk soon
            draft.replace(self.new_key)
            self._sync()
        return SecretStr(_read(self.new_key))

    def take_new_key(self) -> None:
        """Let the key from now on be the fleet's."""
        self.new_key.replace(self.key)
        self._sync()

    def _sync(self) -> None:
        folder = os.open(self.home, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _check(self) -> None:
        database = [self.database.with_name(self.database.name + end) for end in ("", "-wal", "-shm", "-journal")]
        _require(self.home, "folder")
        for folder in (self.broker, self.work):
            _require(folder, "folder")
        for file in (
            self.key,
            self.new_key,
            *database,
            self.log,
            self.old_log,
            self._state,
            self._lock,
            self._users,
            self._wanted,
        ):
            _require(file, "file")

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the lock that says that a fleet runs; yields False if another process does."""
        until = time.monotonic() + LOCK_S  # a script that looks holds it for a moment
        with _append_to(self._lock) as lock:
            while not _locks(lock, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.01)
            self.withdraw()  # what one wrote that was killed: scripts would take it for this one's, which is not up yet
            yield True

    def is_locked(self) -> bool:
        """Whether a fleet runs, starts or stops."""
        try:
            return is_locked(self._lock)
        except FileNotFoundError:
            return False
        except OSError as error:  # a link, no right to read
            _refuse(f"{self._lock} can't be looked at ({error.strerror})")
            raise

    def use(self) -> IO[bytes]:
        """Open what says, until it is closed or this process ends, that a script uses this folder's fleet."""
        users = _append_to(self._users)
        fcntl.flock(users, fcntl.LOCK_SH)
        return users

    def is_used(self) -> bool:
        """Whether a script that used this folder's fleet still runs."""
        with _append_to(self._users) as users:
            return not _locks(users, fcntl.LOCK_EX)

    def running(self) -> dict[str, Any] | None:
        """Return what the running fleet wrote about itself."""
        try:
            state: dict[str, Any] = json.loads(_read(self._state))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        # one that starts has the lock before it has tidied up behind one that was killed
        if not self.is_locked() or not _is_alive(state.get("pid", os.getpid())):
            return None
        _require(Path(state["socket"]).parent, "folder")  # not always in this one
        _require(Path(state["socket"]), "socket")
        return state

    def announce(self, state: dict[str, Any]) -> None:
        """Tell the scripts of the folder that the fleet runs."""
        _write(self._state, json.dumps(state))

    def withdraw(self) -> None:
        """Tell that it does not run any more."""
        self._state.unlink(missing_ok=True)

    def want_workers(self, n_workers: int) -> None:
        """Ask the running fleet for another number of worker processes."""
        _write(self._wanted, str(n_workers))

    def wanted_workers(self) -> int | None:
        """Return for how many worker processes somebody asked since the fleet started; None: nobody did."""
        try:
            return int(_read(self._wanted)) or None
        except (FileNotFoundError, ValueError):
            return None

    def forget_wanted_workers(self) -> None:
        """Forget for how many worker processes an earlier fleet was asked."""
        self._wanted.unlink(missing_ok=True)

    def make_database(self) -> None:
        """Make the database's file, empty; SQLite gives what it puts beside it the same rights."""
        self.database.touch(mode=0o600)

    def open_log(self) -> IO[bytes]:
        """Open the log, to write at its end."""
        return _append_to(self.log)

    def bound_log(self) -> None:
        """Begin the log anew once it is large; one of before is kept beside it.

        All processes of the fleet have the same file open, to write at its end wherever that is. So it is copied and
        cut, and what one of them writes in between is lost.
        """
        with suppress(OSError):  # there is none, or no room for another one: the next look finds it as it is
            if self.log.stat().st_size > MAX_LOG_BYTES:
                draft = self.old_log.with_suffix(".draft")
                draft.touch(mode=0o600)
                shutil.copyfile(self.log, draft)
                draft.replace(self.old_log)
                os.truncate(self.log, 0)

    def last_log_line(self) -> str:
        """Return the last line of the log, or why there is none."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        if lines:
            return lines[-1]
        full = self.why_full()
        return full or f"no reason was logged in {self.log}"

    def why_full(self) -> str | None:
        """Say that the disk of this folder takes nothing more; None if it does."""
        try:
            with tempfile.TemporaryFile(dir=self.home) as probe:
                probe.write(bytes(PROBE_BYTES))
        except OSError as error:
            if error.errno not in FULL:
                raise
            return self._full(error)
        return None

    def _full(self, error: OSError) -> str:
        return (
            f"the disk of {self.home} is full ({error.strerror}); make room, or set {PREFIX}HOME to a folder of another"
        )

    def settings(self, settings: Settings, broker_url: str | None) -> Settings:
        """Return settings with the URLs, the key and the folders of this fleet."""
        key = settings.secret_key or SecretStr(_read(self.key))
        return settings.replace(
            home=self.home,
            database_url=f"sqlite:///{self.database}",
            broker_url=broker_url,
            secret_key=key,
            public_key=None,
            worker_key=None,
            cache_dir=settings.cache_dir or self.home / "cache",
            health_file=settings.health_file or self.home / "worker.health",
        )


def _require(path: Path, kind: str) -> None:
    """Refuse what is there and not this user's alone."""
    try:
        _refuse(why_not_private(path, kind))
    except FileNotFoundError:
        pass
    except OSError as error:  # below a folder that lets this user in no more, or below a file
        _refuse(f"{path} can't be looked at ({error.strerror})")


def _read(path: Path) -> str:
    try:
        return read_private_file(path)
    except PermissionError as error:
        _refuse(str(error))
        raise


def _write(path: Path, text: str) -> None:
    """Write a file that whoever reads it finds whole."""
    draft = path.with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise LocalFleetError(f"{reason}; or set {PREFIX}HOME to a folder of your own")


def _private(path: str, flags: int) -> int:
    """Open a new file, as `open` has it do, for this user only."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _append_to(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o600), "ab")
    except OSError as error:  # a read-only file system, a full disk, no right to write
        _refuse(f"{path} can't be written ({error.strerror})")
        raise


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def _locks(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
