"""``/metrics``: the fleet in Prometheus' words, read from SQL when it is asked."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
