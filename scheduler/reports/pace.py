"""How long a search still takes, by the pace of its last trials."""

from __future__ import annotations

import math
from collections import deque

from gridfleet.scheduler.reports.reader import Progress
from gridfleet.storage.search_states import ShownState

#: Seconds back that count; longer where fewer than two rounds of trials ended in them.
RECENT_S = 60.0
#: Rounds of trials, one on each process that evaluates, before which nothing is said.
ROUNDS = 2
#: States in which nothing ends.
STANDS = (ShownState.PAUSED, ShownState.WAITING)
#: Seconds without a trial that runs, after which a search stands still; between two trials it is a moment.
STANDS_S = 5.0


class Pace:
    """Watches trials end, and says how long the others take if they go on like that.

    The first trials of a process take longer, for it imports and compiles; a pause takes no part in the pace.
    """

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int]] = deque()  # when how many were done
        self._most_running = 1
        self._ran_at = -math.inf

    def seconds_left(self, progress: Progress, at: float) -> float | None:
        """Return the seconds left; None as long as nobody can know.

        Parameters
        ----------
        progress : Progress
            How far the search is now.
        at : float
            When that is, in seconds of any clock that only goes forward.
        """
        if progress.running:
            self._ran_at = at
        if stands := progress.state in STANDS or at - self._ran_at > STANDS_S:
            self._ends.clear()  # what was before says nothing of what comes after
        if not self._ends or progress.done != self._ends[-1][1]:
            self._ends.append((at, progress.done))
        self._most_running = max(self._most_running, progress.running)
        # the oldest look that counts: recent, or two rounds ago
        while len(self._ends) > 1 and at - self._ends[1][0] >= RECENT_S and self._is_enough(self._ends[1][1], progress):
            self._ends.popleft()
        since, n_then = self._ends[0]
        if stands or progress.done >= progress.total or not self._is_enough(n_then, progress):
            return None
        last, n_ended = self._ends[-1][0], progress.done - n_then
        overdue = max(0.0, at - last - (last - since) / n_ended)
        return (last - since + overdue) / n_ended * (progress.total - progress.done)

    def _is_enough(self, n_then: int, progress: Progress) -> bool:
        return progress.done - n_then >= ROUNDS * self._most_running


def roughly(seconds: float) -> str:
    """Write how long something takes, as exactly as anybody can know: ``~10 s``, ``~5 min``, ``~1 h 50 min``.

    Parameters
    ----------
    seconds : float
        From 0 on.
    """
    if seconds < 60:
        return f"~{math.ceil(seconds)} s" if seconds < 10 else f"~{math.ceil(seconds / 5) * 5} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"~{minutes} min"
    if minutes < 24 * 60:
        hours, minutes = divmod(round(minutes / 10) * 10, 60)
        return f"~{hours} h {minutes} min" if minutes else f"~{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"~{days} d {hours} h" if hours else f"~{days} d"
