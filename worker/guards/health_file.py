"""A file that a living service touches, for the container engine to look at."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds between touches of the health file.
HEALTH_S = 10


def touch_for_ever(path: Path | None) -> None:
    """Keep a health file young from a thread of this process; None: there is none."""
    if path is None:
        return
    stopped = threading.Event()

    def touch_again() -> None:
        while True:
            _touch_or_say_why_not(path)
            stopped.wait(HEALTH_S)

    threading.Thread(target=touch_again, name="health", daemon=True).start()


def _touch_or_say_why_not(path: Path) -> None:
    try:
        # no link: in a folder for all, another user may have chosen where it leads
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("the health file %s can't be touched: %s", path, error.strerror)
