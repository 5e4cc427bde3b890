"""roles.sh run again, and a backup restored: roles get back what is theirs, and nobody becomes superuser."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.security.conftest import REPOSITORY, ROLES, RoledDatabase

pytestmark = pytest.mark.postgresql

OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()
#: The commands of docs/operations.md, as the shell in the database's container gets them.
BACK_UP, RESTORE = (
    next(line for line in re.findall(r"database sh -c '(.*)'", OPERATIONS) if f"exec {program} " in line)
    for program in ("pg_dump", "pg_restore")
)
#: Makes the owner superuser where a superuser runs it.
RISE = """
CREATE FUNCTION public.rise({arguments}) RETURNS {returned} LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('is_superuser') = 'on' THEN
    ALTER ROLE gridfleet SUPERUSER;
  END IF;
  RETURN {value};
END
$$
"""
#: How a superuser looks at a database in which others may make operators.
SAFELY = "-c search_path=pg_catalog"


def _is_superuser(roled_database: RoledDatabase) -> bool:
    with roled_database.connect("postgres", options=SAFELY) as connection:
        return ("gridfleet",) in connection.execute("SELECT rolname FROM pg_roles WHERE rolsuper").fetchall()


@pytest.fixture
def planted(roled_database: RoledDatabase) -> Iterator[psycopg.Connection]:
    """A session of the owner's; the functions that it makes are gone at the end, with all that hangs on them."""
    before = _routines(roled_database)
    with closing(roled_database.connect(ROLES["owner"], autocommit=True)) as connection:
        yield connection
    with roled_database.connect("postgres", options=SAFELY) as connection:
        connection.execute("ALTER ROLE gridfleet NOSUPERUSER")
        for routine in _routines(roled_database) - before:
            connection.execute(f"DROP ROUTINE IF EXISTS {routine} CASCADE")


def _routines(roled_database: RoledDatabase) -> set[str]:
    with roled_database.connect("postgres", options=SAFELY) as connection:
        query = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        return {name for (name,) in connection.execute(query)}


def test_nothing_of_the_owner_s_runs_as_superuser_when_the_script_runs_again(
    roled_database: RoledDatabase, planted: psycopg.Connection
) -> None:
    for left, right in itertools.product(("name", "text", "oid", "regproc"), repeat=2):
        planted.execute(RISE.format(arguments=f"a {left}, b {right}", returned="text", value="a::text || b::text"))
        for operator in ("||", "~"):
            planted.execute(
                f"CREATE OPERATOR public.{operator} (LEFTARG={left}, RIGHTARG={right}, FUNCTION=public.rise)"
            )
    # in the place of functions that the script makes, made, or calls
    for name, arguments in (
        ("guard_table", "name text"),
        ("guard_table", "name name"),
        ("set_rights", "relation oid"),
        ("format", "a text, b name"),
        ("format", "a text, b regprocedure"),
        ("current_setting", "a name"),
    ):
        text = RISE.format(arguments=arguments, returned="text", value="''").replace("public.rise", f"public.{name}")
        planted.execute(text)
    planted.execute("CREATE VIEW hangs_on_it AS SELECT public.guard_table('a'::text)")

    roled_database.run_roles_script()

    assert not _is_superuser(roled_database)


def test_a_backup_is_restored_by_the_owner_so_that_nothing_in_it_runs_as_superuser(
    roled_database: RoledDatabase, planted: psycopg.Connection, ended: int, tmp_path: Path
) -> None:
    planted.execute(RISE.format(arguments="a int", returned="boolean", value="true"))
    planted.execute("CREATE TABLE planted (a int CHECK (public.rise(a)))")
    planted.execute("INSERT INTO planted VALUES (1)")
    rows = "SELECT array_agg(t ORDER BY id), (SELECT count(*) FROM epochs WHERE metric = 'loss') FROM trials AS t"
    before = planted.execute(rows).fetchone()
    roled_database.run(BACK_UP, stdout=tmp_path / "gridfleet.dump")
    planted.execute("DELETE FROM curves")

    roled_database.run(RESTORE, stdin=tmp_path / "gridfleet.dump")

    planted.execute("DROP TABLE planted")
    assert not _is_superuser(roled_database)
    assert planted.execute(rows).fetchone() == before
    with (  # rights and triggers are back as well
        roled_database.connect(ROLES["worker"]) as worker,
        pytest.raises(psycopg.errors.IntegrityConstraintViolation),
    ):
        worker.execute("UPDATE trials SET mean_test_score = 1 WHERE id IN (SELECT trial_id FROM ended)")
    with (
        roled_database.connect(ROLES["reporter"]) as reporter,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        reporter.execute("SELECT * FROM payloads")


def test_the_script_takes_what_a_role_gave_itself(roled_database: RoledDatabase) -> None:
    with roled_database.connect(ROLES["worker"]) as connection:
        connection.execute("ALTER ROLE gridfleet_worker SET default_transaction_read_only = on")
    with roled_database.connect(ROLES["owner"]) as connection:
        connection.execute(f"ALTER ROLE gridfleet IN DATABASE {roled_database.name} SET search_path = nowhere")
    with roled_database.connect("postgres") as connection:
        connection.execute("ALTER ROLE gridfleet_worker SUPERUSER CREATEROLE")
        connection.execute("GRANT CREATE ON SCHEMA public TO gridfleet_worker")
        connection.execute("GRANT UPDATE ON searches, trials TO gridfleet_worker")

    roled_database.run_roles_script()

    with roled_database.connect("postgres") as connection:
        settings = connection.execute(
            "SELECT setrole::regrole::text, unnest(setconfig) FROM pg_db_role_setting WHERE setrole <> 0"
        ).fetchall()
        assert sorted(settings) == [
            ("gridfleet_reporter", "default_transaction_read_only=on"),
            ("gridfleet_reporter", "idle_in_transaction_session_timeout=60s"),
            ("gridfleet_reporter", "statement_timeout=30s"),
            ("gridfleet_reporter", "temp_file_limit=100MB"),
        ]
        attributes = "SELECT bool_or(rolsuper OR rolcreaterole) FROM pg_roles WHERE rolname ~ '^gridfleet'"
        assert connection.execute(attributes).fetchone() == (False,)
        for right in (
            "has_schema_privilege('gridfleet_worker', 'public', 'CREATE')",
            "has_column_privilege('gridfleet_worker', 'trials', 'params', 'UPDATE')",
            "has_column_privilege('gridfleet_worker', 'searches', 'name', 'UPDATE')",
        ):
            assert connection.execute(f"SELECT {right}").fetchone() == (False,)
        still = "SELECT has_column_privilege('gridfleet_worker', 'trials', 'state', 'UPDATE')"
        assert connection.execute(still).fetchone() == (True,)


def test_a_second_run_of_the_script_takes_back_what_a_role_should_not_have(roled_database: RoledDatabase) -> None:
    with roled_database.connect("postgres") as connection:
        connection.execute("GRANT ALL ON payloads, payload_chunks TO gridfleet_reporter, gridfleet_worker")

    roled_database.run_roles_script()

    with roled_database.connect("postgres") as connection:
        for role, right in (("reporter", "SELECT"), ("worker", "INSERT"), ("worker", "UPDATE")):
            query = "SELECT has_table_privilege(%s, 'payload_chunks', %s)"
            assert connection.execute(query, [ROLES[role], right]).fetchone() == (False,)
        assert connection.execute("SELECT has_table_privilege(%s, 'payloads', 'SELECT')", [ROLES["worker"]]).fetchone()
