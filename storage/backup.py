"""Backups of a database: of SQLite by its own copy of one that is in use, of PostgreSQL by its programs."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from sqlalchemy import func, select, text

from gridfleet.storage import migrations, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import BackupError
from gridfleet.storage.schema import Search, Worker
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import held_by
from gridfleet.storage.urls import without_secrets

#: How files begin that hold a database of SQLite, and a dump of PostgreSQL's own format.
BEGINNINGS = {"sqlite": b"SQLite format 3\0", "postgresql": b"PGDMP"}
#: Seconds since which no worker process may have been seen where a backup is restored.
QUIET_S = 60
#: Bytes that are handed from one program to another at once.
AT_ONCE = 1024 * 1024
#: What has to go before a dump is restored: what is there of this role in the schema of its tables.
_DROPS = """
SELECT format('DROP VIEW IF EXISTS %I.%I CASCADE', schemaname, viewname) FROM pg_views
WHERE schemaname = 'public' AND viewowner = current_user
UNION ALL SELECT format('DROP TABLE IF EXISTS %I.%I CASCADE', schemaname, tablename) FROM pg_tables
WHERE schemaname = 'public' AND tableowner = current_user
UNION ALL SELECT format('DROP FUNCTION IF EXISTS %s CASCADE', oid::regprocedure) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND pg_get_userbyid(proowner) = current_user
"""
#: A revision as a dump has it in its rows of ``alembic_version``.
_REVISION = re.compile(r"^COPY \S*alembic_version .*\n(\w+)$", re.MULTILINE)


def back_up(database: Database, file: Path) -> None:
    """Write all of a database into a file, as it is at one moment, beside whatever uses it.

    Parameters
    ----------
    database : Database
        The fleet's.
    file : Path
        Not there yet. It is for this user only: what is stored is in it.

    Raises
    ------
    BackupError
        If it can't be written, or a program of PostgreSQL is missing or fails.
    """
    if file.exists():
        raise BackupError(f"{file} is there already; name another file, or remove it")
    part = file.with_name(f"{file.name}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise BackupError(
            f"{part} can't be made ({error.strerror}); name a file in a folder that can be written"
        ) from error
    try:
        if database.dialect == "sqlite":
            _copy_sqlite(Path(str(database.url.database)), part)
        else:
            _run(["pg_dump", *_connection(database), "--format=custom", f"--file={part}"], database)
        part.replace(file)
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{file} can't be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def restore(database: Database, file: Path, *, force: bool = False) -> None:
    """Put a database back to what a backup has; trials that ran then are queued.

    Parameters
    ----------
    database : Database
        Of a fleet that does not run; its role owns the tables, or may make them.
    file : Path
        What `back_up` wrote.
    force : bool, default=False
        Whether searches that are there may be lost.

    Raises
    ------
    BackupError
        If the file is no backup of such a database, if a fleet runs, if there are searches, or if a program of
        PostgreSQL is missing or fails; the database is as it was then.
    SchemaVersionError
        If the backup or the database is of another release that this one can't read.
    """
    _require_backup(database, file)
    _refuse_use(database, force=force)
    revision = _revision_in_sqlite(file) if database.dialect == "sqlite" else _revision_in_dump(database, file)
    migrations.require_known(revision)
    if database.dialect == "sqlite":
        try:
            _copy_sqlite(file, Path(str(database.url.database)), is_restore=True)
        except sqlite3.Error as error:
            raise BackupError(f"{file} can't be restored: {error}") from error
    else:
        _restore_dump(database, file)
    migrations.upgrade(database)
    for held in held_by(database, None):  # their workers are not there any more
        transitions.release(database, held)
    workers.note_ended(database, None)


def _require_backup(database: Database, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            found = opened.read(max(map(len, BEGINNINGS.values())))
    except OSError as error:
        raise BackupError(f"{file} can't be read: {error.strerror}") from error
    kind = next((kind for kind, beginning in BEGINNINGS.items() if found.startswith(beginning)), None)
    if kind != database.dialect:
        is_one = f"is one of {kind}" if kind else "is none that `gridfleet db backup` wrote"
        raise BackupError(f"{file} is no backup of {database.dialect}: it {is_one}")


def _refuse_use(database: Database, *, force: bool) -> None:
    """Refuse to overwrite what somebody uses, or may want."""
    if migrations.current_revision(database) is None:
        return
    migrations.require_current(database)
    where = without_secrets(database.url)
    with database.read() as connection:
        lives = workers.was_seen(QUIET_S)
        n_workers = connection.execute(select(func.count()).select_from(Worker).where(lives)).scalar_one()
        n_searches = connection.execute(select(func.count()).select_from(Search)).scalar_one()
    if n_workers:
        raise BackupError(
            f"a fleet runs on {where}: {n_workers} worker processes were seen in the last {QUIET_S} s; stop its "
            "workers and schedulers first"
        )
    if n_searches and not force:
        raise BackupError(f"{where} has {n_searches} searches, which would be lost; --force restores all the same")


def _copy_sqlite(source: Path, target: Path, *, is_restore: bool = False) -> None:
    # all at once: in steps, it begins anew whenever somebody writes in between
    with closing(sqlite3.connect(source, timeout=30)) as read, closing(sqlite3.connect(target, timeout=30)) as written:
        read.backup(written)
        if not is_restore:  # one file, with nothing beside it
            written.execute("PRAGMA journal_mode=DELETE")


def _revision_in_sqlite(file: Path) -> str:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            (broken,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            (size,) = opened.execute(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            ).fetchone()
            if size > file.stat().st_size:  # what is missing of a page reads as zeros
                broken = "its end is missing"
            if broken != "ok":
                raise BackupError(f"{file} is damaged: {broken}")
            return str(opened.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    except (sqlite3.Error, TypeError) as error:
        raise BackupError(f"{file} holds no tables of gridfleet: {error}") from error


def _revision_in_dump(database: Database, file: Path) -> str:
    script = _run(["pg_restore", "--data-only", "--table=alembic_version", "--file=-", str(file)], database)
    found = _REVISION.search(script)
    if found is None:
        raise BackupError(f"{file} holds no tables of gridfleet")
    return found[1]


def _restore_dump(database: Database, file: Path) -> None:
    """Replace all tables in one transaction: `pg_restore` makes SQL of the dump, `psql` runs it."""
    with database.read() as connection:
        drops = [f"{drop};\n" for drop in connection.execute(text(_DROPS)).scalars()]
    to_sql = ["pg_restore", "--file=-", "--schema=public", "--no-owner", str(file)]
    run = ["psql", *_connection(database), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
    environment = _environment(database)
    for program in ("pg_restore", "psql"):
        _require_program(program, database)
    with (
        subprocess.Popen(to_sql, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as made,
        subprocess.Popen(run, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as written,
    ):
        script, statements = cast(IO[bytes], made.stdout), cast(IO[bytes], written.stdin)
        try:
            statements.write("".join(["BEGIN;\nSET lock_timeout = '30s';\n", *drops]).encode())
            shutil.copyfileobj(script, statements, AT_ONCE)
            if made.wait() == 0:  # else it ends without a commit
                statements.write(b"\nCOMMIT;\n")
            statements.close()
        except BrokenPipeError:  # psql has ended, and says why
            made.kill()
        for process in (written, made):
            errors = cast(IO[bytes], process.stderr).read()
            if process.wait() != 0:
                raise BackupError(f"{file} can't be restored: {_last_line(errors)}")


def _run(command: Sequence[str], database: Database) -> str:
    """Run a program of PostgreSQL; returns what it printed."""
    _require_program(command[0], database)
    done = subprocess.run(command, env=_environment(database), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise BackupError(f"{command[0]} failed: {_last_line(done.stderr)}")
    return done.stdout.decode(errors="replace")


def _require_program(program: str, database: Database) -> None:
    if shutil.which(program) is None:
        url = without_secrets(database.url).replace("+psycopg", "")
        command = f"pg_dump --format=custom --file=FILE '{url}'"
        if program != "pg_dump":
            command = f"pg_restore --schema=public --no-owner --clean --if-exists --exit-on-error --dbname='{url}' FILE"
        raise BackupError(
            f"{program} is not installed here; install PostgreSQL's client programs, or run `{command}` where they are"
        )


def _connection(database: Database) -> list[str]:
    """Return how to reach a database, without its password, which anybody sees on a command line."""
    from psycopg.conninfo import make_conninfo

    url = database.url
    parts = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database}
    for name, value in url.query.items():
        if "password" not in name:
            parts[name] = value if isinstance(value, str) else ",".join(value)
    return ["--no-password", f"--dbname={make_conninfo('', **{k: v for k, v in parts.items() if v is not None})}"]


def _environment(database: Database) -> dict[str, str]:
    password = database.url.password
    return {**os.environ, **({} if password is None else {"PGPASSWORD": str(password)})}


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it did not say why"
