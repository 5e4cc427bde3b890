"""``/sql``: the documented queries and a box for one's own, as ``gridfleet sql``."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
