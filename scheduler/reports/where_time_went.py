"""What the seconds of a search's trials were spent on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from gridfleet.scheduler.reports.fair_sample import drawn
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Trial

#: The parts of a trial in their order; columns of ``trials`` with ``_time`` behind it.
PARTS = ("build", "trace", "compile", "train", "score", "record")


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Seconds of a search's trials by what they were spent on.

    Parameters
    ----------
    seconds : dict of str to float
        By `PARTS`, summed over the trials that were looked at.
    n_trials : int
        Trials among them of which it is known.
    is_sample : bool
        Whether those were drawn by lot.
    """

    seconds: dict[str, float]
    n_trials: int
    is_sample: bool

    @property
    def total(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())


def where_time_went(database: Database, search_id: int, n_trials: int) -> TimeSpent | None:
    """Add up the times of a search's trials, of a large one's those that were drawn; None where none is known."""
    numbers = drawn(search_id, n_trials)
    is_sample = len(numbers) < n_trials
    sums = [func.sum(getattr(Trial, f"{part}_time")).label(part) for part in PARTS]
    query = select(*sums, func.count(Trial.train_time).label("n")).where(Trial.search_id == search_id)
    if is_sample:
        query = query.where(Trial.number.in_(numbers))
    with database.read() as connection:
        row = connection.execute(query).one()
    if not row.n:
        return None
    return TimeSpent({part: float(row._mapping[part] or 0) for part in PARTS}, row.n, is_sample)
