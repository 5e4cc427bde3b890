"""How long a search still takes is said only when it can be known."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gridfleet.scheduler.reports.pace import Pace, roughly
from gridfleet.scheduler.reports.reader import Progress
from gridfleet.storage.search_states import ShownState


def progress(done: int, *, total: int = 60, running: int = 1, state: ShownState = ShownState.RUNNING) -> Progress:
    return Progress(
        total=total,
        queued=total - done - running,
        running=running,
        completed=done,
        failed=0,
        pruned=0,
        cancelled=0,
        seconds_running=None,
        best_score=None,
        is_finished=done == total,
        state=state,
    )


def left(looks: Iterable[tuple[float, Progress]]) -> list[float | None]:
    pace = Pace()
    return [pace.seconds_left(seen, at) for at, seen in looks]


def test_nothing_is_said_before_two_rounds_of_the_processes() -> None:
    looks = [(0.0, progress(0, running=2)), *((float(n), progress(n, running=2)) for n in range(1, 6))]

    assert left(looks) == [None, None, None, None, 56.0, 55.0]


def test_a_trial_that_is_overdue_makes_the_others_later() -> None:
    assert left([*((float(n), progress(n)) for n in range(4)), (13.0, progress(3))])[-1] == 57.0 * (3 + 9) / 3


def test_the_slow_first_trial_is_forgotten() -> None:
    looks = [(0.0, progress(0)), (30.0, progress(1)), *((30.0 + n, progress(1 + n)) for n in range(1, 59))]

    assert left(looks)[-40] == pytest.approx((60 - 20) * (49 / 20))
    assert left([*looks, (91.0, progress(59))])[-1] == pytest.approx(1.0, abs=0.1)


def test_a_search_that_is_slower_than_the_window_is_still_estimated() -> None:
    assert left([(0.0, progress(0)), (600.0, progress(1)), (1200.0, progress(2)), (1800.0, progress(3))])[-1] == 34_200


@pytest.mark.parametrize(
    "stands", [progress(30, state=ShownState.PAUSED), progress(30, state=ShownState.WAITING), progress(30, running=0)]
)
def test_who_waits_for_nothing_to_happen_is_told_no_time_and_the_pause_does_not_count(stands: Progress) -> None:
    before = [(float(n), progress(n)) for n in range(31)]
    after = [(10_000.0 + n, progress(30 + n)) for n in range(4)]

    said = left([*before, (40.0, stands), (10_000.0, stands), *after])

    assert said[31:] == [None, None, None, None, 28.0, 27.0]


def test_a_moment_between_two_trials_changes_nothing() -> None:
    looks = [look for n in range(6) for look in ((float(n), progress(n)), (n + 0.9, progress(n, running=0)))]

    assert left(looks)[6:8] == [57.0, 57.0]


def test_at_the_end_nothing_is_left_to_say() -> None:
    assert left([(float(n), progress(n, total=5, running=1 if n < 5 else 0)) for n in range(6)])[-1] is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "~0 s"),
        (0.2, "~1 s"),
        (9.2, "~10 s"),
        (12, "~15 s"),
        (59, "~60 s"),
        (89, "~1 min"),
        (3_500, "~58 min"),
        (6_600, "~1 h 50 min"),
        (7_190, "~2 h"),
        (200_000, "~2 d 8 h"),
        (172_800, "~2 d"),
    ],
)
def test_times_are_as_exact_as_anybody_can_know(seconds: float, shown: str) -> None:
    assert roughly(seconds) == shown
