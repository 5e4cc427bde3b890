"""The roles of deploy/database/roles.sh on a real PostgreSQL: what each may do, and what it is refused."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.reconciler import RECONCILER_LOCK
from gridfleet.storage import migrations, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import SCHEMA_REVISION
from tests.security.conftest import ROLES, DeployedFleet, RoledDatabase
from tests.stored_searches import WORKERS, claim, reap, record, store_pima, store_search

pytestmark = pytest.mark.postgresql

READ_WRITE = "-c default_transaction_read_only=off"
#: Refused to everybody but the superuser.
TO_ALL = (
    "COPY searches TO PROGRAM 'cat'",
    "COPY searches TO '/tmp/gridfleet-stolen'",
    "COPY searches FROM PROGRAM 'cat'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_from_bytea(0, 'fills the disk')",
    "SELECT lo_creat(-1)",
    "SELECT * FROM pg_authid",
    "SELECT pg_reload_conf()",
    "ALTER SYSTEM SET fsync = off",
    "CREATE ROLE intruder",
    "CREATE DATABASE intruder",
    "CREATE SCHEMA intruder",
    "CREATE TEMPORARY TABLE intruder (a int)",
    "CREATE FUNCTION intruder() RETURNS int LANGUAGE c AS 'libc.so.6', 'getpid'",
    "DROP EVENT TRIGGER guard_new_tables",
    "SET ROLE postgres",
)
#: Refused to all but the owner.
TO_WORKERS_AND_REPORTERS = (
    "CREATE TABLE intruder (a int)",
    "CREATE VIEW intruder AS SELECT 1 AS a",
    "CREATE FUNCTION intruder() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE trials ADD COLUMN a int",
    "CREATE INDEX ON trials (state)",
    "DROP TABLE trials",
    "DROP VIEW leaderboard",
    "TRUNCATE epochs",
    "DELETE FROM searches",
    "DELETE FROM trials",
    "DELETE FROM attempts",
    "DELETE FROM split_scores",
    "DELETE FROM epochs",
    "DELETE FROM workers",
    "DELETE FROM payloads",
    "DELETE FROM payload_chunks",
    "DELETE FROM alembic_version",
    "INSERT INTO searches SELECT * FROM searches",
    "INSERT INTO trials SELECT * FROM trials",
    "INSERT INTO payloads (digest, kind, size, signature, created_at) VALUES ('x', 'X', 1, 'x', now())",
    "INSERT INTO payload_chunks (digest, position, content) VALUES ('x', 0, 'x')",
    "UPDATE payloads SET signature = 'x'",
    "UPDATE payload_chunks SET content = 'x'",
    "UPDATE alembic_version SET version_num = '9999'",
    "UPDATE split_scores SET test_score = 1",
    "UPDATE epochs SET value = 1",
    "SET ROLE gridfleet",
    "COPY searches FROM STDIN",
)
TO_REPORTERS = (
    "SELECT * FROM payloads",
    "SELECT content FROM payload_chunks",
    "COPY payload_chunks TO STDOUT",
    "GRANT SELECT ON payloads TO gridfleet_reporter",
    "UPDATE searches SET state = 'cancelled'",
    "UPDATE trials SET mean_test_score = 1",
    "UPDATE attempts SET outcome = 'completed'",
    "UPDATE workers SET hostname = 'x'",
    "INSERT INTO attempts SELECT * FROM attempts",
    "INSERT INTO split_scores SELECT * FROM split_scores",
    "INSERT INTO epochs SELECT * FROM epochs",
    "INSERT INTO workers SELECT * FROM workers",
    "SELECT * FROM trials FOR UPDATE",
    "BEGIN; LOCK TABLE trials IN SHARE MODE",
    f"SELECT pg_advisory_lock({RECONCILER_LOCK})",
    f"SELECT pg_try_advisory_xact_lock({RECONCILER_LOCK})",
    "SET ROLE gridfleet_worker",
)


def _refused(role: str) -> list[str]:
    return [
        *TO_ALL,
        *(TO_WORKERS_AND_REPORTERS if role != "owner" else ()),
        *(TO_REPORTERS if role == "reporter" else ()),
    ]


@pytest.mark.parametrize(("role", "statement"), [(role, statement) for role in ROLES for statement in _refused(role)])
def test_a_role_is_refused_what_is_not_its_work(roled_database: RoledDatabase, role: str, statement: str) -> None:
    # a session may switch its own settings, so read-only is switched off: the missing right is the barrier
    with (
        closing(roled_database.connect(ROLES[role], options=READ_WRITE, autocommit=True)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


@pytest.mark.parametrize("role", ["worker", "reporter"])
def test_a_search_s_view_is_no_way_to_change_its_trials(
    deployed: DeployedFleet, roled_database: RoledDatabase, role: str
) -> None:
    with closing(Database(deployed.owner)) as owner:
        search_id = store_search(deployed.owner, owner, f"viewed-{role}", [{"C": 1}])
    for view in (f"viewed-{role}", "leaderboard", "best_trials", "search_progress"):
        with roled_database.connect(ROLES[role], options=READ_WRITE) as connection:
            with pytest.raises((psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InsufficientPrivilege)):
                connection.execute(f'DELETE FROM "{view}"')
            connection.rollback()
            assert connection.execute("SELECT count(*) FROM trials WHERE search_id = %s", [search_id]).fetchone() == (
                1,
            )


def test_a_reporter_reads_everything_but_payloads_and_writes_nothing_by_default(
    deployed: DeployedFleet, roled_database: RoledDatabase, become, gridfleet
) -> None:
    with closing(Database(deployed.owner)) as owner:
        store_pima(deployed.owner, owner)
    become(deployed.reporter)

    for command in (
        ["list"],
        ["report", "pima"],
        ["best", "pima"],
        ["best", "pima", "--json"],
        ["sql", "SELECT * FROM pima ORDER BY rank_test_score"],
        ["sql", "SELECT * FROM leaderboard"],
        ["sql", "SELECT * FROM best_trials"],
        ["sql", "SELECT * FROM search_progress", "--csv"],
        ["sql", "SELECT * FROM attempts", "--json"],
    ):
        status, shown, said = gridfleet(*command)
        assert (status, said) == (0, ""), command
        assert shown
    status, shown, said = gridfleet("sql", "SELECT content FROM payload_chunks")
    assert (status, shown) == (1, "")
    assert "permission denied for table payload_chunks" in said
    with roled_database.connect(ROLES["reporter"]) as connection:
        facts = connection.execute(
            "SELECT current_setting('default_transaction_read_only'), current_setting('statement_timeout'), "
            "rolconnlimit FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert facts == ("on", "30s", 20)


def test_a_reporter_can_not_cancel_a_search_and_is_told_so_in_a_sentence(
    deployed: DeployedFleet, become, gridfleet
) -> None:
    with closing(Database(deployed.owner)) as owner:
        store_search(deployed.owner, owner, "not-yours", [{"C": 1}])
    become(deployed.reporter)

    status, shown, said = gridfleet("cancel", "not-yours")

    assert (status, shown) == (1, "")
    assert said.count("\n") == 1
    assert "permission denied" in said or "read-only transaction" in said


def test_a_worker_role_evaluates_reconciles_pauses_resumes_and_cancels(deployed: DeployedFleet) -> None:
    fleet = fleets.Fleet(deployed.worker, is_embedded=False)
    fleet.check()
    with closing(Database(deployed.owner)) as owner, closing(fleet.database) as worker:
        first = store_search(deployed.owner, owner, "work", [{"C": 1}, {"C": 2}])
        record(worker, claim(worker, first, 0, WORKERS[0]), (0.5, 0.5))
        reap(worker, claim(worker, first, 1, WORKERS[0]), "gone")
        second = store_search(deployed.owner, owner, "more work", [{"C": 1}])
        assert fleet.reconciler().once().published >= 1

        assert searches.pause_search(worker, second)
        assert searches.resume_search(worker, second)
        assert searches.cancel_search(worker, second)


def test_trying_failed_trials_again_is_the_submitter_s_for_it_removes_their_scores(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = store_search(deployed.owner, owner, "failing", [{"C": 1}])
        record(worker, claim(worker, search_id, 0, WORKERS[0]), None)

        with pytest.raises(ProgrammingError, match="permission denied"):
            searches.retry_failed(worker, search_id)
        assert searches.retry_failed(owner, search_id) == 1


def test_a_worker_role_can_not_migrate(deployed: DeployedFleet, roled_database: RoledDatabase) -> None:
    def pretend(revision: str) -> None:
        with roled_database.connect("postgres") as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])

    pretend("0001")
    try:
        with closing(Database(deployed.worker)) as worker, pytest.raises(ProgrammingError, match="must be owner"):
            migrations.upgrade(worker)
    finally:
        pretend(SCHEMA_REVISION)


def test_every_role_has_a_password_that_is_stored_as_scram(roled_database: RoledDatabase) -> None:
    with roled_database.connect("postgres") as connection:
        rows = connection.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()

    assert {name for name, _ in rows} == {"postgres", *ROLES.values()}
    assert all(password.startswith("SCRAM-SHA-256$") for _, password in rows)


def test_a_second_run_of_the_script_takes_back_what_a_role_should_not_have(roled_database: RoledDatabase) -> None:
    with roled_database.connect("postgres") as connection:
        connection.execute("GRANT ALL ON payloads, payload_chunks TO gridfleet_reporter, gridfleet_worker")

    roled_database.run_roles_script()

    with roled_database.connect("postgres") as connection:
        for role, right in (("reporter", "SELECT"), ("worker", "INSERT"), ("worker", "UPDATE")):
            query = "SELECT has_table_privilege(%s, 'payload_chunks', %s)"
            assert connection.execute(query, [ROLES[role], right]).fetchone() == (False,)
        assert connection.execute("SELECT has_table_privilege(%s, 'payloads', 'SELECT')", [ROLES["worker"]]).fetchone()
