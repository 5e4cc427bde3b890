"""Processes that a supervisor starts and that do not outlive it."""

from __future__ import annotations

import os
from typing import Any

from gridfleet.worker.guards.parent_death import die_with_parent


def dies_with_us(signal_number: int) -> dict[str, Any]:
    """Options for Popen: the child gets a signal when this process dies, and no Ctrl-C of the terminal."""
    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(parent, signal_number)

    # the supervisor has a single thread, so preexec_fn is safe
    return {"preexec_fn": prepare, "start_new_session": True}
