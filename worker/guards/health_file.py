"""A file that a living service touches, and the look at it that a container engine takes."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

from gridfleet.storage.private_folder import HEALTH_FILE, make_runtime_folder

logger = logging.getLogger(__name__)

#: Seconds between touches of the health file.
HEALTH_S = 10
#: Seconds for which it counts: several of these touches.
HEALTHY_S = 60


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


def why_not_healthy() -> str | None:
    """Say why the service of this container does not live; None if it does."""
    path = os.environ.get("GRIDFLEET_HEALTH_FILE")  # not all settings, for reading them takes half a second
    if path:
        file = Path(path)
    elif (folder := make_runtime_folder()) is not None:
        file = folder / HEALTH_FILE
    else:
        return "there is no health file; set GRIDFLEET_HEALTH_FILE, for the service and for this command"
    try:
        age_s = time.time() - file.lstat().st_mtime
    except OSError:
        return f"the health file {file} is not there: the service has not started, or GRIDFLEET_HEALTH_FILE differs"
    if age_s > HEALTHY_S:
        return f"the health file {file} was last touched {age_s:.0f} s ago: the service does not live"
    return None


def main() -> int:
    """Do what ``gridfleet health`` does, without the imports of the other commands; returns the exit status."""
    reason = why_not_healthy()
    if reason is not None:
        sys.stderr.write(f"gridfleet: {reason!r}\n" if not reason.isprintable() else f"gridfleet: {reason}\n")
    return int(reason is not None)
