"""SQLite: refused on network file systems, durable, and with writers that wait for each other."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX

#: File systems of one host, on which SQLite's WAL works, as the kernel names them.
# fmt: off
LOCAL_FILE_SYSTEMS = frozenset({
    "apfs", "aufs", "bcachefs", "btrfs", "devtmpfs", "ecryptfs", "exfat", "ext2", "ext3", "ext4", "f2fs",
    "fuseblk", "hfs", "hfsplus", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs",
    "rootfs", "tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs", "fuse.fuse-overlayfs",
})
# fmt: on
#: File systems on which it can't, because its shared memory is per host (sqlite.org/wal.html): those of networks,
#: of object stores, and those through which a virtual machine sees its host.
# fmt: off
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afp", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf",
    "virtiofs", "vmhgfs", "fuse.blobfuse", "fuse.blobfuse2", "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs2",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs",
    "fuse.sshfs", "fuse.vmhgfs-fuse",
})
# fmt: on
#: Bytes that SQLite's WAL is cut to when no reader needs more of it; it grows while a long one does.
SQLITE_WAL_BYTES = 16_000_000
#: Pages, of 4 KB, that are given back while others wait.
VACUUM_PAGES = 2_000
#: How the kernel writes a space, a tab, a line break or a backslash of a mount point.
_ESCAPED = re.compile(r"\\([0-7]{3})")


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
        if kind and kind not in LOCAL_FILE_SYSTEMS:
            warnings.warn(
                f"{folder} lies on a file system that gridfleet does not know ({kind}); if it is one of a network, "
                "SQLite loses data there: use a local folder or PostgreSQL",
                stacklevel=2,
            )
    return {"connect_args": {"timeout": 30}, "pool_pre_ping": False}


def prepare(connection: Any, _record: Any) -> None:
    """Set up a new connection: write-ahead log, synced to the disk at each commit, foreign keys checked."""
    connection.isolation_level = None  # BEGIN is ours: see `begin`
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):
        # before the file has anything: on one that has, it waits for the lock of writers and changes nothing
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"journal_size_limit={SQLITE_WAL_BYTES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def forbid_writing(connection: Any, _record: Any) -> None:
    """Refuse whatever a new connection would write."""
    connection.execute("PRAGMA query_only=ON")


def begin(connection: Connection) -> None:
    """Begin a transaction, with the lock of writers if it is one that may write."""
    # a transaction that reads and then writes gets SQLITE_BUSY at once, whatever busy_timeout says,
    # so writers take the lock at their beginning
    connection.exec_driver_sql(connection.get_execution_options().get("gridfleet_begin", "BEGIN"))


def give_back(engine: Engine, *, may_rewrite: bool) -> bool:
    """Cut the pages off a file that nothing is in any more.

    Parameters
    ----------
    engine : Engine
        Of the file.
    may_rewrite : bool
        Whether a file of an older release, which does not know how, may be written anew: nobody else writes meanwhile.

    Returns
    -------
    bool
        False if it stays as large as it is.
    """
    connection: Any = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (mode,) = cursor.execute("PRAGMA auto_vacuum").fetchone()
        if mode == 0 and not may_rewrite:
            return False
        if mode == 0:
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
            cursor.execute("VACUUM")
        # some at a time, for others wait; as a script, for the driver takes one step of such a statement, and each
        # frees a page
        while cursor.execute("PRAGMA freelist_count").fetchone()[0]:
            cursor.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return True
    finally:
        connection.close()


def _file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the kind of file system that a folder lies on; empty where it can't be told."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return ""
    found, depth = "", -1
    for line in lines:
        _, place, kind = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), field) for field in line.split()[:3])
        # of two at one place, the later one covers the other
        if folder.is_relative_to(place) and len(Path(place).parts) >= depth:
            found, depth = kind, len(Path(place).parts)
    return found
