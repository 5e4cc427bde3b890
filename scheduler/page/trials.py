"""One trial: what it was, how it went, and how to build its estimator again."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
