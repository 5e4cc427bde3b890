"""The lines that scikit-learn prints of each fit from ``verbose=2`` on, printed here as trials end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from joblib.logger import short_format_time

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.progress import Showing
from gridfleet.storage.database.connection import Database
from gridfleet.storage.trials.proposed import samples
from gridfleet.storage.trials.recorded import trial_rows
from gridfleet.worker.trial.cross_validation import Candidates
from gridfleet.worker.trial.scores import recorded_splits


class FitLines:
    """Shows progress as another does, and prints the lines of the fits that were recorded meanwhile.

    Parameters
    ----------
    shown : Showing
        The other.
    database, search_id
        The search's.
    candidates : Candidates
        Its combinations.
    n_splits : int
        Splits of each.
    verbose : int
        scikit-learn's: 3 and more with scores, 10 and more with the candidate's number.
    """

    def __init__(
        self, shown: Showing, database: Database, search_id: int, candidates: Candidates, n_splits: int, *, verbose: int
    ) -> None:
        self._shown = shown
        self._database = database
        self._search_id = search_id
        self._candidates = candidates
        self._n_splits = n_splits
        self._verbose = verbose
        self._n_done = 0
        self._newest: datetime | None = None
        self._printed: set[int] = set()

    def show(self, progress: reader.Progress) -> None:
        """Show progress, and print the lines of trials that ended since the last time."""
        self._shown.show(progress)
        if progress.done == self._n_done:
            return
        self._n_done = progress.done
        # at the end all are looked at: one may be seen later than another that finished after it
        since = None if progress.is_finished else self._newest
        rows = [
            row
            for row in trial_rows(self._database, self._search_id, finished_since=since)
            if row.finished_at is not None and row.number not in self._printed
        ]
        if self._candidates.are_proposed:
            shown = samples(self._database, self._search_id)
            self._candidates = self._candidates.proposed(shown, self._candidates.params)
        for (number, split), row in recorded_splits(rows, self._candidates).items():
            for line in self._lines(number, split, row):
                print(line, flush=True)  # noqa: T201 - to standard output, as scikit-learn does
        self._printed.update(row.number for row in rows)
        self._newest = max((row.finished_at for row in rows), default=self._newest)

    def _lines(self, number: int, split: int, row: dict[str, Any]) -> Sequence[str]:
        place = f" {split + 1}/{self._n_splits}" if self._verbose > 2 else ""
        if self._verbose > 9:
            place += f"; {number + 1}/{len(self._candidates.params)}"
        params = self._candidates.params[number]
        shown = ", ".join(f"{name}={params[name]}" for name in sorted(params))
        scores = self._scores(row) if self._verbose > 2 else ""
        time = short_format_time(row["fit_time"] + row["score_time"])
        end, result = f"[CV{place}] END ", f"{shown}{';' if shown else ''}{scores} total time={time}"
        line = f"{end}{'.' * (80 - len(end) - len(result))}{result}"
        if self._verbose <= 9:
            return [line]
        start = f"[CV{place}] START {shown}"
        return [f"{start}{'.' * (80 - len(start))}", line]

    def _scores(self, row: dict[str, Any]) -> str:
        test, train = row["test_scores"], row.get("train_scores")
        if isinstance(test, dict):
            of = {
                name: f"train={train[name]:.3f}, test={test[name]:.3f}" if train else f"test={test[name]:.3f}"
                for name in sorted(test)
            }
            return "".join(f" {name}: ({scores})" for name, scores in of.items())
        return f", score=(train={train:.3f}, test={test:.3f})" if train is not None else f", score={test:.3f}"
