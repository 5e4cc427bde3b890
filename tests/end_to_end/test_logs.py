"""What a real worker logs of its trials, and what becomes of a log that grows, or has no room."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.base import BaseEstimator

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local import folder as folders
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.storage.errors import LocalFleetError
from gridfleet.storage.settings import Settings
from tests.faults.support import X, Y


class Chatty(BaseEstimator):
    """Prints in its fit, twice the same."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def fit(self, X, y):
        for _ in range(2):
            print(f"fits {self.value}")
        return self

    def score(self, X, y):
        return float(self.value)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_every_line_of_a_trial_says_whose_it_is_and_debug_shows_each_decision(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    worker = start_worker(configured.replace(log_level="DEBUG", log_format="json"))

    handle = submit(GridSearchCV(Chatty(), {"value": [1, 2]}, cv=2, refit=False), X, Y).wait(60)

    # all of them, before what Celery prints at its end
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    printed = [
        (line["search"], line["trial"], line["attempt"], line["message"])
        for line in lines
        if line["message"].startswith("fits")
    ]
    assert sorted(printed) == [(handle.name, n, 1, f"fits {n + 1}") for n in (0, 1) for _ in range(4)]
    assert all(line["worker"].startswith(worker.node) for line in lines)
    said = [line["message"] for line in lines if line["logger"].startswith("gridfleet")]
    assert any("leads to search" in message for message in said)
    assert f"worker {worker.node} is ready" in said


def test_a_log_that_became_large_is_begun_anew_and_nobody_loses_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_LOG_BYTES", 1_000)
    folder = Folder(tmp_path / ".gridfleet")
    folder.prepare()
    code = "import sys\nfor line in sys.stdin: print('x' * 40, line, end='', flush=True)"
    with (
        folder.open_log() as log,
        contextlib.ExitStack() as stack,
    ):
        writers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, text=True)
            )
            for _ in range(2)
        ]
        for number in range(200):
            for writer in writers:
                writer.stdin.write(f"{number}\n")
                writer.stdin.flush()
            if number % 20 == 0:
                folder.bound_log()
                time.sleep(0.01)
        for writer in writers:
            writer.stdin.close()
            assert writer.wait(30) == 0
        folder.bound_log()
        log.write(b"the last line\n")

    assert folder.log.read_bytes() == b"the last line\n"
    assert folder.last_log_line() == "the last line"
    old = folder.old_log.read_text().splitlines()
    assert old[-1].endswith(" 199")
    assert folder.old_log.stat().st_mode & 0o077 == 0
    assert not any("\0" in line for line in old)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_named_at_the_first_start(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "gridfleet-test", str(small)], check=True)
    try:
        with contextlib.suppress(OSError):
            (small / "filler").write_bytes(bytes(2_000_000))
        folder = Folder(small / ".gridfleet")

        with pytest.raises(LocalFleetError, match=r"the disk of .* is full .*; make room, or set GRIDFLEET_HOME"):
            folder.prepare()

        assert "is full" in folder.last_log_line()  # and not that no reason was logged
        (small / "filler").unlink()
        folder.prepare()
        assert folder.last_log_line() == f"no reason was logged in {folder.log}"
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
