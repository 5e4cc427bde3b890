"""Models that crash, hang, fork, exit, print or take all memory: each ends as one trial, and hurts no other one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scikeras.wrappers import KerasClassifier
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.guards import memory
from gridfleet.worker.guards.output import MAX_BYTES
from gridfleet.worker.main_process.lost_process import explain_end
from tests.end_to_end.models import Touching, create_model
from tests.faults.support import X, Y, assert_one_result_each, attempts, search, sooner

#: What a model does, and what its trial then has: its state, the type of its error, words of its last line.
POISON = [
    ("kill", "failed", "worker_lost", "signal 9 (SIGKILL): somebody killed it, or the kernel did"),
    ("segfault", "failed", "worker_lost", "signal 11 (SIGSEGV): the model's code or a library"),
    ("exit hard", "failed", "worker_lost", "ended itself with status 1"),
    ("hang with the GIL", "failed", "worker_lost", "no sign of life"),
    ("exit", "failed", "SystemExit", "the model's own code raised SystemExit, as sys.exit() does"),
    ("interrupt", "failed", "KeyboardInterrupt", "the model's own code raised KeyboardInterrupt"),
    ("raise", "failed", "ValueError", "does not suit me"),
    ("memory", "failed", "out_of_memory", "GRIDFLEET_MEMORY_LIMIT_MB"),
    ("nan", "failed", "non_finite_score", "the score of split 0 is nan"),
    ("fork", "completed", None, ""),
    ("print", "completed", None, ""),
]
HEALTHY = 4


@pytest.mark.parametrize("backend", ["postgresql"])
def test_each_poison_ends_as_one_trial_with_a_cause_and_its_neighbours_are_right(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    impatient = configured.replace(lease_s=3.0, heartbeat_s=0.5, max_failures=1, memory_limit_mb=2_000)
    soon = sooner({"gridfleet.worker.main_process.watchdog.MIN_SILENCE_S": 1})
    worker = start_worker(impatient, concurrency=2, **soon)
    grid = [{"value": [100 + i], "then": [poison]} for i, (poison, *_) in enumerate(POISON)]
    grid += [{"value": list(range(HEALTHY))}]

    handle = submit(GridSearchCV(Touching(str(tmp_path)), grid, cv=2, refit=False), X, Y).wait(240)
    (tmp_path / "next").mkdir()
    marker = submit(search(tmp_path / "next", [7, 8]), X, Y).wait(60)

    with fleet.database.read() as connection:
        of_search = select(Trial.state, Trial.error_type, Trial.error, Trial.attempt, Trial.mean_test_score)
        rows = connection.execute(of_search.where(Trial.search_id == handle.id).order_by(Trial.number)).all()
    poisoned, healthy = rows[: len(POISON)], rows[len(POISON) :]
    assert [row.attempt for row in rows] == [1] * len(rows)
    assert [(row.state, row.error_type) for row in poisoned] == [(state, kind) for _, state, kind, _ in POISON]
    for row, (_, _, _, words) in zip(poisoned, POISON, strict=True):
        assert words in (row.error or "").strip().rpartition("\n")[2]
    assert [row.mean_test_score for row in poisoned if row.state == "completed"] == [109, 110]
    assert [(row.state, row.mean_test_score) for row in healthy] == [("completed", i) for i in range(HEALTHY)]
    assert_one_result_each(fleet, marker)
    assert len(attempts(fleet)) == len(rows) + 2
    # a copy that a fit forked neither forks in the next fit nor scores
    assert len(list(tmp_path.glob("began-109-*"))) == 2
    log = worker.log.read_text(errors="replace")
    assert log.count("spam") * 5 <= MAX_BYTES
    assert "bytes; the last" in log


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_keras_model_that_is_too_big_fails_and_small_ones_are_trained_under_the_same_limit(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    start_worker(configured.replace(max_failures=1, memory_limit_mb=memory.MIN_DEFAULT_MB))
    rng = np.random.default_rng(0)
    grid = {"model__units": [4, 1_000_000_000, 5]}
    model = KerasClassifier(create_model, epochs=1, verbose=0)

    # one split: TensorFlow waits for ten seconds before it gives up
    one_split = [(np.arange(10), np.arange(10, 20))]
    search = GridSearchCV(model, grid, cv=one_split, refit=False)
    submit(search, rng.normal(size=(20, 8)).astype("float32"), np.arange(20) % 2).wait(240)

    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial.state, Trial.error_type, Trial.error).order_by(Trial.number)).all()
    assert [row.state for row in rows] == ["completed", "failed", "completed"], rows
    assert rows[1].error_type.endswith(("ResourceExhaustedError", "worker_lost"))
    assert "memory" in rows[1].error or "OOM" in rows[1].error


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Worker exited prematurely: signal 6 (SIGABRT) Job: 1.", "when they get no memory"),
        ("Worker exited prematurely: signal 6 (SIGABRT) Job: 1.", "or no thread"),
        ("Worker exited prematurely: signal 4 (SIGILL) Job: 1.", "signal 4 (SIGILL): a library has instructions"),
        ("Worker exited prematurely: signal 7 (SIGBUS) Job: 1.", "/dev/shm is full"),
        ("Worker exited prematurely: signal 12 (SIGUSR2) Job: 1.", "nobody knows why"),
        ("Worker exited prematurely: exitcode 134 Job: 1.", "status 134: as after signal 6 (SIGABRT)"),
        ("Worker exited prematurely: exitcode 0 Job: 1.", "ended itself with status 0"),
        ("something new", "something new"),
    ],
)
def test_the_end_of_a_process_is_explained_in_a_sentence(message: str, words: str) -> None:
    assert words in explain_end(message)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/fleet/worker\n", "fleet/memory.max"),
        ("0::/not/visible/here\n", "memory.max"),
        ("5:cpu:/\n4:memory:/fleet\n", "memory/fleet/memory.limit_in_bytes"),
    ],
)
def test_a_process_shares_the_memory_of_its_control_group(
    groups: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").write_text(groups)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{10**10}\n")

    assert memory._control_group_limits(tmp_path, tmp_path / "groups") == [10**10]
