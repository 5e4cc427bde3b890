"""What anybody stored, or gave, is text on a terminal and no command to it; of an address, no secret is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from gridfleet import open_search
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports.watch import Watcher
from gridfleet.storage import workers
from gridfleet.storage.errors import SearchNotFoundError, SettingsError
from gridfleet.storage.schema import Search, SearchState, Trial, Worker
from gridfleet.storage.settings import Settings, load_settings
from tests.stored_searches import store_pima, switch_triggers_off

#: A title, a cleared screen, and a line that looks like the command's own.
EVIL = "x\x1b]0;owned\x07\x1b[2J\x9b1A\r\nok    secret    all is well\u202e"
PLANTED = "pl4nted"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tampered(fleet: Fleet, configured: Settings) -> int:
    """Store a search, then write into the database as somebody with a worker's rights may."""
    search_id = store_pima(configured, fleet.database)
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(name=EVIL, submitted_by=EVIL))
        connection.execute(update(Worker).values(keras_version=EVIL[:32], python_version=EVIL[:32]))
        connection.execute(update(Trial).values(error=EVIL, fit_fallback_reason=EVIL))
    return search_id


def _assert_only_text(output: str) -> None:
    assert output
    assert all(char.isprintable() or char == "\n" for char in output)
    assert not [line for line in output.splitlines() if line.startswith("ok    secret    all")]


def test_doctor_shows_workers_versions_as_text(gridfleet: Run, tampered: int) -> None:
    _, shown, said = gridfleet("doctor")

    _assert_only_text(shown + said)
    assert "workers have keras x\\x1b]0;owned" in shown


def test_workers_show_names_hosts_and_versions_as_text(gridfleet: Run, tampered: int, fleet: Fleet) -> None:
    workers.register(fleet.database, f"{EVIL}/1", hostname=EVIL, pid=1)

    for options in ([], ["--json"]):
        status, shown, said = gridfleet("workers", *options)

        assert status == 0
        _assert_only_text(shown + said)
        assert shown.count("owned") >= 3


@pytest.mark.parametrize("command", ["cancel", "pause", "resume", "retry-failed", "report", "best", "watch"])
def test_a_name_that_no_search_can_have_is_said_as_text(gridfleet: Run, tampered: int, command: str) -> None:
    status, shown, said = gridfleet(command, EVIL)

    assert (status, shown) == (1, "")
    _assert_only_text(said)
    assert said.startswith("gridfleet: no search has the name 'x\\x1b]0;owned")


def test_a_name_that_was_written_into_the_database_is_shown_as_text(
    gridfleet: Run, tampered: int, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(finished_at=None, state=SearchState.RUNNING))

    _assert_only_text(gridfleet("list")[1])
    for line in Watcher(fleet.database).look():
        assert line.isprintable()
    handle = open_search(tampered)
    with pytest.raises(TimeoutError):
        handle.wait(0.01, verbose=1)
    _assert_only_text(capsys.readouterr().err)


@pytest.mark.parametrize(
    "name",
    ["a\x00b", "a\udcffb", "", 2**63, -(2**64), 10**5000],
    ids=["NUL", "half", "empty", "65 bits", "less", "5,001"],
)
def test_a_name_or_id_that_a_database_would_refuse_is_not_found(fleet: Fleet, name: str | int) -> None:
    with pytest.raises(SearchNotFoundError, match="no search has the") as missing:
        open_search(name)

    assert str(missing.value).isprintable()


def test_more_searches_than_a_database_can_count_are_no_traceback(gridfleet: Run, fleet: Fleet) -> None:
    status, _, said = gridfleet("list", "--limit", "9" * 20)

    assert (status, "--limit" in said) == (2, True)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://reader@127.0.0.1:1/fleet?sslpassword={PLANTED}",
        f"postgresql://reader@127.0.0.1:1/fleet?Password={PLANTED}",
        f"postgresql://reader@127.0.0.1:1/fleet?options=-c%20a.key%3D{PLANTED}",
        f"postgresql://reader:{PLANTED}@127.0.0.1:1/fleet?password={PLANTED}&application_name={PLANTED}",
    ],
)
def test_of_a_databases_url_only_user_host_port_and_name_are_shown(
    gridfleet: Run, no_variables: None, monkeypatch: pytest.MonkeyPatch, broker_url: str, url: str
) -> None:
    for name, value in {"DATABASE_URL": url, "BROKER_URL": broker_url, "SECRET_KEY": "0123456789abcdef"}.items():
        monkeypatch.setenv(f"GRIDFLEET_{name}", value)

    for command in (["doctor"], ["list"]):
        _, shown, said = gridfleet(*command)

        assert PLANTED not in shown + said
        assert "postgresql+psycopg://reader@127.0.0.1:1/fleet does not answer" in shown + said
    assert PLANTED not in repr(load_settings())
    assert "reader@127.0.0.1:1/fleet" in repr(load_settings())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"redis://h/0?Password={PLANTED}", "has the option 'Password', which has no meaning there"),
        (f"redis://h/0?socket_timeout={PLANTED}", "has the option 'socket_timeout'"),
        (f"redis://h/0?ssl_cert_reqs={PLANTED}", "has the option 'ssl_cert_reqs'"),
        (f"rediss://h/0?ssl_cert_reqs={PLANTED}", "ssl_cert_reqs is none of required, optional, none"),
        ("redis://h/one", "names the database 'one'; it has a number"),
        ("redis://h:99999/0", "is not a URL"),
    ],
)
def test_a_brokers_url_that_would_end_a_process_later_is_refused(url: str, sentence: str) -> None:
    settings = Settings(broker_url=url)

    with pytest.raises(SettingsError, match=sentence) as refused:
        settings.broker()

    assert PLANTED not in str(refused.value) + repr(settings)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///a.db?check=1", "has the option 'check'"),
        ("sqlite+aiosqlite:///a.db", "begins with 'sqlite\\+aiosqlite'"),
        ("postgresql+psycopg2://h/a", "begins with 'postgresql\\+psycopg2'"),
        ("postgresql://h:0/a", "is not a URL"),
    ],
)
def test_a_databases_url_that_would_end_a_process_later_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings(database_url=url).database()
