"""The handle of a search: wait for it, steer it, read its results."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import OperationalError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.progress import Showing, display
from gridfleet.scheduler.results import scores
from gridfleet.scheduler.results.fit_warnings import give_warnings
from gridfleet.storage import searches
from gridfleet.storage.errors import PayloadError, SearchCancelledError, SearchNotFinishedError
from gridfleet.storage.schema import SearchState
from gridfleet.worker.trial.sources import ScriptModules

if TYPE_CHECKING:
    import pandas as pd

    from gridfleet.worker.trial.cross_validation import Candidates

#: Seconds between looks at a search: short for short ones, longer the longer it takes.
FIRST_LOOK_S = 0.01
LAST_LOOK_S = 0.5
#: Seconds for which whoever waits for a search puts up with a database that does not answer.
DATABASE_RESTART_S = 120


@dataclass(frozen=True, slots=True)
class _Finished:
    """What a finished search came to, read once."""

    candidates: Candidates
    cv_results: dict[str, Any]

    @property
    def metric(self) -> str:
        """The metric that ranks the trials; where it is in no row, as that of trials that all failed, the first."""
        if f"mean_test_{self.candidates.refit_metric}" in self.cv_results:
            return self.candidates.refit_metric
        return next(key.removeprefix("mean_test_") for key in self.cv_results if key.startswith("mean_test_"))


class SearchHandle:
    """A stored search: wait for it, cancel it, read its results, from any process.

    Made by `submit` and `open_search`.

    Attributes
    ----------
    id : int
        Its id in the table ``searches``.
    name : str
        Its name, also that of its view.
    """

    def __init__(self, fleet: Fleet, search_id: int, name: str) -> None:
        self._fleet = fleet
        self._finished_results: _Finished | None = None
        self._has_warned = False
        self.id = search_id
        self.name = name

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``paused``, ``completed`` or ``cancelled``, as it is now."""
        return self._summary().state

    def progress(self) -> reader.Progress:
        """Count its trials by state, as they are now."""
        return reader.progress(self._fleet.database, self.id)

    def wait(self, timeout: float | None = None, *, verbose: int = 0) -> SearchHandle:
        """Wait until all trials are done; an embedded fleet that was stopped is started again.

        Parameters
        ----------
        timeout : float, default=None
            Seconds to wait at most.
        verbose : int, default=0
            Above 0: show progress on standard error.

        Returns
        -------
        SearchHandle
            This one.

        Warns
        -----
        Warning
            What fits and scores warned of on the workers, once each.

        Raises
        ------
        TimeoutError
            If it takes longer. The search goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with display(self.name, verbose=verbose) as shown:
            self._wait(until, shown)
        self._give_warnings()
        return self

    def pause(self) -> bool:
        """Pause it: no trial of it starts any more; those that run go on to their end.

        Returns
        -------
        bool
            False if it was paused or finished already.
        """
        return searches.pause_search(self._fleet.database, self.id)

    def resume(self) -> bool:
        """Go on with it after a pause.

        Returns
        -------
        bool
            False if it was not paused.
        """
        return searches.resume_search(self._fleet.database, self.id)

    def set_priority(self, priority: int) -> bool:
        """Let its trials start before those of searches with a lower priority, from now on.

        Parameters
        ----------
        priority : int
            From -1000 to 1000; searches have 0 unless they were given another.

        Returns
        -------
        bool
            False if it was finished already.

        Raises
        ------
        InvalidSearchError
            If it is no such number.
        """
        return searches.set_priority(self._fleet.database, self.id, priority)

    def retry_failed(self) -> int:
        """Queue its failed trials once more, with their whole budget.

        Returns
        -------
        int
            How many trials; 0 for a cancelled search.
        """
        self._finished_results = None
        self._has_warned = False
        return searches.retry_failed(self._fleet.database, self.id)

    def cancel(self) -> bool:
        """Cancel it: queued trials at once, running ones as soon as their workers see it.

        Returns
        -------
        bool
            False if it was finished already.
        """
        return searches.cancel_search(self._fleet.database, self.id)

    @property
    def best_score_(self) -> float:
        """Mean score of the best trial, as scikit-learn's ``best_score_``."""
        finished = self._finished()
        score: float = finished.cv_results[f"mean_test_{finished.metric}"][self.best_index_]
        return score

    @property
    def best_index_(self) -> int:
        """Number of the best trial."""
        from sklearn.model_selection._search import BaseSearchCV

        finished = self._finished()
        refit = finished.candidates.refit
        return int(BaseSearchCV._select_best_index(refit, finished.metric, finished.cv_results))

    @property
    def best_params_(self) -> dict[str, Any]:
        """Hyperparameters of the best trial."""
        params: dict[str, Any] = self.cv_results_["params"][self.best_index_]
        return params

    @property
    def cv_results_(self) -> dict[str, Any]:
        """scikit-learn's ``cv_results_``.

        Raises
        ------
        SearchNotFinishedError
            If trials are still open.
        SearchCancelledError
            If it was cancelled.
        """
        return self._finished().cv_results

    def to_frame(self) -> pd.DataFrame:
        """Return ``cv_results_`` as a pandas DataFrame, the best trial first."""
        import pandas as pd

        finished = self._finished()
        return pd.DataFrame(finished.cv_results).sort_values(f"rank_test_{finished.metric}", kind="stable")

    def rows(self) -> list[dict[str, Any]]:
        """Return what scikit-learn's ``_fit_and_score`` returned on the workers, call by call.

        Of a search that is not finished, trials that have no result count as fits that raised.
        """
        summary = self._summary()
        return self._rows(summary, self._candidates(summary))

    def __repr__(self) -> str:
        progress = self.progress()
        best = "" if progress.best_score is None else f", best_score_={progress.best_score:.6g}"
        return (
            f"SearchHandle(id={self.id}, name={self.name!r}, state={self.state!r}, "
            f"done={progress.done}/{progress.total}, failed={progress.failed}{best})"
        )

    def _repr_html_(self) -> str:
        progress = self.progress()
        rows = "".join(
            f"<tr><td>{trial.rank}</td><td>{trial.mean_test_score:.6g}</td>"
            f"<td>{html.escape(str(trial.params))}</td></tr>"
            for trial in reader.leaderboard(self._fleet.database, self.id, limit=5)
        )
        return (
            f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.state)}, "
            f"{progress.done} of {progress.total} trials done, {progress.failed} failed</p>"
            f"<table><tr><th>rank</th><th>mean_test_score</th><th>params</th></tr>{rows}</table>"
        )

    def _give_warnings(self) -> None:
        """Give what the fits warned of, once."""
        if not self._has_warned:
            self._has_warned = True
            summary = self._summary()
            give_warnings(self._fleet.database, self.id, n_fits=summary.n_trials * summary.n_splits)

    def _wait(
        self, until: float | None, shown: Showing, *, may_stop: Callable[[], bool] | None = None
    ) -> reader.Progress:
        pause = FIRST_LOOK_S
        looked_at_fleet = time.monotonic()
        while True:
            progress = self._patient_progress()
            shown.show(progress)
            if progress.is_finished:
                return progress
            if progress.failed and may_stop is not None and may_stop():
                return progress
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(
                    f"search {self.name!r} is not done: {progress.done} of {progress.total} trials; "
                    + (
                        "it is paused, and resume() goes on with it"
                        if progress.is_paused
                        else "it goes on, wait again with a longer timeout"
                    )
                )
            if time.monotonic() - looked_at_fleet > 1:
                self._fleet.keep_running()
                looked_at_fleet = time.monotonic()
            time.sleep(pause)
            pause = min(pause * 1.02, LAST_LOOK_S)

    def _patient_progress(self) -> reader.Progress:
        """Count trials; a database that restarts meanwhile is waited for, as the search goes on."""
        until = time.monotonic() + DATABASE_RESTART_S
        while True:
            try:
                return self.progress()
            except OperationalError:
                if time.monotonic() > until:
                    self._fleet.database.check()  # says it in a sentence
                    raise
                time.sleep(LAST_LOOK_S)

    def _summary(self) -> reader.SearchSummary:
        return reader.find_search(self._fleet.database, self.id)

    def _candidates(self, summary: reader.SearchSummary) -> Candidates:
        payloads = self._fleet.payloads
        try:
            candidates: Candidates = payloads.get("candidates", summary.candidates_digest)
        except PayloadError:
            if summary.sources_digest is None:
                raise
            # of a script whose modules this process does not find, or finds changed
            with ScriptModules(payloads, self._fleet.settings).of_search(summary.sources_digest, payloads.get):
                candidates = payloads.get("candidates", summary.candidates_digest)
        return candidates

    def _rows(self, summary: reader.SearchSummary, candidates: Candidates) -> list[dict[str, Any]]:
        database = self._fleet.database
        return scores.fit_and_score_rows(database, self.id, candidates, summary.n_splits, stopped=summary.error)

    def _finished(self) -> _Finished:
        if self._finished_results is None:
            summary = self._summary()
            self._require_finished(summary)
            candidates = self._candidates(summary)
            rows = self._rows(summary, candidates)
            self._finished_results = _Finished(candidates, scores.cv_results(rows, candidates, summary.n_splits))
        return self._finished_results

    def _require_finished(self, summary: reader.SearchSummary) -> None:
        if summary.state == SearchState.CANCELLED:
            progress = self.progress()
            raise SearchCancelledError(
                f"search {self.name!r} was cancelled after {progress.completed} of {progress.total} trials; "
                "what was scored is in its view"
            )
        if not summary.is_finished:
            progress = self.progress()
            raise SearchNotFinishedError(
                f"search {self.name!r} is not done: {progress.done} of {progress.total} trials; call wait() first"
            )
