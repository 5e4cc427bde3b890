"""What has changed, sent to whoever has a page open: one look a second at the tables, however many listen."""

from __future__ import annotations

from starlette.routing import BaseRoute

from gridfleet.storage.database.connection import Database


class Changes:
    """Looks at the tables while somebody listens."""

    def __init__(self, database: Database) -> None:
        self._database = database


ROUTES: list[BaseRoute] = []
