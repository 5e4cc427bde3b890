"""A real PgBouncer in front of a test's PostgreSQL, as Debian's package and many hosts have it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.conftest import PostgresqlServer

#: Where Debian's package puts it, which is in no user's path.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
PORT = 6432  # of no network: it names the socket
MISSING = "pgbouncer is not installed (Debian, Ubuntu: apt-get install pgbouncer)"


@dataclass(frozen=True)
class Pooler:
    """A PgBouncer that listens at a socket."""

    folder: Path
    log: Path
    port: int

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of one of the server's databases."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}&port={self.port}"


@contextmanager
def pgbouncer(
    server: PostgresqlServer, pool_mode: str, files: Mapping[str, bytes] = MappingProxyType({}), **settings: str
) -> Iterator[Pooler]:
    """Start PgBouncer; it and its folder are gone at the end.

    Parameters
    ----------
    server : PostgresqlServer
        What it leads to.
    pool_mode : {"session", "transaction"}
        When it gives a session of the server to another client.
    files : mapping
        Files that its settings name.
    **settings : str
        More of its settings; all others are its own defaults.
    """
    assert PROGRAM is not None, MISSING
    folder = Path(tempfile.mkdtemp(prefix="gridfleet-pgbouncer-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        users, config = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        lines = {"listen_addr": "", "listen_port": PORT, "unix_socket_dir": folder, "pool_mode": pool_mode}
        lines |= {"auth_type": "trust", "auth_file": users, **settings}  # a name in `files` is of its current folder
        written = "".join(f"{name} = {value}\n" for name, value in lines.items())
        config.write_text(f"[databases]\n* = host={server.folder}\n[pgbouncer]\n{written}")
        # as root neither of the two runs: PgBouncer becomes who may reach PostgreSQL's socket
        owner = server.folder.owner()
        become = ["-u", owner] if os.geteuid() == 0 else []
        if become:
            shutil.chown(folder, owner)
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([PROGRAM, *become, str(config)], cwd=folder, stdout=output, stderr=output)
        try:
            port = int(lines["listen_port"])
            _wait_until_it_listens(folder / f".s.PGSQL.{port}", process, log)
            yield Pooler(folder, log, port)
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_listens(place: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(place))
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, "PgBouncer does not listen"
        time.sleep(0.02)
