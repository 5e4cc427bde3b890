"""Which embedded fleets of this user run on this machine, in whatever folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError

#: Where Linux shows processes; other systems have no such folder, and there only the fleet of this folder is found.
PROCESSES = Path("/proc")


@dataclass(frozen=True)
class RunningFleet:
    """An embedded fleet that runs.

    Parameters
    ----------
    folder : Folder
        Its files.
    pid : int
        Of the process that owns it.
    n_workers : int
        Worker processes.
    started_at : datetime or None
        None: a release before started it.
    """

    folder: Folder
    pid: int
    n_workers: int
    started_at: datetime | None


def running_fleets(home: Path) -> list[RunningFleet]:
    """List the fleets of this user.

    Parameters
    ----------
    home : Path
        The folder of the fleet that is found in any case, if it runs.
    """
    fleets = {}
    for candidate in [home, *_homes_of_processes()]:
        try:
            folder = Folder(candidate)
            state = folder.running()
        except (LocalFleetError, OSError):  # open to others, or gone meanwhile
            continue
        if state is not None:
            started_at = state.get("started_at")
            fleets[folder.home] = RunningFleet(
                folder,
                state["pid"],
                state["n_workers"],
                None if started_at is None else datetime.fromisoformat(started_at),
            )
    return [fleets[path] for path in sorted(fleets)]


def _homes_of_processes() -> Iterator[Path]:
    """Yield folders of which some process of this user has ``work`` as its current folder, as a supervisor has."""
    for process in PROCESSES.glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.geteuid():
                current = (process / "cwd").readlink()
                if current.name == "work":
                    yield current.parent
        except OSError:  # it has ended, or is not to be looked at
            continue
