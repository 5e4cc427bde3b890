"""The files of an embedded fleet: database, key, log, lock, and what the running one says of itself."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import SecretStr

from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import PREFIX, Settings

#: Seconds for which a supervisor waits for the lock: a script that looks holds it for a moment.
LOCK_S = 1.0


class Folder:
    """The files of an embedded fleet."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.database = self.home / "gridfleet.db"
        self.key = self.home / "secret.key"
        self.log = self.home / "fleet.log"
        self.broker = self.home / "broker"
        self._state = self.home / "fleet.json"
        self._lock = self.home / "fleet.lock"

    def prepare(self) -> None:
        """Make the folder and its key, readable by this user only."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFleetError(
                f"the folder {self.home} can't be made ({error.strerror}); set {PREFIX}HOME to one that can"
            ) from error
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

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the lock that says that a fleet runs; yields False if another process does."""
        until = time.monotonic() + LOCK_S  # a script that looks holds it for a moment
        with self._lock.open("a") as lock:
            while not _locks(lock, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.01)
            yield True

    def is_locked(self) -> bool:
        """Whether a fleet runs, starts or stops."""
        if not self._lock.exists():
            return False
        with self._lock.open("a") as lock:
            return not _locks(lock, fcntl.LOCK_SH)  # shared: scripts that look do not see each other

    def running(self) -> dict[str, Any] | None:
        """Return what the running fleet wrote about itself."""
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return state if self.is_locked() else None

    def announce(self, state: dict[str, Any]) -> None:
        """Tell the scripts of the folder that the fleet runs."""
        draft = self._state.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    def withdraw(self) -> None:
        """Tell that it does not run any more."""
        self._state.unlink(missing_ok=True)

    def last_log_line(self) -> str:
        """Return the last line of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else f"no reason was logged in {self.log}"

    def settings(self, settings: Settings, broker_url: str | None) -> Settings:
        """Return settings with the URLs, the key and the folders of this fleet."""
        key = settings.secret_key or SecretStr(self.key.read_text())
        return settings.replace(
            home=self.home,
            database_url=f"sqlite:///{self.database}",
            broker_url=broker_url,
            secret_key=key,
            cache_dir=settings.cache_dir or self.home / "cache",
            health_file=settings.health_file or self.home / "worker.health",
        )


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
