"""A real scheduler of a test: started, waited for, stopped and killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridfleet.storage.settings import Settings
from tests.running_worker import READY_S
from tests.warm_scripts import COMMAND, WarmScript, warm_scripts


@contextmanager
def scheduler_of(settings: Settings, folder: Path) -> Iterator[WarmScript]:
    """Run ``gridfleet scheduler`` for a fleet; the folder is for its health file."""
    health = folder / "scheduler.health"
    health.unlink(missing_ok=True)
    variables = settings.replace(health_file=health).as_variables()
    process = warm_scripts().start(COMMAND, "scheduler", env={**os.environ, **variables})
    try:
        until = time.monotonic() + READY_S
        while not health.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
