"""The refit on the fleet under faults: its worker is killed, or it hangs and is cancelled, and it ends once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from gridfleet import GridSearchCV, SearchHandle, open_search, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.errors import BestModelError
from gridfleet.storage.refits import find_refit
from gridfleet.storage.schema import Attempt, BestModel
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import Touching
from tests.faults.support import X, Y, wait_for


class InRefit(Touching):
    """Does what `then` says where it is fitted on all rows, and nothing else in the trials before."""

    def fit(self, X: Any, y: Any) -> InRefit:
        if len(X) < 12:
            return Touching(self.folder, self.value).fit(X, y) and self
        first = self._mark("refit")
        if first and self.then == "kill once":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.then == "wait":
            self._wait()
        return self


def submitted(folder: Path, then: str, values: tuple[int, ...] = (1, 2)) -> SearchHandle:
    search = GridSearchCV(InRefit(str(folder), then=then), {"value": values}, cv=2, verbose=0)
    return submit(search, X, Y, name=f"refit {then}")


def attempts_of_refit(fleet: Fleet, handle: SearchHandle) -> list[tuple[int, str | None]]:
    refit = find_refit(fleet.database, handle.id)
    assert refit is not None
    attempts = select(Attempt.attempt, Attempt.outcome).where(Attempt.trial_id == refit.trial_id)
    with fleet.database.read() as connection:
        return [tuple(row) for row in connection.execute(attempts.order_by(Attempt.attempt))]


def test_a_refit_whose_worker_is_killed_ends_once_and_one_that_hangs_is_cancelled(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    killed = submitted(tmp_path, "kill once").wait(90)

    assert attempts_of_refit(fleet, killed) == [(1, "worker_lost"), (2, "completed")]
    with fleet.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(BestModel)).scalar_one() == 1
    assert len(list(tmp_path.glob("refit-2-*"))) == 2
    assert open_search("refit kill once").best_estimator_.value == 2
    assert list(killed.predict(X)) == [0] * len(X)

    waiting = submitted(tmp_path, "wait", values=(2,))
    # no message of another trial leads to it, nobody waits for it, and no scheduler runs: who recorded the last trial
    # has sent its message
    wait_for(lambda: list(tmp_path.glob("refit-2-2")), "the refit's begin")
    assert (waiting.state, waiting.progress().is_finished) == ("completed", True)
    assert waiting.cancel()
    waiting.wait(90)
    assert attempts_of_refit(fleet, waiting) == [(1, "cancelled")]
    with pytest.raises(BestModelError, match="'refit wait' has no best model: its refit was cancelled"):
        _ = waiting.best_estimator_
