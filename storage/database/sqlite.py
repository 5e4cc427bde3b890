"""SQLite: refused on network file systems, durable, and with writers that wait for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX

#: File systems on which SQLite's WAL can't work, because its shared memory is per host (sqlite.org/wal.html).
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "glusterfs", "fuse.sshfs"}
#: Bytes that SQLite's WAL is cut to when no reader needs more of it; it grows while a long one does.
SQLITE_WAL_BYTES = 16_000_000


def options(path: str | None) -> dict[str, Any]:
    """Return the engine's options for a database file.

    Raises
    ------
    SettingsError
        If its folder is missing, or lies on a network file system.
    """
    if path and path != ":memory:":
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise SettingsError(f"{PREFIX}DATABASE_URL: the folder {folder} does not exist; make it first")
        kind = _file_system(folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL: {folder} lies on a network file system ({kind}), where SQLite loses data; "
                "use a local folder or PostgreSQL"
            )
    return {"connect_args": {"timeout": 30}, "pool_pre_ping": False}


def prepare(connection: Any, _record: Any) -> None:
    """Set up a new connection: write-ahead log, synced to the disk at each commit, foreign keys checked."""
    connection.isolation_level = None  # BEGIN is ours: see `begin`
    cursor = connection.cursor()
    for pragma in (
        "busy_timeout=30000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"journal_size_limit={SQLITE_WAL_BYTES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin(connection: Connection) -> None:
    """Begin a transaction, with the lock of writers if it is one that may write."""
    # a transaction that reads and then writes gets SQLITE_BUSY at once, whatever busy_timeout says,
    # so writers take the lock at their beginning
    connection.exec_driver_sql(connection.get_execution_options().get("gridfleet_begin", "BEGIN"))


def _file_system(folder: Path) -> str:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    fields = [line.split() for line in mounts]
    held = [(Path(parts[1]), parts[2]) for parts in fields if folder.is_relative_to(parts[1])]
    return max(held, key=lambda mount: len(mount[0].parts))[1] if held else ""
