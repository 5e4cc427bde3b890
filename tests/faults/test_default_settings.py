"""How long recoveries take with the settings that nobody changed: lease 60 s, heartbeat 10 s, reconciler 15 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from gridfleet import submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.settings import Settings
from tests.faults.support import (
    RECOVERIES,
    X,
    Y,
    assert_one_result_each,
    attempts,
    note_recovery,
    search,
    wait_for,
    wait_for_file,
)


@pytest.mark.skipif(not RECOVERIES, reason="takes a lease of 60 s; GRIDFLEET_RECOVERIES=FILE names where its times go")
@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_killed_worker_and_a_flushed_broker_cost_no_result(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    health = tmp_path / "scheduler.health"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "gridfleet", "scheduler"],
        env={**os.environ, **configured.replace(health_file=health).as_variables()},
    )
    try:
        wait_for(health.exists, "the scheduler is ready")
        first = start_worker(configured)
        handle = submit(search(tmp_path, [1], then="wait"), X, Y)
        wait_for_file(tmp_path, "began-1-0")
        start_worker(configured)
        busy = submit(search(tmp_path, [2, 3], then="wait"), X, Y)
        wait_for_file(tmp_path, "began-2-0")

        first.kill()
        killed_at = time.monotonic()
        with redis.Redis.from_url(configured.broker()) as broker:
            broker.flushdb()
        note_recovery("FLUSHALL, default settings", wait_for(fleet.publisher.queue_length, "messages are sent again"))
        (tmp_path / "go").touch()
        wait_for_file(tmp_path, "began-1-1")
        note_recovery("worker killed, default settings", time.monotonic() - killed_at)

        for one in (handle, busy):
            assert_one_result_each(fleet, one.wait(60))
        assert attempts(fleet) == [(1, "lease_expired"), (2, "completed"), (1, "completed"), (1, "completed")]
    finally:
        scheduler.send_signal(signal.SIGTERM)
        scheduler.wait(30)
