"""What has changed, sent to whoever has a page open: one look a second at the tables, however many look on."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator

from sqlalchemy.exc import SQLAlchemyError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from gridfleet.scheduler.reports import changes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, first_line

logger = logging.getLogger(__name__)

#: Seconds between looks, and while the database does not answer.
LOOK_S, RETRY_S = 1.0, 5.0
#: Readers at once; each has a connection of its browser, and none of the database.
MAX_READERS = 500
#: Seconds between signs of life, without which proxies end a connection, and that a reader may take for one.
PING_S, SEND_S = 15, 30
#: Seconds for which a browser waits that lost the stream.
RETRY_MS = 3_000


class Reader:
    """One who looks on: what has changed since the last event that it got, however slowly it reads."""

    def __init__(self, changed: set[int]) -> None:
        self._changed: set[int] | None = changed
        self._something = asyncio.Event()
        self._is_closed = False
        if changed:
            self._something.set()

    def note(self, changed: set[int] | None) -> None:
        """Note that searches have changed; None: it is not known which."""
        self._changed = None if changed is None or self._changed is None else self._changed | changed
        self._something.set()

    def close(self) -> None:
        """End the stream."""
        self._is_closed = True
        self._something.set()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield an event whenever something has changed."""
        yield ServerSentEvent(comment="gridfleet", retry=RETRY_MS)
        while True:
            await self._something.wait()
            self._something.clear()
            if self._is_closed:
                return
            changed, self._changed = self._changed, set()
            shown = None if changed is None else sorted(changed - {changes.FLEET})
            # the id is sent back by a browser that lost the stream, and so may have lost events
            yield ServerSentEvent(event="changed", data=json.dumps({"searches": shown}), id="1")


class Changes:
    """Looks at the tables while somebody looks on, and tells all of them what has changed.

    Parameters
    ----------
    database : Database
        The fleet's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readers: set[Reader] = set()
        self._task: asyncio.Task[None] | None = None
        self._recent: list[tuple[float, set[int]]] = []
        #: How often the tables were looked at.
        self.n_looks = 0

    @property
    def n_readers(self) -> int:
        """How many look on."""
        return len(self._readers)

    async def read(self, *, has_lost_some: bool) -> AsyncIterator[ServerSentEvent]:
        """Yield events until the reader goes."""
        reader = Reader(set().union(*(changed for _, changed in self._recent)))
        if has_lost_some:
            reader.note(None)
        self._readers.add(reader)
        if self._task is None:
            self._task = asyncio.create_task(self._look_while_there_are_readers())
        try:
            async for event in reader.events():
                yield event
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End all streams."""
        for reader in self._readers:
            reader.close()

    async def _look_while_there_are_readers(self) -> None:
        before: changes.Look | None = None
        try:
            while self._readers:
                try:
                    found = await run_in_threadpool(changes.look, self._database)
                except (SQLAlchemyError, GridfleetError) as error:
                    logger.warning("the database does not answer (%s); trying again", first_line(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                self.n_looks += 1
                if changed := found.changed_since(before):
                    self._tell(changed)
                before = found
                await asyncio.sleep(LOOK_S)
        finally:
            self._task = None
            self._recent.clear()

    def _tell(self, changed: set[int]) -> None:
        now = time.monotonic()
        # whoever comes next has a page that may have been made just before
        self._recent = [(at, ids) for at, ids in self._recent if now - at < changes.RECENT_S] + [(now, changed)]
        for reader in self._readers:
            reader.note(changed)


async def _events(request: Request) -> Response:
    on: Changes = request.app.state.changes
    if on.n_readers >= MAX_READERS:
        return PlainTextResponse("too many look on\n", 503, {"Retry-After": "60"})
    lost = "last-event-id" in request.headers
    return EventSourceResponse(on.read(has_lost_some=lost), ping=PING_S, send_timeout=SEND_S)


ROUTES: list[BaseRoute] = [Route("/events", _events)]
