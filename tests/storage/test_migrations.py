"""Migrations: from nothing to this release's tables, by many processes at once, never backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from gridfleet.storage import migrations, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SchemaVersionError, SettingsError
from gridfleet.storage.migrations import learning_curves
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.payloads.store import KEY_CHECK
from gridfleet.storage.schema import SCHEMA_REVISION, VIEWS, Attempt, Base, Lease, Payload, PayloadChunk, Trial
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held, expired, held_by
from tests.conftest import PostgresqlServer
from tests.storage.conftest import DIGEST, StoredSearch, race, result_of, store_search
from tests.stored_searches import switch_triggers_off

#: SQLite shows no expressions of indexes, and SQLAlchemy and Alembic say so.
ignores_index_of_expressions = pytest.mark.filterwarnings(
    "ignore:Skipped unsupported reflection", "ignore:autogenerate skipping metadata-specified expression"
)


@pytest.fixture
def empty_settings(backend: str, make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(backend, migrated=False)


@pytest.fixture
def empty(empty_settings: Settings) -> Iterator[Database]:
    """A database without tables."""
    with closing(Database(empty_settings)) as database:
        yield database


def names(database: Database) -> tuple[set[str], set[str]]:
    with database.read() as connection:
        inspector = inspect(connection)
        return set(inspector.get_table_names()), set(inspector.get_view_names())


def set_revision(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_an_empty_database_is_brought_up_to_date(empty: Database) -> None:
    assert migrations.current_revision(empty) is None

    assert migrations.upgrade(empty) is True

    assert names(empty) == ({*Base.metadata.tables, "alembic_version"}, set(VIEWS))
    assert migrations.current_revision(empty) == SCHEMA_REVISION
    migrations.require_current(empty)


def test_a_second_upgrade_does_nothing(database: Database) -> None:
    search = store_search(database, 2)

    assert migrations.upgrade(database) is False
    assert search.trial(1).state == "queued"


def _upgrade(database: Database, _: None) -> bool:
    return migrations.upgrade(database)


def test_processes_that_upgrade_at_once_do_not_collide(empty: Database, empty_settings: Settings) -> None:
    done = race(empty_settings, _upgrade, [None] * 5)

    assert True in done
    assert names(empty) == ({*Base.metadata.tables, "alembic_version"}, set(VIEWS))
    store_search(empty, 1)


@ignores_index_of_expressions
def test_the_migrations_make_the_tables_of_the_schema(database: Database) -> None:
    with database.read() as connection:
        # SQLite has no identity columns to compare
        options = {"compare_type": True, "compare_server_default": database.dialect == "postgresql"}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_make_the_constraints_of_the_schema(database: Database) -> None:
    """Alembic's comparison does not look at CHECK constraints."""
    with database.read() as connection:
        inspector = inspect(connection)
        for table in Base.metadata.tables.values():
            expected = {constraint.name for constraint in table.constraints if constraint.name.startswith("ck_")}
            assert {check["name"] for check in inspector.get_check_constraints(table.name)} == expected, table.name
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == table.primary_key.columns.keys()


def test_the_schema_s_revision_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))

    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION


def test_a_role_that_may_make_no_tables_is_told_the_remedy(
    make_settings: Callable[..., Settings], postgresql_server: PostgresqlServer
) -> None:
    settings = make_settings("postgresql", migrated=False)
    with postgresql_server._connected() as connection:
        connection.execute("DROP ROLE IF EXISTS without_rights")
        connection.execute("CREATE ROLE without_rights LOGIN")
    url = settings.database().set(username="without_rights").render_as_string(hide_password=False)
    try:
        with (
            closing(Database(settings.replace(database_url=url))) as database,
            pytest.raises(SettingsError, match=r'permission denied.*GRANT USAGE, CREATE ON SCHEMA public TO "without_'),
        ):
            migrations.upgrade(database)
    finally:
        with postgresql_server._connected() as connection:
            connection.execute("DROP ROLE without_rights")


def test_a_newer_schema_is_refused_and_left_alone(database: Database) -> None:
    set_revision(database, "9999")

    for refuse in (migrations.upgrade, migrations.require_current):
        with pytest.raises(SchemaVersionError, match=f"schema is 9999, which is newer .*{SCHEMA_REVISION}.; install"):
            refuse(database)
    assert migrations.current_revision(database) == "9999"


def test_an_older_schema_is_refused_where_nothing_may_be_changed(database: Database) -> None:
    set_revision(database, "0001")

    with pytest.raises(SchemaVersionError, match=r"schema is 0001, this release .*run `gridfleet db upgrade`"):
        migrations.require_current(database)


def test_an_empty_schema_is_refused_where_nothing_may_be_changed(empty: Database) -> None:
    with pytest.raises(SchemaVersionError, match=r"schema is empty.*gridfleet db upgrade"):
        migrations.require_current(empty)

    assert names(empty) == (set(), set())


# 0004: the outcomes of attempts


def upgrade_to(database: Database, revision: str) -> None:
    """Bring an empty database to the tables of an earlier release."""
    config = migrations._config()
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


#: Those that releases before the check of 0004 wrote.
OLD_OUTCOMES = [outcome for outcome in Outcome if outcome != Outcome.HANDED_BACK]


@pytest.fixture
def of_0003(empty: Database) -> Database:
    """A database of the release before: an attempt of each outcome, one that runs, and somebody's view of them."""
    upgrade_to(empty, "0003")
    search = store_search(empty, len(OLD_OUTCOMES) + 1)
    with empty.write() as connection:
        for number, outcome in enumerate([*OLD_OUTCOMES, None]):
            connection.execute(
                insert(Attempt).values(
                    trial_id=search.trial_ids[number],
                    attempt=1,
                    token=f"{number:032}",
                    worker_id="node/1",
                    started_at=datetime(2026, 1, 1, 12, tzinfo=UTC),
                    ended_at=outcome and datetime(2026, 1, 1, 13, 0, number, tzinfo=UTC),
                    outcome=outcome and str(outcome),
                    error=outcome and f"it ended as {outcome}",
                )
            )
        connection.execute(text("CREATE VIEW my_attempts AS SELECT trial_id, outcome FROM attempts"))
    return empty


def attempts(database: Database) -> list[tuple[object, ...]]:
    columns = "trial_id, attempt, token, worker_id, started_at, ended_at, outcome, error"
    return query(database, f"SELECT {columns} FROM attempts ORDER BY trial_id")


@ignores_index_of_expressions
def test_attempts_of_before_survive_the_check_of_their_outcomes(of_0003: Database) -> None:
    before = attempts(of_0003)

    assert migrations.upgrade(of_0003) is True

    assert migrations.current_revision(of_0003) == SCHEMA_REVISION
    assert attempts(of_0003) == before
    assert len(before) == len(OLD_OUTCOMES) + 1
    assert sorted(query(of_0003, "SELECT outcome FROM my_attempts WHERE outcome IS NOT NULL")) == sorted(
        (str(outcome),) for outcome in OLD_OUTCOMES
    )
    assert names(of_0003)[1] == {*VIEWS, "my_attempts"}
    with of_0003.read() as connection:  # the table that was made anew is the one that the migrations before made
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_an_outcome_that_nobody_knows_is_refused_after_it(of_0003: Database) -> None:
    migrations.upgrade(of_0003)

    with pytest.raises(IntegrityError, match="known_outcome"), of_0003.write() as connection:
        connection.execute(text("UPDATE attempts SET outcome = 'lost', ended_at = started_at WHERE ended_at IS NULL"))


def test_an_attempt_that_runs_during_the_upgrade_ends_after_it(empty: Database) -> None:
    upgrade_to(empty, "0003")
    held = Held(store_search(empty, 1).trial_ids[0], "0" * 32)
    with empty.write() as connection:
        facts = {"token": held.token, "worker_id": "node/1"}
        connection.execute(update(Trial).values(state="running", attempt=1, **facts))
        connection.execute(insert(Attempt).values(trial_id=held.trial_id, attempt=1, **facts))

    migrations.upgrade(empty)

    assert transitions.record(empty, held, result_of(0.5))
    assert query(empty, "SELECT outcome FROM attempts") == [("completed",)]


def test_trials_that_run_during_the_upgrade_keep_their_leases_and_end_after_it(empty: Database) -> None:
    upgrade_to(empty, "0014")
    ids = store_search(empty, 3).trial_ids
    ends, tokens = [datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)], ["a" * 32, "b" * 32]
    with empty.write() as connection:
        for trial_id, ends_at, token in zip(ids, ends, tokens, strict=False):
            facts = {"token": token, "worker_id": "node/1"}
            running = {"state": "running", "attempt": 1, "lease_expires_at": ends_at, "deadline_at": ends[1], **facts}
            connection.execute(
                update(Trial).where(Trial.id == trial_id).values(peak_memory_mb=700, started_at=ends[0], **running)
            )
            connection.execute(insert(Attempt).values(trial_id=trial_id, attempt=1, **facts))

    migrations.upgrade(empty)

    with empty.read() as connection:
        leases = connection.execute(select(*Lease.__table__.columns).order_by(Lease.trial_id)).all()
        of_search = connection.execute(select(Trial.search_id).limit(1)).scalar_one()
    assert leases == [
        (one, token, "node/1", at, 700, of_search) for one, token, at in zip(ids, tokens, ends, strict=False)
    ]
    assert query(empty, "SELECT count(*) FROM trials WHERE lease_expires_at IS NOT NULL") == [(0,)]
    first, second = held_by(empty, "node")
    assert expired(empty) == [first]
    assert transitions.reap(
        empty, first, outcome=Outcome.LEASE_EXPIRED, error="lost", max_failures=3, expired_only=True
    )
    assert transitions.record(empty, second, result_of(0.5))
    assert query(empty, "SELECT state, peak_memory_mb FROM trials ORDER BY id") == [
        ("queued", 700),
        ("completed", None),
        ("queued", None),
    ]
    assert query(empty, "SELECT count(*) FROM leases") == [(0,)]


def test_processes_that_upgrade_stored_attempts_at_once_do_not_collide(
    of_0003: Database, empty_settings: Settings
) -> None:
    before = attempts(of_0003)

    done = race(empty_settings, _upgrade, [None] * 4)

    assert True in done
    assert attempts(of_0003) == before


# 0005: digests that are no paths


@ignores_index_of_expressions
def test_payloads_and_what_refers_to_them_survive_the_check_of_their_digests(empty: Database) -> None:
    upgrade_to(empty, "0004")
    store_search(empty, 2)
    with empty.write() as connection:
        connection.execute(insert(PayloadChunk).values(digest=DIGEST, position=0, content=b"a part"))
        connection.execute(text("CREATE VIEW my_payloads AS SELECT digest, size FROM payloads"))
    before = query(empty, "SELECT * FROM payloads")

    assert migrations.upgrade(empty) is True

    assert query(empty, "SELECT * FROM payloads") == before
    assert query(empty, "SELECT digest FROM my_payloads JOIN payload_chunks USING (digest)") == [(DIGEST,)]
    with empty.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with pytest.raises(IntegrityError), empty.write() as connection:  # what refers to them still does
        connection.execute(text("DELETE FROM payloads"))


@pytest.mark.parametrize(
    "digest",
    ["/etc/passwd", "../" * 21 + "x", DIGEST[1:], DIGEST.replace("0", "A"), DIGEST[1:] + "g", DIGEST[1:] + "\n", ""],
)
def test_a_digest_that_is_none_is_refused(database: Database, digest: str) -> None:
    with pytest.raises(IntegrityError, match="ck_payloads_digest"), database.write() as connection:
        connection.execute(insert(Payload).values(digest=digest, kind="X", size=0, signature="x"))


def test_the_migration_has_the_check_of_the_schema() -> None:
    script = ScriptDirectory.from_config(migrations._config()).get_revision("0005")

    (check,) = (each for each in Payload.__table__.constraints if isinstance(each, CheckConstraint))
    assert str(check.sqltext) == script.module.DIGEST


def test_the_migration_knows_the_outcomes_of_the_schema(database: Database) -> None:
    """A member that is added later needs a migration of its own."""
    script = ScriptDirectory.from_config(migrations._config()).get_revision("0011")

    assert set(re.findall(r"'(\w+)'", script.module.OUTCOMES)) == set(Outcome)


# 0007: signatures that workers can't make


@ignores_index_of_expressions
def test_searches_and_payloads_survive_longer_signatures_and_the_key_of_before_is_forgotten(empty: Database) -> None:
    upgrade_to(empty, "0006")
    store_search(empty, 2, name="kept")
    with empty.write() as connection:
        connection.execute(insert(Payload).values(digest=KEY_CHECK, kind="key", size=0, signature="a" * 64))
        connection.execute(update(Payload).values(signature="a" * 64))
        connection.execute(text("CREATE VIEW my_searches AS SELECT name, n_trials FROM searches"))
    before = query(empty, "SELECT * FROM searches"), query(empty, "SELECT * FROM payloads WHERE kind <> 'key'")
    n_columns = len(before[0][0])

    assert migrations.upgrade(empty) is True

    kept = [row[:n_columns] for row in query(empty, "SELECT * FROM searches")]  # later ones add columns
    assert (kept, query(empty, "SELECT * FROM payloads")) == before
    assert query(empty, "SELECT name, total FROM search_progress JOIN my_searches ON name = search") == [("kept", 2)]
    assert store_search(empty, 1, signer=Signer(b"the key of a fleet")).row().signature is not None
    with empty.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        indexes = {index["name"] for index in inspect(connection).get_indexes("searches")}
    assert indexes >= {"ix_searches_paused", "ix_searches_unfinished"}
    for table in ("payloads", "searches"):
        with pytest.raises(IntegrityError), empty.write() as connection:  # what refers to them still does
            connection.execute(text(f"DELETE FROM {table}"))
    with pytest.raises(IntegrityError):  # names are unique without regard to case
        store_search(empty, 1, name="KEPT")


# 0016: learning curves as arrays

#: Epochs and values of the curves of one trial: any digits, what was not finite, and one with a gap.
POINTS = {
    (0, "loss"): [(0, 0.1 + 0.2), (1, 2 / 3), (2, None), (3, 1e-300), (4, 1.7976931348623157e308)],
    (0, "accuracy"): [(0, 1.0), (1, 0.0)],
    (1, "loss"): [(1, 0.5), (4, 0.25)],
}


@pytest.fixture
def of_0014(empty: Database) -> Database:
    """A database of the release before: trials in several states with a row for each point of a curve."""
    upgrade_to(empty, "0014")
    search = store_search(empty, 5)
    points = [
        {"trial_id": trial_id, "split": split, "epoch": epoch, "metric": metric, "value": value}
        for trial_id in search.trial_ids[:4]
        for (split, metric), of_curve in POINTS.items()
        for epoch, value in of_curve
    ]
    with empty.write() as connection:
        switch_triggers_off(connection)
        for trial_id, state in zip(search.trial_ids, ("completed", "completed", "failed", "completed"), strict=False):
            ended = update(Trial).where(Trial.id == trial_id).values(state=state, finished_at=datetime.now(UTC))
            connection.execute(ended)
        connection.execute(
            text("INSERT INTO epochs VALUES (:trial_id, :split, :epoch, :metric, :value)"),
            points,
        )
    return empty


EPOCHS = "SELECT trial_id, split, epoch, metric, value FROM epochs ORDER BY trial_id, split, metric, epoch"


def without_gaps(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return what is shown of rows of before: where there was none between others, one without a value."""
    filled = {key: value for *key, value in rows for key in [tuple(key)]}
    for trial_id in {key[0] for key in filled}:
        filled |= {(trial_id, 1, epoch, "loss"): None for epoch in (0, 2, 3)}
    return sorted(((*key, value) for key, value in filled.items()), key=lambda row: (row[0], row[1], row[3], row[2]))


@ignores_index_of_expressions
def test_learning_curves_of_before_show_the_same_rows(of_0014: Database) -> None:
    before = query(of_0014, EPOCHS)

    migrations.upgrade(of_0014)

    assert query(of_0014, EPOCHS) == without_gaps(before)
    assert len(query(of_0014, "SELECT metric FROM curves")) == 4 * len(POINTS)
    with of_0014.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_conversion_of_learning_curves_that_is_interrupted_goes_on_where_it_ended(
    of_0014: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = query(of_0014, EPOCHS)
    for name, value in {"FIRST_BATCH": 1, "LARGEST_BATCH": 1, "SAY_S": -1}.items():
        monkeypatch.setattr(learning_curves, name, value)
    said: list[str] = []

    def interrupt(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrations.upgrade(of_0014, say=interrupt)
    assert migrations.current_revision(of_0014) == "0014"
    assert query(of_0014, EPOCHS) == before
    migrations.upgrade(of_0014, say=said.append)

    completed = [
        trial_id for (trial_id,) in query(of_0014, "SELECT id FROM trials WHERE state = 'completed' ORDER BY 1")
    ]
    assert said == [
        f"learning curves become arrays: those of {trial_id:,} of {completed[0] + 4:,} trials" for trial_id in completed
    ]
    assert query(of_0014, EPOCHS) == without_gaps(before)


def test_somebody_s_view_of_the_epochs_is_named_before_anything_is_converted(of_0014: Database) -> None:
    with of_0014.write() as connection:
        connection.execute(text("CREATE VIEW my_losses AS SELECT value FROM epochs WHERE metric = 'loss'"))
    if of_0014.dialect == "postgresql":
        with pytest.raises(SchemaVersionError, match=r"the table epochs becomes a view .* my_losses shows it; drop"):
            migrations.upgrade(of_0014)
        assert migrations.current_revision(of_0014) == "0014"
        assert "curves" not in names(of_0014)[0]
        return
    before = sorted(map(str, query(of_0014, "SELECT value FROM my_losses WHERE value IS NOT NULL")))

    migrations.upgrade(of_0014)

    assert sorted(map(str, query(of_0014, "SELECT value FROM my_losses WHERE value IS NOT NULL"))) == before


@pytest.mark.parametrize("table", ["curves", "leases"])
def test_the_view_of_a_search_that_is_called_as_a_new_table_gets_another_name(empty: Database, table: str) -> None:
    upgrade_to(empty, "0014")
    search = store_search(empty, 2, name=table)
    with empty.write() as connection:
        create_search_view(connection, search.id, table, {"units": "bigint"})

    migrations.upgrade(empty)

    assert query(empty, f'SELECT number, units FROM "search-{search.id}" ORDER BY number') == [(0, 0), (1, 1)]
    assert query(empty, f"SELECT * FROM {table}") == []


def test_a_migration_that_fails_leaves_nothing(empty: Database) -> None:
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE workers (id INTEGER)"))

    with pytest.raises(Exception, match="workers"):
        migrations.upgrade(empty)

    assert names(empty) == ({"workers"}, set())


# the views


@pytest.fixture
def two_searches(database: Database) -> StoredSearch:
    """A search with all kinds of trials, and one that waits."""
    search = store_search(database, 5, name="pima")
    for number, score in enumerate((0.7, 0.9, 0.9)):
        transitions.record(database, search.held(number), result_of(score))
    transitions.record(database, search.held(3), result_of(0.1, error="it raised"))
    store_search(database, 2, name="waiting")
    workers.register(database, "node/1", hostname="node", pid=1)
    return search


def query(database: Database, statement: str) -> list[tuple[object, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_empty_database_is_empty(view: str, database: Database) -> None:
    assert query(database, f"SELECT * FROM {view}") == []


def test_the_leaderboard_ranks_as_scikit_learn_does(database: Database, two_searches: StoredSearch) -> None:
    rows = query(
        database,
        "SELECT search, rank_test_score, number, mean_test_score FROM leaderboard ORDER BY rank_test_score, number",
    )

    assert rows == [("pima", 1, 1, 0.9), ("pima", 1, 2, 0.9), ("pima", 3, 0, 0.7), ("pima", 4, 3, 0.1)]


@pytest.mark.parametrize("backend", ["postgresql"])
def test_the_leaderboard_of_one_search_does_not_rank_the_trials_of_others(
    database: Database, two_searches: StoredSearch
) -> None:
    plan = "\n".join(str(row[0]) for row in query(database, "EXPLAIN SELECT * FROM leaderboard WHERE search = 'pima'"))

    assert "WindowAgg" in plan
    assert "Filter: (leaderboard.search" not in plan  # which would be behind the ranks of all


def test_the_best_trial_of_equals_is_the_first(database: Database, two_searches: StoredSearch) -> None:
    rows = query(database, "SELECT search, state, metric, best_score, number FROM best_trials ORDER BY search_id")

    assert rows == [("pima", "running", "score", 0.9, 1), ("waiting", "queued", "score", None, None)]


def test_the_progress_counts_trials_by_state(database: Database, two_searches: StoredSearch) -> None:
    rows = query(
        database,
        "SELECT search, total, done, queued, running, completed, failed, cancelled, "
        "seconds_running >= 0, seconds_left >= 0 FROM search_progress ORDER BY search_id",
    )

    assert rows == [("pima", 5, 4, 1, 0, 3, 1, 0, True, True), ("waiting", 2, 0, 2, 0, 0, 0, 0, None, None)]
