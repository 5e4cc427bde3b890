"""No process of gridfleet imports or runs a file of the folder that it is started in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gridfleet.storage.settings import Settings
from tests.faults.support import wait_for
from tests.running_worker import STOP_S

REPOSITORY = Path(__file__).parents[2]
#: Modules that a worker imports, of the standard library too, but not the dozen that `python -m` itself imports before.
NAMES = (
    "worker",
    "storage",
    "celery",
    "celeryconfig",
    "billiard",
    "kombu",
    "redis",
    "socket",
    "typing",
    "pathlib",
    "re",
)
#: An empty entry is what ``PYTHONPATH=$PYTHONPATH:/somewhere`` makes of a variable that was not set.
PYTHONPATH = os.pathsep.join(["", ".", str(REPOSITORY), "lib"])


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Make a folder with files that say when they are imported."""
    for folder in (tmp_path / "hostile", tmp_path / "hostile" / "lib"):
        folder.mkdir()
        for name in NAMES:
            (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\n1 / 0\n")
    return tmp_path / "hostile"


def imported(folder: Path) -> str:
    file = folder / "imported"
    return file.read_text() if file.exists() else ""


@pytest.fixture
def start(hostile: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command in the hostile folder; it is stopped at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **variables: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            environment = {**os.environ, **variables}
            started.append(subprocess.Popen(command, cwd=hostile, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(STOP_S)


def test_a_worker_is_started_in_a_hostile_folder_and_its_processes_run_in_a_private_one(
    hostile: Path,
    start: Callable[..., subprocess.Popen[bytes]],
    make_settings: Callable[..., Settings],
    tmp_path: Path,
) -> None:
    settings = make_settings("sqlite", allow_root=True)
    # relative, as seen from where it is started
    variables = {
        **settings.for_workers().as_variables(),
        "GRIDFLEET_HEALTH_FILE": "../health",
        "GRIDFLEET_CACHE_DIR": "../cache",
    }
    command = (sys.executable, "-m", "gridfleet", "worker", "--concurrency", "1")

    worker = start(*command, **variables, PYTHONPATH=PYTHONPATH, TMPDIR=str(tmp_path))
    wait_for((tmp_path / "health").exists, "the worker is ready")
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    (work,) = {process.cwd() for process in family}

    assert len(family) >= 2
    assert Path(work).parent == tmp_path
    assert Path(work).name.startswith("gridfleet-work-")
    assert Path(work).stat().st_mode & 0o077 == 0
    worker.terminate()
    worker.wait(STOP_S)
    assert imported(tmp_path) == ""
    left = {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith("gridfleet-") for name in left), left
