"""What one Python process's searches leave in a worker process does not reach those of another."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV
from sqlalchemy import select

from gridfleet import submit
from gridfleet.storage import session
from gridfleet.storage.schema import Attempt, Trial
from gridfleet.storage.settings import Settings
from tests.end_to_end.conftest import REPOSITORY

X, Y = np.zeros((6, 1)), np.arange(6) % 2
ONE_SPLIT = [([0, 1, 2], [3, 4, 5])]

SCRIPT = f"""
    import sys
    sys.path.insert(0, {str(REPOSITORY)!r})
    from tests.end_to_end.test_sessions import search_of_two_trials
    print(search_of_two_trials())
"""


class Leaver(BaseEstimator):
    """Scores how many fits left something in the process before its own did."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def fit(self, X: np.ndarray, y: np.ndarray) -> Leaver:
        self.found_ = getattr(sklearn, "left_behind", 0)
        sklearn.left_behind = self.found_ + 1
        return self

    def score(self, X: np.ndarray, y: np.ndarray) -> int:
        return self.found_


def search_of_two_trials() -> list[float]:
    handle = submit(GridSearchCV(Leaver(), {"number": [1, 2]}, cv=ONE_SPLIT, refit=False), X, Y)
    return sorted(handle.wait(60).cv_results_["mean_test_score"].tolist())


def attempts(fleet: Any) -> list[Any]:
    with fleet.database.read() as connection:
        return list(connection.execute(select(Attempt.trial_id, Attempt.worker_id, Attempt.outcome)))


def test_each_session_has_processes_of_its_own(
    fleet: Any, configured: Settings, start_worker: Callable[..., Any], run_script: Callable[..., Any], tmp_path: Path
) -> None:
    worker = start_worker(configured)

    assert search_of_two_trials() == [0, 1]
    assert search_of_two_trials() == [2, 3]  # the same session: programs that it compiled stay at hand

    done = run_script(tmp_path, SCRIPT)
    assert done.stdout.split() == ["[0.0,", "1.0]"], done.stderr

    assert search_of_two_trials() == [0, 1]
    # one attempt each, in three processes, none of which was lost
    assert [outcome for _, _, outcome in attempts(fleet)] == ["completed"] * 8
    assert len({worker_id for _, worker_id, _ in attempts(fleet)}) == 3
    assert [line for line in worker.log.read_text().splitlines() if "ready" not in line] == []


def test_no_message_is_lost_among_sessions_that_take_turns(
    fleet: Any, configured: Settings, start_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = []
    for name in ("a", "b", "c"):
        monkeypatch.setitem(session._ids, os.getpid(), name)
        handles.append(submit(GridSearchCV(Leaver(), {"number": [1, 2, 3, 4]}, cv=ONE_SPLIT, refit=False), X, Y))
    # the messages of all in turn, and nobody who would send a lost one again
    fleet.publisher._redis.flushdb()
    with fleet.database.read() as connection:
        trials = select(Trial.id).order_by(Trial.number)
        in_turn = [connection.execute(trials.where(Trial.search_id == one.id)).scalars().all() for one in handles]
    fleet.publisher.publish([trial_id for turn in zip(*in_turn, strict=True) for trial_id in turn])

    start_worker(configured, concurrency=2)
    for handle in handles:
        handle.wait(60)

    assert [outcome for _, _, outcome in attempts(fleet)] == ["completed"] * 12
    processes: dict[int, set[str]] = {}
    for trial_id, worker_id, _ in attempts(fleet):
        number = next(number for number, ids in enumerate(in_turn) if trial_id in ids)
        processes.setdefault(number, set()).add(worker_id)
    assert processes[0].isdisjoint(processes[1] | processes[2])
    assert processes[1].isdisjoint(processes[2])


def test_a_forked_child_is_a_session_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = session.this_session()

    assert session.this_session() == own
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert session.this_session() != own


def test_a_process_that_imported_tensorflow_is_another_session_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    before = session.this_session()

    monkeypatch.setitem(sys.modules, "tensorflow", sys)

    assert not session.has_tensorflow(before)
    assert session.has_tensorflow(session.this_session())
