"""What the process that owns an embedded fleet makes of a worker's end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.fleet.local.supervisor import LAST_PAUSE_S, _Supervisor
from gridfleet.storage.errors import UnfitWorkerError
from gridfleet.storage.settings import Settings
from gridfleet.worker.main_process.exit_status import TOOK_ITSELF_OUT


def test_a_worker_with_trouble_of_its_own_is_started_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _Supervisor(Settings(home=tmp_path), Folder(tmp_path), 1, None, tensorflow=False)
    monkeypatch.setattr(one, "_start_worker", lambda: "started")
    pauses = []
    for number in range(9):
        assert one._start_again((UnfitWorkerError.exit_status, TOOK_ITSELF_OUT)[number % 2]) is None
        pauses.append(one._worker_again_at - time.monotonic())

    assert [round(pause_s) for pause_s in pauses[:3]] == [1, 2, 4]
    assert round(pauses[-1]) == LAST_PAUSE_S
    assert one._start_again(-9) == "started"


def test_what_a_killed_fleet_wrote_is_not_taken_for_that_of_one_that_starts(tmp_path: Path) -> None:
    folder = Folder(tmp_path / ".gridfleet")
    folder.prepare()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    state = {"pid": int(ended.stdout), "socket": str(folder.home / "valkey.sock")}
    folder.announce(state)

    with folder.owned() as owns:
        assert owns
        assert folder.running() is None
        folder.announce(state)  # as if it had the lock, and had not tidied up yet
        assert folder.running() is None
