"""The most memory of a process, trial by trial."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gridfleet.worker.guards.peak_memory import PeakMemory, memory_mb


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is counted over the process's life")
def test_the_peak_is_of_one_trial_and_not_of_the_process() -> None:
    memory = PeakMemory()
    memory.begin()
    before = memory.mb()
    array = np.ones(25_000_000)
    assert memory.mb() >= before + 190
    del array
    assert memory.mb() >= before + 190

    memory.begin()

    assert memory.mb() < before + 100
    assert abs(memory.mb() - (memory_mb() or 0)) < 100


def test_where_nobody_tells_the_peak_it_is_the_most_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PeakMemory()
    assert memory.mb() > 0
    monkeypatch.setattr("gridfleet.worker.guards.peak_memory._STATUS", _NoFile())

    assert memory.mb() > 0
    assert memory_mb() is None


class _NoFile:
    def read_bytes(self) -> bytes:
        raise FileNotFoundError
