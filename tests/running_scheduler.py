"""A real scheduler of a test: started, waited for, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridfleet.storage.settings import Settings
from tests.running_worker import READY_S


@contextmanager
def scheduler_of(settings: Settings, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``gridfleet scheduler`` for a fleet; the folder is for its health file."""
    health = folder / "scheduler.health"
    health.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "gridfleet", "scheduler"],
        env={**os.environ, **settings.replace(health_file=health).as_variables()},
    )
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
