"""What has changed reaches whoever looks on, and costs one look at the tables however many they are."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime

import psutil
import pytest
from sqlalchemy import event, text, update

from gridfleet.scheduler.reports import changes
from gridfleet.storage import searches, workers
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Attempt, Search
from gridfleet.storage.settings import Settings
from gridfleet.storage.tags import change_tags
from tests.faults.support import wait_for
from tests.page.conftest import Page
from tests.stored_searches import PIMA, WORKERS, claim, record, store_pima, store_search, switch_triggers_off


class Stream:
    """A reader of events, as a browser is one."""

    def __init__(self, page: Page, **headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", page.port), timeout=60)
        sent = {"Host": "127.0.0.1", "Authorization": f"Bearer {page.token}", **headers}
        lines = ["GET /events HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in sent.items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._lines = self.socket.makefile("rb")
        self.wait_for(b": gridfleet")

    def wait_for(self, start: bytes) -> bytes:
        """Return the next line that begins so."""
        for line in self._lines:
            if line.startswith(start):
                return line
        raise AssertionError("the stream has ended")

    def changed(self) -> list[int] | None:
        """Return which searches have changed, as the next event says."""
        self.wait_for(b"event: changed")
        return json.loads(self.wait_for(b"data: ")[6:])["searches"]

    def is_at_its_end(self) -> bool:
        """Whether nothing more comes."""
        return not any(b"event" in line for line in self._lines)


@pytest.fixture(autouse=True)
def _looks_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridfleet.scheduler.page.events.LOOK_S", 0.1)


@pytest.fixture
def open_stream(page: Page) -> Iterator[object]:
    """Open streams, ``open_stream()``; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_(**headers: str) -> Stream:
            stream = Stream(page, **headers)
            stack.enter_context(stream.socket)
            return stream

        yield open_


def test_a_trial_that_is_scored_is_told_to_who_looks_on(database_settings, database, page, open_stream) -> None:
    search_id = store_search(database_settings, database, "new", [params for params, _ in PIMA])
    stream = open_stream()
    wait_for(lambda: page.app.state.changes.n_looks, "a look")

    claimed = claim(database, search_id, 0, WORKERS[0])
    assert search_id in stream.changed()
    record(database, claimed, (0.5, 0.5))
    assert search_id in stream.changed()


def test_each_change_is_seen_and_a_look_without_one_sees_none(database_settings, database) -> None:
    search_id = store_search(database_settings, database, "new", [{"C": 1}, {"C": 2}])
    before = changes.look(database)
    assert changes.look(database).changed_since(before) == set()
    claimed = []

    for what, expected in (
        (lambda: claimed.append(claim(database, search_id, 0, WORKERS[0])), {search_id}),
        (lambda: record(database, claimed[0], (0.5, 0.5)), {search_id}),
        (lambda: searches.pause_search(database, search_id), {search_id}),
        (lambda: searches.resume_search(database, search_id), {search_id}),
        (lambda: workers.register(database, WORKERS[0], hostname="host-a", pid=101), {changes.FLEET}),
        (lambda: store_search(database_settings, database, "b", [{"C": 1}]), {search_id + 1, changes.FLEET}),
        (lambda: searches.cancel_search(database, search_id), {search_id}),
        (lambda: change_tags(database, search_id, {"dataset": "pima", "kept": "1"}), {search_id}),
        (lambda: change_tags(database, search_id, {"dataset": "iris"}), {search_id}),
        (lambda: change_tags(database, search_id, {"dataset": None}), {search_id}),
    ):
        what()
        after = changes.look(database)
        assert after.changed_since(before) == expected
        before = after


def test_another_name_or_tag_of_a_search_that_ended_is_told_to_who_looks_on(
    database_settings, database, page, open_stream
) -> None:
    search_id = store_pima(database_settings, database)
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(finished_at=datetime(2026, 1, 1, tzinfo=UTC)))
        connection.execute(update(Attempt).values(ended_at=datetime(2026, 1, 1, tzinfo=UTC)))
    stream = open_stream()
    wait_for(lambda: page.app.state.changes.n_looks, "a look")

    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).values(name="diabetes"))
    assert stream.changed() == [search_id]
    change_tags(database, search_id, {"dataset": "pima"})
    assert stream.changed() == [search_id]


def test_many_readers_cost_no_more_sql_and_little_more_memory_than_one(
    database_settings: Settings, database: Database, page: Page, open_stream
) -> None:
    search_id = store_search(database_settings, database, "new", [{"C": 1}, {"C": 2}])
    on = page.app.state.changes
    statements: list[str] = []
    event.listen(page.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    process = psutil.Process(os.getpid())
    first = open_stream()
    wait_for(lambda: on.n_looks >= 2, "two looks")
    of_one = len(statements) / on.n_looks
    memory, began, seen = process.memory_info().rss, on.n_looks, len(statements)

    streams = [first, *(open_stream() for _ in range(199))]
    claim(database, search_id, 0, WORKERS[0])

    assert all(search_id in stream.changed() for stream in streams)
    wait_for(lambda: on.n_looks >= began + 3, "three more looks")
    assert on.n_readers == 200
    assert (len(statements) - seen) / (on.n_looks - began) < 2 * of_one
    assert process.memory_info().rss - memory < 150e6


def test_nobody_looks_on_so_nothing_is_asked(database: Database, page: Page, open_stream) -> None:
    on = page.app.state.changes
    assert on.n_looks == 0
    stream = open_stream()
    wait_for(lambda: on.n_looks, "a look")

    stream.socket.shutdown(socket.SHUT_RDWR)

    wait_for(lambda: on._task is None, "the end of the looks")
    assert on.n_readers == 0


def test_who_lost_the_stream_is_told_that_anything_may_have_changed(database: Database, open_stream) -> None:
    assert open_stream(Last_Event_ID="1").changed() is None


def test_a_page_that_is_stopped_ends_its_streams(database_settings, serve_page, database) -> None:
    page = serve_page(database_settings)
    stream = Stream(page)

    page.server.should_exit = True

    assert stream.is_at_its_end()


def test_a_database_that_is_away_ends_no_stream(
    database_settings, database, page, open_stream, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    search_id = store_search(database_settings, database, "new", [{"C": 1}])
    on = page.app.state.changes
    monkeypatch.setattr("gridfleet.scheduler.page.events.RETRY_S", 0.1)
    stream = open_stream()
    wait_for(lambda: on.n_looks, "a look")
    with database.write() as connection:
        connection.execute(text("ALTER TABLE leases RENAME TO leases_away"))
    wait_for(lambda: "does not answer" in caplog.text, "a look that failed")
    with database.write() as connection:
        connection.execute(text("ALTER TABLE leases_away RENAME TO leases"))

    claim(database, search_id, 0, WORKERS[0])
    assert search_id in stream.changed()
