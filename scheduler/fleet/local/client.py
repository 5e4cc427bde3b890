"""What scripts know of their folder's fleet: whether it runs, how to start it, where it is."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import HOME, Settings

#: Seconds that a fleet may take to come up.
START_S = 60
#: Seconds that a supervisor gets to stop its processes.
STOP_S = 15
#: Argument of a supervisor, and of its worker, for a fleet that imports TensorFlow only when a search needs it.
WITHOUT_TENSORFLOW = "--without-tensorflow"
#: What stands for the owner of a fleet that has none: `gridfleet up` is its own.
UP = 0
#: Exit status of a supervisor that finds another one at work.
ALREADY_RUNNING = 3


def _folder(settings: Settings) -> Folder:
    home = settings.home
    if "home" not in settings.model_fields_set and home.parent != Path.cwd():
        _say_which(home, Path.cwd())
    return Folder(home)


@cache
def _say_which(home: Path, here: Path) -> None:  # once
    print(  # noqa: T201 - a remark
        f"gridfleet: the fleet of {home.parent} is that of this folder as well, which is in it; for one of its own, "
        f"`mkdir {here / HOME}`",
        file=sys.stderr,
    )


def ensure_running(settings: Settings, *, n_workers: int | None = None) -> Settings:
    """Return the settings of this folder's fleet, starting it if it does not run.

    Parameters
    ----------
    settings : Settings
        Whose ``home`` is the folder.
    n_workers : int, default=None
        Worker processes to start with; None: one per core. A fleet that runs keeps its own number.

    Returns
    -------
    Settings
        With the URLs of broker and database, and ``linger_s`` of the fleet, which another script may have started.

    Raises
    ------
    LocalFleetError
        If it does not come up; the sentence names the log.
    """
    import joblib  # takes 0.2 s, which those who only read results need not wait

    folder = _folder(settings)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        running = folder.running()
        if running is not None:
            if (folder.home, os.getpid()) not in _in_use:
                _in_use[folder.home, os.getpid()] = folder.use()
            return folder.settings(settings, running["broker_url"]).replace(linger_s=running["linger_s"])
        if folder.is_locked():  # somebody starts or stops it right now
            time.sleep(0.02)
            continue
        process = _start_supervisor(folder, n_workers or joblib.cpu_count(), lingers=settings.linger_s > 0)
        while time.monotonic() < until and folder.running() is None and process.poll() is None:
            time.sleep(0.02)
        if process.poll() not in (None, ALREADY_RUNNING):
            raise LocalFleetError(f"the fleet in {folder.home} did not start: {folder.last_log_line()}")
    raise LocalFleetError(f"the fleet in {folder.home} did not start within {START_S} s; see {folder.log}")


def stored(settings: Settings) -> Settings:
    """Return the settings to read this folder's results with; nothing is started."""
    folder = _folder(settings)
    folder.prepare()
    running = folder.running()
    return folder.settings(settings, running["broker_url"] if running else None)


def is_running(settings: Settings) -> bool:
    """Whether this folder's fleet runs."""
    return _folder(settings).running() is not None


def change_workers(settings: Settings, n_workers: int) -> None:
    """Let this folder's fleet, which runs, go on with another number of worker processes, and wait until it does.

    Those that run trials finish them, and take nothing new.

    Raises
    ------
    LocalFleetError
        If it does not, or ended meanwhile.
    """
    folder = _folder(settings)
    folder.want_workers(n_workers)
    until = time.monotonic() + STOP_S
    while (running := folder.running()) is None or running["n_workers"] != n_workers:
        if running is None or time.monotonic() > until:
            raise LocalFleetError(f"the fleet in {folder.home} did not heed that within {STOP_S} s; see {folder.log}")
        time.sleep(0.02)


def owner(settings: Settings) -> int | None:
    """Return the process that started this folder's fleet, and with which it ends; `UP` if none, None without a fleet.

    Of a fleet that lingers it is the one that started it, too.
    """
    running = _folder(settings).running()
    if running is None:
        return None
    if running["pid"] in [process.pid for process in _supervisors]:
        return os.getpid()
    return running.get("owner") or UP


def variables(settings: Settings) -> dict[str, str] | None:
    """Return the variables of libraries with which this folder's fleet was started; None if it does not run."""
    running = _folder(settings).running()
    return None if running is None else running.get("variables")


def has_database(settings: Settings) -> bool:
    """Whether a fleet ever ran in this folder, so that there is something to read."""
    return _folder(settings).database.exists()


def stop(settings: Settings) -> bool:
    """Stop this folder's fleet, whoever started it.

    Returns
    -------
    bool
        False if it did not run.

    Raises
    ------
    LocalFleetError
        If it does not end.
    """
    folder = _folder(settings)
    running = folder.running()
    if running is None:
        return False
    with suppress(ProcessLookupError):  # it ends just now
        os.kill(running["pid"], signal.SIGTERM)
    until = time.monotonic() + STOP_S
    while folder.is_locked():
        if time.monotonic() > until:
            raise LocalFleetError(f"the fleet in {folder.home} did not end within {STOP_S} s; see {folder.log}")
        time.sleep(0.02)
    return True


_supervisors: list[subprocess.Popen[bytes]] = []
#: Those that outlive this process.
_lingering: list[subprocess.Popen[bytes]] = []
#: What says that this process uses a fleet, by its folder and the process id.
_in_use: dict[tuple[Path, int], IO[bytes]] = {}


def _start_supervisor(folder: Folder, n_workers: int, *, lingers: bool) -> subprocess.Popen[bytes]:
    folder.prepare()
    command = [
        sys.executable,
        "-P",
        "-m",
        "gridfleet.scheduler.fleet.local.supervisor",
        str(folder.home),
        str(n_workers),
        str(os.getpid()),
    ]
    if "tensorflow" not in sys.modules:  # nor are there models of Keras to be searched
        command.append(WITHOUT_TENSORFLOW)
    with folder.open_log() as log:
        # not in the current folder, which a relative entry of PYTHONPATH, or an empty one, would name
        process = subprocess.Popen(
            command, cwd=folder.work, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    if lingers:
        _lingering.append(process)
    else:
        _supervisors.append(process)
    return process


@atexit.register
def _stop_supervisors() -> None:
    """Stop the fleets that this process owns, but for those that outlive it."""
    for file in (*_in_use.values(), *(process.stdin for process in (*_supervisors, *_lingering))):
        if file is not None:
            file.close()
    for process in _lingering:
        process.returncode = process.poll() or 0  # or Popen would warn that it still runs
    for process in _supervisors:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.terminate()
    _supervisors.clear()
