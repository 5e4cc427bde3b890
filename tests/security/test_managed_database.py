"""PostgreSQL without a superuser, as clouds have it: what roles.sh does there, and what it says that it left out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql

from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.settings import Settings
from tests.faults.database_faults import stoppable_postgresql
from tests.security.conftest import REPOSITORY, ROLES, SECRET_OF, RoledDatabase
from tests.security.test_database_roles import READ_WRITE, TO_ALL, TO_REPORTERS, TO_WORKERS_AND_REPORTERS

SCRIPT = (REPOSITORY / "deploy/database/roles.sh").read_text()
#: The role of whoever rents the server: it makes roles and owns the database.
TENANT = "tenant"
#: What each role may do all the same, for it takes a superuser to forbid it.
ALLOWED = ("DO '", "lo_", "pg_advisory", "pg_try_advisory", "pg_logical", "pg_export", "xact_id", "txid_current")


@pytest.fixture(scope="module")
def managed() -> Iterator[tuple[RoledDatabase, str]]:
    """Make a database and its roles as a tenant; returns what the script says besides."""
    with stoppable_postgresql() as server:
        with server.connect() as connection:
            connection.execute(f"CREATE ROLE {TENANT} LOGIN CREATEROLE")
            connection.execute(f"CREATE DATABASE rented OWNER {TENANT}")
        passwords = {secret: secrets.token_hex(12) for secret in SECRET_OF.values()}
        database = RoledDatabase(server, "rented", passwords, secrets.token_hex(16), administrator=TENANT)
        said = database.run(SCRIPT)
        with closing(Database(Settings(database_url=database.url("owner")))) as owner:
            assert migrations.upgrade(owner)
        yield database, said


def test_what_it_takes_a_superuser_for_is_left_out_and_said(managed: tuple[RoledDatabase, str]) -> None:
    database, said = managed

    left_out = [line.partition(".")[0] for line in said.splitlines()]
    assert left_out == [
        "left out: log_min_error_statement",
        "left out: temp_file_limit of gridfleet_reporter",
        "left out: the event trigger",
        "left out: REVOKE on functions of PostgreSQL",
        "left out: REVOKE on the databases postgres and template1",
    ]
    assert database.run(SCRIPT) == said  # again, over tables, and with the passwords of the files
    with database.connect(TENANT) as connection:
        member = connection.execute("SELECT pg_has_role('gridfleet', 'USAGE')").fetchone()
    assert member == (False,)


@pytest.mark.parametrize("role", ["worker", "reporter"])
def test_all_else_that_a_role_may_not_do_is_refused(managed: tuple[RoledDatabase, str], role: str) -> None:
    database, _ = managed
    everything = (*TO_ALL, *TO_WORKERS_AND_REPORTERS, *(TO_REPORTERS if role == "reporter" else ()))
    refused = [statement for statement in everything if not any(word in statement for word in ALLOWED)]
    done = []
    for statement in refused:
        with closing(database.connect(ROLES[role], options=READ_WRITE, autocommit=True)) as connection:
            try:
                connection.execute(sql.SQL(statement))
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
                continue
        done.append(statement)
    assert done == []


def test_each_role_can_do_its_work(managed: tuple[RoledDatabase, str]) -> None:
    database, _ = managed
    with closing(database.connect(ROLES["worker"])) as worker:
        assert worker.execute(
            "SELECT has_table_privilege('attempts', 'INSERT'), has_column_privilege('trials', 'token', 'UPDATE')"
        ).fetchone() == (True, True)
    for role in ("worker", "reporter"):
        with closing(Database(Settings(database_url=database.url(role)))) as opened:
            assert fleet_id(opened)
