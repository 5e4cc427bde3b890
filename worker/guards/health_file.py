"""A file that a living service touches, for the container engine to look at."""

from __future__ import annotations

import threading
from pathlib import Path

#: Seconds between touches of the health file.
HEALTH_S = 10


def touch_for_ever(path: Path) -> None:
    """Keep a health file young from a thread of this process."""
    stopped = threading.Event()

    def touch() -> None:
        while True:
            path.touch()
            stopped.wait(HEALTH_S)

    threading.Thread(target=touch, name="health", daemon=True).start()
