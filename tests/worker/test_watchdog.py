"""What the watchdog makes of the rows that it reads."""

from __future__ import annotations

import pytest

from gridfleet.storage.trials.held import Held
from gridfleet.worker.main_process.watchdog import _process_id


@pytest.mark.parametrize(
    ("worker_id", "process_id"),
    [
        ("node/7", 7),
        ("a/b/12", 12),
        ("node/seven", -1),
        ("node/", -1),
        ("", -1),
        (None, -1),
        ("node/" + "9" * 5_000, -1),
    ],
)
def test_a_trial_of_no_process_is_one_that_nobody_holds(worker_id: str | None, process_id: int) -> None:
    assert _process_id(Held(1, "token", worker_id=worker_id)) == process_id
