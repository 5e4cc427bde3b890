"""Processes of tests, forked of one that has imported what they need: a fresh interpreter takes two seconds to."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

#: What racing and storing processes import; none of it starts a thread that a fork would miss.
IMPORTED = (
    "gridfleet.scheduler.submission.joblib_backend",
    "gridfleet.storage.migrations",
    "tests.faults.database_faults",
    "tests.faults.support",
    "tests.storage.conftest",
)


def forked() -> ForkServerContext:
    """Return the context in which such processes are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context
