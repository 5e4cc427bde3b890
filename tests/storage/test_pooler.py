"""PostgreSQL behind a real PgBouncer, which gives each transaction another of the server's sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from gridfleet.storage.database import silence
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import DatabaseUnreachableError, SettingsError
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from tests import pooler
from tests.conftest import PostgresqlServer
from tests.storage.conftest import result_of, store_search

pytestmark = pytest.mark.skipif(pooler.PROGRAM is None, reason=pooler.MISSING)

#: Fewer sessions of the server than connections of ours, so that these change hands.
FEW = {"default_pool_size": "3"}
#: What bounds a transaction, as the server shows it.
LIMITS = {"statement_timeout": "1min", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "1min"}
N_PROCESSES = 6
TRIALS = 60


@dataclass(frozen=True)
class Pooled:
    """A migrated database behind a pooler, and the settings that lead there."""

    settings: Settings
    direct: Settings
    log: Callable[[], str]


@pytest.fixture
def pooled(
    request: pytest.FixtureRequest, make_settings: Callable[..., Settings], postgresql_server: PostgresqlServer
) -> Iterator[Pooled]:
    """Put a PgBouncer in front of a database; its settings are the fixture's parameter."""
    direct = make_settings("postgresql")
    with pooler.pgbouncer(postgresql_server, **{"pool_mode": "transaction", **FEW, **request.param}) as started:
        settings = direct.replace(database_url=started.url(str(direct.database().database)))
        yield Pooled(settings, direct, started.log.read_text)


refusing = pytest.mark.parametrize("pooled", [{}], indirect=True, ids=["defaults"])
each_way = pytest.mark.parametrize(
    "pooled",
    [{}, {"ignore_startup_parameters": "options"}, {"pool_mode": "session", "default_pool_size": "40"}],
    indirect=True,
    ids=["transaction", "options-ignored", "session"],
)


@each_way
def test_processes_share_the_sessions_of_a_pooler_and_lose_no_trial(pooled: Pooled) -> None:
    with closing(Database(pooled.settings)) as database:
        search = store_search(database, TRIALS)

        def work(number: int) -> int:
            with closing(Database(pooled.settings)) as own:
                return sum(_evaluated(own, trial_id, number) for trial_id in search.trial_ids[number::N_PROCESSES])

        with ThreadPoolExecutor(N_PROCESSES) as threads:
            evaluated = sum(threads.map(work, range(N_PROCESSES)))

        assert evaluated == TRIALS
        assert search.row().state == "completed"
        with database.read() as connection:
            outcomes = connection.execute(text("SELECT outcome, count(*) FROM attempts GROUP BY 1")).all()
    assert outcomes == [("completed", TRIALS)]


def _evaluated(database: Database, trial_id: int, number: int) -> bool:
    claim = claims.claim(database, trial_id, f"node/{number}", lease_s=60, max_runtime_s=60)
    held = Held(trial_id, claim.token)
    for _ in range(7):  # more often than psycopg lets a statement pass unprepared
        transitions.heartbeat(database, held, lease_s=60)
    return transitions.record(database, held, result_of(0.5))


@each_way
def test_time_limits_hold_in_each_transaction_behind_a_pooler(pooled: Pooled) -> None:
    with closing(Database(pooled.settings)) as database:
        for open_transaction in (database.read, database.write):
            with open_transaction() as connection:
                assert connection.connection.driver_connection.is_pooled
                shown = [connection.execute(text(f"SHOW {name}")).scalar() for name in LIMITS]
            assert shown == list(LIMITS.values())


@refusing
def test_without_a_pooler_nothing_is_asked_in_each_transaction(pooled: Pooled) -> None:
    with closing(Database(pooled.direct)) as database, database.read() as connection:
        assert not connection.connection.driver_connection.is_pooled
        assert connection.connection.driver_connection.prepare_threshold == 5


@refusing
def test_a_statement_that_takes_long_behind_a_pooler_is_not_taken_for_a_silent_server(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "SILENCE_S", 0.2)
    with closing(Database(pooled.settings)) as database, database.read() as connection:
        assert connection.execute(text("SELECT 7 FROM pg_sleep(1)")).scalar() == 7


@pytest.mark.parametrize("pooled", [{"max_client_conn": "1"}], indirect=True, ids=["full"])
def test_nor_behind_a_pooler_that_takes_no_more_connections(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_S", 0.2)
    with closing(Database(pooled.settings)) as database, database.read() as connection:
        assert connection.execute(text("SELECT 7 FROM pg_sleep(1)")).scalar() == 7


@refusing
def test_a_pooler_behind_which_nothing_is_heard_is_given_up_at_last(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Database(pooled.settings)) as database:
        database.check()
        monkeypatch.setattr(silence, "SILENCE_S", 0.1)
        monkeypatch.setattr(silence, "POOLED_S", 0.5)
        with pytest.raises(OperationalError, match="the server has been silent for 1 s") as given_up:
            _sleep(database)
    assert given_up.value.connection_invalidated


def _sleep(database: Database) -> None:
    with database.read() as connection:
        connection.execute(text("SELECT 7 FROM pg_sleep(30)"))


@refusing
def test_what_a_url_asks_of_a_pooler_that_refuses_it_is_named(pooled: Pooled) -> None:
    url = pooled.settings.database().update_query_dict({"options": "-csearch_path=ml"})
    settings = pooled.settings.replace(database_url=url.render_as_string(hide_password=False))

    with (
        closing(Database(settings)) as database,
        pytest.raises(SettingsError, match=r"'options', which the pooler there refuses; .*ALTER ROLE … SET"),
    ):
        database.check()


@refusing
def test_what_a_pooler_refuses_otherwise_is_said(pooled: Pooled) -> None:
    url = pooled.settings.database().set(username="somebody")
    settings = pooled.settings.replace(database_url=url.render_as_string(hide_password=False))

    with closing(Database(settings)) as database, pytest.raises(DatabaseUnreachableError, match="somebody"):
        database.check()
