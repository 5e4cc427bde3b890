"""A worker that is asked to drain takes nothing new, finishes what it runs, and ends in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gridfleet import submit
from gridfleet.scheduler.cli import main
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports.workers import present_workers
from gridfleet.storage.schema import Worker
from gridfleet.storage.settings import Settings
from tests.faults.support import X, Y, attempts, search, wait_for, wait_for_file
from tests.running_worker import STOP_S
from tests.warm_workers import GO_ON_VARIABLE


def test_a_worker_that_drains_finishes_what_it_runs_and_ends_with_0(
    fleet: Fleet,
    configured: Settings,
    start_worker: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a process goes on by itself for a second at most
    worker = start_worker(configured.replace(heartbeat_s=0.2), **{GO_ON_VARIABLE: "0"})
    handle = submit(search(tmp_path, [1, 2], then="wait"), X, Y)
    wait_for_file(tmp_path, "began-*")
    with pytest.raises(SystemExit) as left:
        main.main(["drain", worker.node])

    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"worker {worker.node} drains")
    wait_for(lambda: "asked to drain" in worker.log.read_text(), "the worker noticed")
    (present,) = present_workers(fleet.database)
    assert (present.name, present.is_draining) == (worker.node, True)
    (process,) = present.processes
    assert process.running is not None
    assert (process.running.search, process.running.attempt) == (handle.name, 1)
    (tmp_path / "go").touch()
    assert worker.process.wait(STOP_S) == 0

    assert attempts(fleet) == [(1, "completed")]  # the other one waits for another worker
    assert handle.progress().queued == 1
    with fleet.database.read() as connection:
        rows = connection.execute(select(Worker.draining, Worker.ended_at)).all()
    assert all(row.draining and row.ended_at is not None for row in rows)
    assert present_workers(fleet.database) == []
