"""The roles of deploy/database/roles.sh on a real PostgreSQL: what each may do, and what it is refused."""

from __future__ import annotations

from contextlib import ExitStack, closing

import psycopg
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError, ProgrammingError

from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.reconciler import RECONCILER_LOCK
from gridfleet.storage import events, migrations, models, passes, searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.pruner import Pruner
from gridfleet.storage.schema import SCHEMA_REVISION, Search, Trial
from gridfleet.storage.search_views import point_view
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer, Verifier
from gridfleet.storage.trial_results import PrunedResult, TrialResult
from gridfleet.storage.trials import proposed, transitions
from gridfleet.storage.trials.held import Held
from gridfleet.storage.trials.reports import Racer, report
from tests.security.conftest import ROLES, DeployedFleet, RoledDatabase
from tests.storage import conftest as stored
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
    "SELECT pg_logical_emit_message(false, 'fills', 'the disk')",
    "SELECT pg_export_snapshot()",
    "SELECT pg_current_xact_id()",
    "SELECT txid_current()",
    "SET temp_file_limit = -1",
    "SET session_replication_role = replica",
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
    "TRUNCATE curves",
    "DELETE FROM searches",
    "DELETE FROM trials",
    "DELETE FROM attempts",
    "DELETE FROM split_scores",
    "DELETE FROM curves",
    "DELETE FROM trial_warnings",
    "DELETE FROM fleet_identity",
    "DELETE FROM tags",
    "DELETE FROM texts",
    "DELETE FROM sources",
    "INSERT INTO tags SELECT * FROM tags",
    "INSERT INTO sources SELECT * FROM sources",
    "UPDATE tags SET value = 'mine'",
    "UPDATE texts SET content = 'mine'",
    "UPDATE sources SET name = 'mine'",
    "UPDATE searches SET name = 'mine'",
    "UPDATE searches SET signature = 'mine'",
    "UPDATE searches SET deleted_at = now()",
    "DELETE FROM payloads",
    "DELETE FROM payload_chunks",
    "DELETE FROM alembic_version",
    "INSERT INTO searches SELECT * FROM searches",
    "INSERT INTO trials SELECT * FROM trials",
    "INSERT INTO payloads (digest, kind, size, signature, created_at) VALUES ('x', 'X', 1, 'x', now())",
    "INSERT INTO payload_chunks (digest, position, content) VALUES ('x', 0, 'x')",
    "DELETE FROM best_models",
    "DELETE FROM best_model_chunks",
    "UPDATE best_models SET signature = 'x'",
    "UPDATE best_model_chunks SET content = 'x'",
    "UPDATE payloads SET signature = 'x'",
    "UPDATE payload_chunks SET content = 'x'",
    "UPDATE alembic_version SET version_num = '9999'",
    "UPDATE split_scores SET test_score = 1",
    "UPDATE curves SET values = '{1}'",
    "UPDATE trial_warnings SET n_fits = 1",
    "UPDATE reports SET decision = 'kept'",
    "UPDATE searches SET pruner = NULL",
    "UPDATE fleet_identity SET id = 'mine'",
    "UPDATE trials SET params = '{}'",
    "UPDATE trials SET search_id = search_id, state = state",
    "UPDATE searches SET evaluation_digest = x_digest",
    "UPDATE searches SET submitted_by = 'somebody else'",
    "UPDATE attempts SET worker_id = 'somebody else'",
    "UPDATE workers SET hostname = 'x'",
    "UPDATE workers SET draining = true",
    "INSERT INTO workers SELECT * FROM workers",
    "INSERT INTO workers (id, draining) VALUES ('node/1', true)",
    "ALTER TABLE trials DISABLE TRIGGER ALL",
    "DROP FUNCTION keep_trial() CASCADE",
    "DO 'BEGIN END'",
    "SELECT gridfleet_rights.set_rights('trials')",
    "SET ROLE gridfleet",
    "COPY searches FROM STDIN",
)
#: The columns that the worker's role may change; those of results until their trial has ended.
CHANGED_BY_WORKERS = {
    "searches": {"state", "started_at", "finished_at", "paused_at", "error"},
    "trials": {column.name for column in Trial.__table__.columns}
    - {"id", "search_id", "number", "params", "params_digest", "structure_digest", "created_at", "lease_expires_at"}
    - {"reuse_key", "reused_from", "sample", "asked_without", "iter", "n_resources"},
    "attempts": {"ended_at", "outcome", "error", "peak_memory_mb"},
    "leases": {"expires_at", "memory_mb"},
    "workers": {"last_seen_at", "ended_at", "stopped_reason"},
    "reconciler": {"hostname", "pid", "last_pass_at", "notifies"},
    "events": {"n_tries", "tried_at", "not_before", "sent_at", "error"},
}
TO_REPORTERS = (
    "SELECT * FROM payloads",
    "SELECT content FROM payload_chunks",
    "SELECT content FROM best_model_chunks",
    "INSERT INTO best_models SELECT * FROM best_models",
    "INSERT INTO best_model_chunks SELECT * FROM best_model_chunks",
    "COPY payload_chunks TO STDOUT",
    "GRANT SELECT ON payloads TO gridfleet_reporter",
    "UPDATE searches SET state = 'cancelled'",
    "UPDATE trials SET mean_test_score = 1",
    "UPDATE attempts SET outcome = 'completed'",
    "UPDATE workers SET last_seen_at = now()",
    "INSERT INTO attempts SELECT * FROM attempts",
    "INSERT INTO split_scores SELECT * FROM split_scores",
    "INSERT INTO curves SELECT * FROM curves",
    "INSERT INTO trial_warnings SELECT * FROM trial_warnings",
    "DELETE FROM workers",
    "DELETE FROM leases",
    "DELETE FROM reports",
    "INSERT INTO reports SELECT * FROM reports",
    "INSERT INTO leases SELECT * FROM leases",
    "UPDATE leases SET expires_at = now()",
    "SELECT * FROM trials FOR UPDATE",
    "BEGIN; LOCK TABLE trials IN SHARE MODE",
    f"SELECT pg_advisory_lock({RECONCILER_LOCK})",
    f"SELECT pg_try_advisory_xact_lock({RECONCILER_LOCK})",
    "SET ROLE gridfleet_worker",
)


#: What only the scheduler may, of searches that ask for it.
TO_ADD_TRIALS = "INSERT INTO trials SELECT * FROM trials"


def _refused(role: str) -> list[str]:
    return [
        *TO_ALL,
        *(TO_WORKERS_AND_REPORTERS if role in ("worker", "reporter") else ()),
        *(one for one in TO_WORKERS_AND_REPORTERS if role == "scheduler" and one != TO_ADD_TRIALS),
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


@pytest.mark.parametrize("param", ["C", "gamma"])  # replaced, or made anew with other columns
def test_a_reporter_reads_a_view_that_shows_a_newer_search(
    deployed: DeployedFleet, roled_database: RoledDatabase, param: str
) -> None:
    with closing(Database(deployed.owner)) as owner:
        store_search(deployed.owner, owner, f"again {param}", [{"C": 1}])
        newer = store_search(deployed.owner, owner, f"again {param}-2", [{param: 5}])
        with owner.write() as connection:
            assert point_view(connection, newer, f"again {param}", {param: "bigint"})

    with roled_database.connect(ROLES["reporter"]) as connection:
        assert connection.execute(f'SELECT "{param}" FROM "again {param}"').fetchall() == [(5,)]


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


def test_a_worker_changes_only_what_a_worker_finds_out(roled_database: RoledDatabase) -> None:
    with roled_database.connect(ROLES["worker"]) as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND has_column_privilege(format('public.%I', table_name), column_name::text, 'UPDATE')"
        ).fetchall()

    assert set(rows) == {(table, column) for table, columns in CHANGED_BY_WORKERS.items() for column in columns}


def test_a_scheduler_says_besides_how_many_trials_were_proposed(roled_database: RoledDatabase) -> None:
    rights = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND has_column_privilege(%s, format('public.%%I', table_name), column_name::text, 'UPDATE')"
    )
    with roled_database.connect("postgres") as connection:
        of_worker, of_scheduler = (
            set(connection.execute(rights, [ROLES[role]]).fetchall()) for role in ("worker", "scheduler")
        )

    assert of_scheduler - of_worker == {("searches", "n_asked"), ("searches", "is_exhausted")}


@pytest.fixture(scope="session")
def asking(roled_database: RoledDatabase) -> int:
    """Store a search whose trials are proposed, and one trial of it."""
    settings = Settings(database_url=roled_database.url("owner"), secret_key=roled_database.secret_key)
    with closing(Database(settings)) as owner:
        search_id = store_search(settings, owner, "asking", [{"C": 1}])
    with roled_database.connect("postgres") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM trials WHERE search_id = %s", [search_id])
        connection.execute(
            'UPDATE searches SET space = %s, sampler = \'{"name":"random"}\', seed = 1, lookahead = 2, n_trials = 9, '
            "asks_in_order = true, n_asked = 0 WHERE id = %s",
            [stored.SPACE, search_id],
        )
    return search_id


NEW_TRIAL = (
    "INSERT INTO trials (search_id, number, params, params_digest, sample, state, attempt, failures, cancel_requested, "
    "publish_count, created_at, {columns}) "
    "VALUES ({of_search}, {number}, '{{}}', 'x', {sample}, '{state}', 0, 0, false, 0, now(), {values})"
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 7},
        {"number": -1},
        {"sample": "NULL"},
        {"of_search": "(SELECT id FROM searches WHERE name = 'ended')"},
        {"of_search": "(SELECT id FROM searches WHERE name = 'waiting')"},
        {"state": "cancelled", "columns": "finished_at", "values": "now()"},
        {"columns": "mean_test_score", "values": "1"},
        {"columns": "reused_from", "values": "1"},
    ],
    ids=str,
)
def test_a_scheduler_adds_no_trial_that_no_search_asked_for(
    roled_database: RoledDatabase, asking: int, ended: int, wrong: dict[str, str]
) -> None:
    fitting = {"of_search": asking, "number": 0, "sample": "'{}'", "state": "queued"}
    fitting |= {"columns": "structure_digest", "values": "NULL"}
    with roled_database.connect(ROLES["scheduler"]) as connection:
        connection.execute("UPDATE searches SET n_asked = 1 WHERE id = %s", [asking])
        connection.execute(NEW_TRIAL.format(**fitting))
        connection.rollback()
        connection.execute("UPDATE searches SET n_asked = 1 WHERE id = %s", [asking])
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied to add trial"):
            connection.execute(NEW_TRIAL.format(**fitting | wrong))


@pytest.mark.parametrize("change", ["n_asked = n_asked - 1", "n_asked = n_trials + 1", "n_asked = NULL"])
def test_a_scheduler_takes_no_proposal_back_and_makes_no_more_than_were_asked_for(
    roled_database: RoledDatabase, asking: int, change: str
) -> None:
    with roled_database.connect(ROLES["scheduler"]) as connection:
        connection.execute("UPDATE searches SET n_asked = 1 WHERE id = %s", [asking])
        fitting = {"of_search": asking, "number": 0, "sample": "'{}'", "state": "queued"}
        connection.execute(NEW_TRIAL.format(**fitting, columns="structure_digest", values="NULL"))
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="never changes"):
            connection.execute(f"UPDATE searches SET {change} WHERE id = {asking}")


def test_a_scheduler_can_propose_and_a_worker_cannot(deployed: DeployedFleet, asking: int) -> None:
    one = [proposed.Proposal({"branch": 0, "values": {"a": 1}}, {"a": 1}, [])]
    with closing(Database(deployed.worker)) as worker, pytest.raises(ProgrammingError, match="permission denied"):
        proposed.add_proposals(worker, asking, one, n_asked=0)

    with closing(Database(deployed.scheduler)) as scheduler:
        assert proposed.add_proposals(scheduler, asking, one, n_asked=0) is not None
        assert [row.sample for row in proposed.proposed(scheduler, asking)] == [{"branch": 0, "values": {"a": 1}}]
        (search,) = (one for one in proposed.asking(scheduler) if one.id == asking)
        assert proposed.round_trials(scheduler, search, 0) == [], "and it reads the scores by which a round is halved"
        assert proposed.fail_proposals(scheduler, asking, "no more trials could be proposed: ValueError")


def test_a_table_of_a_later_migration_is_read_only_until_roles_sh_knows_it(roled_database: RoledDatabase) -> None:
    with roled_database.connect(ROLES["owner"]) as connection:
        connection.execute("CREATE TABLE later (a int)")
        connection.execute("ALTER TABLE trials ADD COLUMN later int")
        for role in ("worker", "reporter"):
            rights = connection.execute(
                "SELECT has_table_privilege(%(role)s, 'later', 'SELECT'), "
                "has_table_privilege(%(role)s, 'later', 'INSERT, UPDATE, DELETE'), "
                "has_column_privilege(%(role)s, 'trials', 'later', 'SELECT'), "
                "has_column_privilege(%(role)s, 'trials', 'later', 'UPDATE')",
                {"role": ROLES[role]},
            ).fetchone()
            assert rights == (True, False, True, False)
        connection.rollback()


# what is final

OF_ENDED = "search_id = (SELECT id FROM searches WHERE name = 'ended')"
A_TRIAL = f"(SELECT id FROM trials WHERE number = 0 AND {OF_ENDED})"
WAITING = "search_id = (SELECT id FROM searches WHERE name = 'waiting')"
#: What a worker may write as long as a trial runs, written afterwards, and what the database says.
TOO_LATE = {
    f"UPDATE trials SET mean_test_score = 1 WHERE {OF_ENDED}": "changes no more",
    f"UPDATE trials SET worker_id = 'somebody/else' WHERE {OF_ENDED}": "changes no more",
    f"UPDATE trials SET record_time = 1 WHERE {OF_ENDED}": "changes no more",
    f"UPDATE trials SET state = 'failed', mean_test_score = NULL WHERE number = 0 AND {OF_ENDED}": "changes no more",
    f"UPDATE trials SET state = 'running', token = 'mine', finished_at = NULL WHERE {OF_ENDED}": "changes no more",
    f"UPDATE trials SET state = 'queued', finished_at = NULL, error = NULL, error_type = NULL "
    f"WHERE state = 'failed' AND {OF_ENDED}": "failed and changes no more",
    f"UPDATE trials SET state = 'completed', finished_at = now(), mean_test_score = 1 WHERE {WAITING}": "is queued",
    f"INSERT INTO split_scores (trial_id, split, metric, test_score, fit_time, score_time, n_train, n_test) "
    f"VALUES ({A_TRIAL}, 7, 'score', 1, 0, 0, 1, 1)": "not being recorded",
    f"INSERT INTO curves (trial_id, split, metric, values) "
    f"VALUES ({A_TRIAL}, 7, 'loss', '{{0}}')": "not being recorded",
    f"INSERT INTO split_scores (trial_id, split, metric, test_score, fit_time, score_time, n_train, n_test) "
    f"SELECT id, 7, 'score', 1, 0, 0, 1, 1 FROM trials WHERE {WAITING}": "not being recorded",
    f"INSERT INTO reports (trial_id, split, step, value, n_compared, rank, decision, reported_at) "
    f"VALUES ({A_TRIAL}, 0, 1, 0.5, 0, 1, 'kept', now())": "does not run: it reports nothing",
    f"INSERT INTO trial_warnings (trial_id, position, category, message, n_fits) "
    f"VALUES ({A_TRIAL}, 0, 'UserWarning', 'mind this', 1)": "not being recorded",
    **{
        f"INSERT INTO best_models (trial_id, number, digest, size, signature, python_version, scikit_learn_version, "
        f"gridfleet_version) VALUES ({trial}, 0, 'x', 1, 'x', '3', '1', '1')": "is no refit that is being recorded"
        for trial in (A_TRIAL, f"(SELECT id FROM trials WHERE {WAITING})")
    },
    f"INSERT INTO best_model_chunks (trial_id, position, content) VALUES ({A_TRIAL}, 0, 'x')": "is no refit",
    f"UPDATE attempts SET outcome = 'released' WHERE trial_id = {A_TRIAL}": "has ended",
    f"UPDATE attempts SET ended_at = NULL, outcome = NULL WHERE trial_id = {A_TRIAL}": "has ended",
    f"INSERT INTO attempts (trial_id, attempt, token, worker_id, started_at) "
    f"VALUES ({A_TRIAL}, 7, 'mine', 'me', now())": "not the one that runs",
    "UPDATE searches SET error = 'it was never any good' WHERE name = 'ended'": "has ended",
    "UPDATE searches SET state = 'cancelled' WHERE name = 'ended'": "has ended",
}


@pytest.mark.parametrize(
    ("role", "statement"),
    # the owner's may put failed trials back: that is retry-failed
    [(role, text) for role in ("worker", "owner") for text in TOO_LATE if role == "worker" or "'queued'" not in text],
)
def test_what_has_ended_stays_as_it_is(roled_database: RoledDatabase, ended: int, role: str, statement: str) -> None:
    with (
        roled_database.connect(ROLES[role]) as connection,
        pytest.raises(psycopg.errors.IntegrityConstraintViolation, match=TOO_LATE[statement]),
    ):
        connection.execute(statement)


def test_a_worker_reports_of_a_trial_that_runs_and_removes_nothing_of_one_that_ended(
    deployed: DeployedFleet, roled_database: RoledDatabase
) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = store_search(deployed.owner, owner, "raced", [{"C": 1}, {"C": 2}])
        racer = Racer(search_id, 0, Pruner("asha"))
        claimed = claim(worker, search_id, 0, "node/1")
        held = Held(claimed.trial_id, claimed.token)
        for step in (1, 1, 3):
            place = {"split": 0, "step": step, "value": 0.5, "best": 0.5}
            assert report(worker, held, racer, **place, is_first=step == 1)
        transitions.record(worker, held, TrialResult(splits=[], pruned=PrunedResult(0, 3, 0.5)))
    with roled_database.connect(ROLES["worker"]) as connection:
        assert connection.execute(
            "SELECT state, pruned_epoch FROM trials WHERE id = %s", [claimed.trial_id]
        ).fetchone() == ("pruned", 3)
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="does not run: its reports stay"):
            connection.execute("DELETE FROM reports WHERE trial_id = %s", [claimed.trial_id])


def test_a_worker_removes_no_row_of_one_that_was_seen_this_week_and_undoes_no_drain(
    deployed: DeployedFleet, roled_database: RoledDatabase
) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        workers.register(worker, "other/1", hostname="host", pid=1)
        with pytest.raises(ProgrammingError, match="permission denied"):
            workers.drain(worker, "other")
        assert workers.drain(owner, "other") == ["other"]
        with roled_database.connect(ROLES["worker"]) as connection:
            # as if it were long gone
            connection.execute("UPDATE workers SET last_seen_at = now() - interval '8 days' WHERE id = 'other/1'")
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="seen in the last 7 days"):
                connection.execute("DELETE FROM workers WHERE id = 'other/1'")

        assert workers.is_draining(worker, "other")
        with roled_database.connect(ROLES["worker"]) as connection:
            connection.execute(
                "INSERT INTO workers (id, hostname, pid, python_version, scikit_learn_version, gridfleet_version, "
                "started_at, last_seen_at) SELECT 'gone/1', 'host', 1, '3', '1', '1', old, old "
                "FROM (SELECT now() - interval '8 days' AS old)"
            )
        assert workers.prune(worker) == 1


@pytest.mark.parametrize(
    "change",
    [
        "evaluation_digest = x_digest",
        "keep_curves = false",
        "git_commit = 'mine'",
        "submitted_by = 'me'",
        "session = 'mine'",
        "refit_metric = 'loss'",
        "n_trials = 7",
    ],
)
def test_what_a_search_is_changes_for_nobody(roled_database: RoledDatabase, ended: int, change: str) -> None:
    with (
        roled_database.connect(ROLES["owner"]) as connection,
        pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="never changes"),
    ):
        connection.execute(f"UPDATE searches SET {change} WHERE name = 'waiting'")


def test_a_search_without_a_name_gets_one_before_it_has_trials(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner:
        named = store_search(deployed.owner, owner, "to-be-copied", [{"C": 1}])
        with owner.write() as connection:
            columns = connection.execute(select(*Search.__table__.columns).where(Search.id == named)).one()._asdict()
            for column in ("id", "name"):
                del columns[column]
            search_id, name = searches.create_search(connection, None, columns, Signer(deployed.owner.key()))
            assert name == f"search-{search_id}"


def test_who_may_not_remove_scores_opens_no_search_again(roled_database: RoledDatabase, ended: int) -> None:
    with (
        roled_database.connect(ROLES["worker"]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="to open search"),
    ):
        connection.execute("UPDATE searches SET state = 'running', finished_at = NULL WHERE name = 'ended'")


# what a reader can't lift, and what it can


def test_a_reader_s_temporary_files_are_bounded(roled_database: RoledDatabase) -> None:
    with closing(roled_database.connect(ROLES["reporter"], autocommit=True)) as connection:
        connection.execute("SET work_mem = '64kB'")
        connection.execute("SET statement_timeout = 0")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="temp_file_limit"):
            connection.execute("SELECT count(*) FROM generate_series(1, 15000000) AS g")


def test_a_reader_can_not_lift_its_bounds_for_later_sessions_either(roled_database: RoledDatabase) -> None:
    name = ROLES["reporter"]
    with closing(roled_database.connect(name, options=READ_WRITE, autocommit=True)) as connection:
        connection.execute(f"ALTER ROLE {name} RESET ALL")
        for change in ("SET temp_file_limit = -1", "RESET temp_file_limit", "CONNECTION LIMIT -1"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"ALTER ROLE {name} {change}")
    with roled_database.connect(name) as connection:
        assert connection.execute("SHOW temp_file_limit").fetchone() == ("100MB",)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)  # only a default, and its own

    roled_database.run_roles_script()

    with roled_database.connect(name) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("30s",)


def test_the_owner_ends_a_reader_s_transaction_that_is_in_its_way(roled_database: RoledDatabase) -> None:
    with (
        closing(roled_database.connect(ROLES["reporter"])) as reader,
        closing(roled_database.connect(ROLES["owner"], options="-c lock_timeout=10s", autocommit=True)) as owner,
    ):
        reader.execute("SET idle_in_transaction_session_timeout = 0")
        reader.execute("SELECT count(*) FROM workers")

        assert owner.execute("SELECT pg_terminate_backend(%s, 10000)", [reader.info.backend_pid]).fetchone() == (True,)
        owner.execute("ALTER TABLE workers ALTER COLUMN pid SET STATISTICS -1")


def test_no_role_takes_all_connections(roled_database: RoledDatabase) -> None:
    with roled_database.connect("postgres") as connection:
        limits = dict(
            connection.execute("SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname LIKE 'gridfleet%'").fetchall()
        )
        rows = "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        most = connection.execute(rows).fetchone()
    assert set(limits) == set(ROLES.values())
    assert min(limits.values()) > 0
    assert most is not None
    assert sum(limits.values()) < most[0]
    with ExitStack() as held:
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            _ = [
                held.enter_context(closing(roled_database.connect(ROLES["reporter"])))
                for _ in range(limits[ROLES["reporter"]] + 1)
            ]
        roled_database.connect(ROLES["worker"]).close()


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


def test_a_worker_role_writes_marks_and_removes_what_people_are_told(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        passes.note_pass(worker, notifies=True)
        told = store_search(deployed.owner, owner, "told", [{"C": 1}])
        record(worker, claim(worker, told, 0, WORKERS[0]), (0.5, 0.5))

        event = events.take_due(worker)
        assert event is not None
        assert (event.search_id, event.kind) == (told, "ended")
        events.note_error(worker, event, "it is down")
        events.mark_sent(worker, event)
        assert events.take_due(worker) is None
        assert events.prune(worker) == 0


def test_a_worker_role_lets_refits_go_ends_and_records_them_and_opens_none_again(deployed: DeployedFleet) -> None:
    signer = Signer(deployed.owner.key())
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        kept, lost = (stored.store_search(owner, 2, name=f"refitted {n}", signer=signer) for n in ("once", "never"))
        of_kept, of_lost = (stored.store_refit(search, signer) for search in (kept, lost))
        for search, scores in ((kept, (0.5, 0.75)), (lost, (None, None))):
            for number, score in enumerate(scores):
                claimed = claim(worker, search.id, number, WORKERS[0])
                record(worker, claimed, None if score is None else (score, score))
        assert of_lost.row().state == "cancelled"

        refit = claim(worker, of_kept.id, 0, WORKERS[0])
        held = Held(refit.trial_id, refit.token)
        assert transitions.record(worker, held, stored.model_result(of_kept))

        assert models.may_insert(worker)
        assert models.read_model(worker, Verifier(refit.model_key), of_kept.id, refit.trial_id)[1] == b"model"
        for refit_id in (of_kept.id, of_lost.id):
            with (
                pytest.raises(ProgrammingError, match="permission denied to open search"),
                worker.write() as connection,
            ):
                connection.execute(update(Search).where(Search.id == refit_id).values(state="queued", finished_at=None))
        assert searches.retry_failed(owner, lost.id) == 2
        assert of_lost.row().finished_at is None


def test_trying_failed_trials_again_is_the_submitter_s_for_it_removes_their_scores(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = store_search(deployed.owner, owner, "failing", [{"C": 1}])
        record(worker, claim(worker, search_id, 0, WORKERS[0]), None)

        with pytest.raises(ProgrammingError, match="permission denied"):
            searches.retry_failed(worker, search_id)
        assert searches.retry_failed(owner, search_id) == 1


def test_going_on_with_a_cancelled_search_is_the_submitter_s(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = store_search(deployed.owner, owner, "stopped", [{"C": 1}])
        assert searches.cancel_search(worker, search_id)

        with pytest.raises(DBAPIError, match=r"is cancelled and changes no more|permission denied"):
            searches.open_again(worker, search_id)
        searches.open_again(owner, search_id)

        record(worker, claim(worker, search_id, 0, WORKERS[0]), (0.5, 0.5))


def test_a_worker_role_takes_no_results_of_other_trials(deployed: DeployedFleet, roled_database: RoledDatabase) -> None:
    with closing(Database(deployed.owner)) as owner:
        store_search(deployed.owner, owner, "not theirs", [{"C": 1}])
    for statement in (
        "UPDATE trials SET reused_from = 1",
        f"UPDATE trials SET reuse_key = '{'a' * 64}'",
        "UPDATE searches SET no_reuse = NULL, space_digest = NULL, splitter = NULL",
    ):
        with (
            roled_database.connect(ROLES["worker"]) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"),
        ):
            connection.execute(statement)


def test_a_worker_role_can_not_migrate(deployed: DeployedFleet, roled_database: RoledDatabase) -> None:
    def pretend(revision: str) -> None:
        with roled_database.connect("postgres") as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])

    pretend("0001")
    try:
        with closing(Database(deployed.worker)) as worker, pytest.raises(SettingsError, match="must be owner"):
            migrations.upgrade(worker)
    finally:
        pretend(SCHEMA_REVISION)


def test_every_role_has_a_password_that_is_stored_as_scram(roled_database: RoledDatabase) -> None:
    with roled_database.connect("postgres") as connection:
        rows = connection.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()

    assert {name for name, _ in rows} == {"postgres", *ROLES.values()}
    assert all(password.startswith("SCRAM-SHA-256$") for _, password in rows)
