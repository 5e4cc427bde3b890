"""A worker's own trouble is never a trial's fault: broken caches, full disks, other Pythons beside a healthy worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text, update

from gridfleet import submit
from gridfleet.scheduler.cli import doctor
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.progress import describe
from gridfleet.storage import workers
from gridfleet.storage.schema import Attempt, Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.versions import THIS_PYTHON
from tests.conftest import give_to_another_user
from tests.faults.support import X, Y, assert_one_result_each, attempts, search, wait_for
from tests.running_worker import STOP_S

#: Data that no small disk has room for.
LARGE_X, LARGE_Y = np.zeros((40_000, 20)), np.arange(40_000) % 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 3 MB, as far as this user may."""
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=3m,mode=0700,uid={os.geteuid()}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def reconcile_until(fleet: Fleet, condition: Callable[[], Any], what: str) -> None:
    """Do what the scheduler does until something holds."""
    one = fleet.reconciler()

    def holds() -> bool:
        one.once()
        return bool(condition())

    wait_for(holds, what)


def doctors_findings() -> str:
    return "\n".join(map(str, doctor.examine()))


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("folder", ["cache", "temporary"])
def test_a_worker_that_can_not_write_where_it_has_to_says_so_and_claims_nothing(
    folder: str, fleet: Fleet, configured: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submit(search(tmp_path, [1, 2]), X, Y)
    settings, variables = configured.for_workers(), {}
    broken = tmp_path / "broken"
    broken.mkdir()
    if folder == "cache":
        give_to_another_user(broken, monkeypatch)
        settings = settings.replace(cache_dir=broken)
    else:
        monkeypatch.setenv("TMPDIR", str(broken / "not there"))
        variables = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/proc")
    command = [sys.executable, "-c", START, "worker", "--concurrency", "1"]
    others = {name: value for name, value in os.environ.items() if not name.startswith("GRIDFLEET_")}
    environment = {**others, **settings.as_variables(), "GRIDFLEET_ALLOW_ROOT": "true", **variables}

    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)

    assert ended.returncode == 3, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert re.match(
        r"gridfleet: (the cache is not private: .*GRIDFLEET_CACHE_DIR|.*usable temporary directory.*TMPDIR)",
        ended.stderr,
    )
    assert attempts(fleet) == []
    assert handle.progress().queued == 2
    assert "did not start: " in doctors_findings()


#: The command, without the temporary folders that Python falls back to where the variables name none of use.
START = """
import tempfile
tempfile._candidate_tempdir_list = lambda: [__import__("os").environ.get("TMPDIR", "/tmp")]
from gridfleet.scheduler.cli.main import main
main()
"""


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_worker_whose_disk_is_full_takes_itself_out_and_the_healthy_one_completes_all(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], small_disk: Path, tmp_path: Path
) -> None:
    broken = start_worker(configured.replace(cache_dir=small_disk, heartbeat_s=1.0))

    handle = submit(search(tmp_path, list(range(12))), LARGE_X, LARGE_Y)
    reconcile_until(fleet, lambda: broken.process.poll() is not None, "the end of the broken worker")

    assert broken.process.wait(STOP_S) == 4
    assert [outcome for _, outcome in attempts(fleet)] == ["handed_back"] * 3
    (reason,) = workers.stopped_processes(fleet.database, broken.node).values()
    assert reason == "it handed back 3 trials in a row, the last for this reason: OSError: No space left on device"
    assert f"worker {broken.node} takes itself out: {reason}" in broken.log.read_text()
    assert "Error in timer" not in broken.log.read_text()
    assert f"WRONG workers   {broken.node} took itself out: {reason}" in doctors_findings()

    start_worker(configured)
    reconcile_until(fleet, lambda: handle.progress().is_finished, "the end of the search")

    assert_one_result_each(fleet, handle)
    assert handle.progress().failed == 0
    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial.failures, Trial.peak_memory_mb)).all()
        peaks = connection.execute(select(Attempt.peak_memory_mb)).scalars().all()
    assert {row.failures for row in rows} == {0}
    assert all(row.peak_memory_mb > 20 for row in rows)
    assert all(peak is not None for peak in peaks)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_worker_leaves_trials_of_another_python_alone_and_does_those_behind_them(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = submit(search(tmp_path / "foreign", [1, 2, 3]), X, Y)
    set_python(fleet, foreign.id, "3.99")
    start_worker(configured)

    own = submit(search(tmp_path, [9]), X, Y).wait(90)

    assert_one_result_each(fleet, own)
    assert attempts(fleet) == [(1, "completed")]
    sentence = "3 trials wait for a worker with Python 3.99"
    assert sentence in describe(reader.progress(fleet.database, foreign.id))
    assert f"WRONG python    {sentence}; start one" in doctors_findings()

    set_python(fleet, foreign.id, THIS_PYTHON)
    reconcile_until(fleet, lambda: foreign.progress().is_finished, "the end of the search")
    assert_one_result_each(fleet, foreign)


def set_python(fleet: Fleet, search_id: int, version: str) -> None:
    with fleet.database.write() as connection:
        if fleet.database.dialect == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(update(Search).where(Search.id == search_id).values(needs_python=version))
