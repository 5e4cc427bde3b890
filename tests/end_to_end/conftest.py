"""A fleet with real workers for each database, and the scripts of users."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.storage.settings import Settings
from gridfleet.worker.guards.memory import THREAD_VARIABLES
from tests.warm_scripts import WarmScript, warm_scripts

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def use_fleet(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], None]:
    """Point this process's GRIDFLEET_* variables to a fleet."""

    def use(settings: Settings) -> None:
        for name in ("GRIDFLEET_SECRET_KEY", "GRIDFLEET_PUBLIC_KEY"):  # of another part of the fleet
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.as_variables().items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def configured(database_settings: Settings, use_fleet: Callable[[Settings], None]) -> Settings:
    """Use a configured fleet, on SQLite and on PostgreSQL; its workers are the test's to start."""
    use_fleet(database_settings)
    return database_settings


@pytest.fixture
def fleet(configured: Settings) -> fleets.Fleet:
    """Connect to the configured fleet."""
    return fleets.connect()


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the variables of libraries be as before after a test that calls `gridfleet verify`, which sets them."""
    for name in (*THREAD_VARIABLES, "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a user's script in a folder, ``run_script(folder, code)``."""

    def run(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        with start_script(folder, code, **variables) as process:
            output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


def start_script(folder: Path, code: str, **variables: str) -> subprocess.Popen[str] | WarmScript:
    """Start a user's script in a folder, with nothing of the tests in its path.

    It is run by an interpreter of its own if that has to heed a variable as it starts.
    """
    script = folder / "script.py"
    # a shell's background jobs ignore Ctrl-C, which children inherit; the scripts of a terminal do not
    heeds_ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(heeds_ctrl_c + textwrap.dedent(code))
    environment = {**os.environ, **variables}
    if not any(name.startswith("PYTHON") for name in variables):
        return warm_scripts().start(script, cwd=folder, env=environment)
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
