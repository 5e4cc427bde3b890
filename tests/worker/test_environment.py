"""What a worker's processes inherit: threads and the room for their stacks."""

from __future__ import annotations

import joblib
import pytest

from gridfleet.worker.guards import memory
from gridfleet.worker.main_process.environment import threads_per_process


@pytest.mark.parametrize(("n_cores", "concurrency", "threads"), [(8, 2, 4), (2, 4, 1), (192, 2, 16), (64, 1, 16)])
def test_a_process_has_its_share_of_the_cores_and_no_more_than_it_can_use(
    monkeypatch: pytest.MonkeyPatch, n_cores: int, concurrency: int, threads: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: n_cores)

    assert threads_per_process(concurrency) == threads


def test_stacks_of_threads_have_room_besides_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in memory.THREAD_VARIABLES:
        monkeypatch.setenv(variable, "16")

    assert memory._stack_bytes(8_388_608) == 5 * 16 * 8_388_608
    assert memory._stack_bytes(-1) == 5 * 16 * memory.GLIBC_STACK  # no limit: the default of glibc
