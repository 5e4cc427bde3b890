"""The handle of a search: wait for it, steer it, read its results."""

from __future__ import annotations

import html
import math
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import OperationalError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.causes import cause
from gridfleet.scheduler.reports.figures import score, with_deviation
from gridfleet.scheduler.reports.progress import Showing, display
from gridfleet.scheduler.results.fit_warnings import give_warnings
from gridfleet.scheduler.results.frames import without_our_frames
from gridfleet.scheduler.results.going_on import stopped_waiting
from gridfleet.scheduler.results.plots import Plots
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import BestModelError, PayloadError, SearchCancelledError, SearchNotFinishedError
from gridfleet.storage.plain import plain
from gridfleet.storage.refits import Refit, find_refit
from gridfleet.storage.search_states import ShownState, described
from gridfleet.storage.trials import queue
from gridfleet.storage.trials.proposed import samples
from gridfleet.worker.trial import scores
from gridfleet.worker.trial.sources import ScriptModules

if TYPE_CHECKING:
    import pandas as pd

    from gridfleet.scheduler.results.best_model import BestModel
    from gridfleet.worker.trial.cross_validation import Candidates

T = TypeVar("T")

#: Seconds between looks at a search: short for short ones, longer the longer it takes.
FIRST_LOOK_S = 0.01
LAST_LOOK_S = 0.5
#: What somebody is told who has waited long enough.
GOES_ON = "it goes on, wait again with a longer timeout"
NOT_DONE = {
    ShownState.PAUSED: "it is paused, and resume() goes on with it",
    ShownState.WAITING: "it goes on when a worker is there, and none is now",
}
#: Trials that a notebook shows.
SHOWN = 5
#: Seconds for which whoever waits for a search puts up with a database that does not answer.
DATABASE_RESTART_S = 120


@dataclass(frozen=True, slots=True)
class _Finished:
    """What a finished search came to, read once."""

    candidates: Candidates
    cv_results: dict[str, Any]
    #: numbers of trials that were pruned
    pruned: Collection[int] = ()

    @property
    def metric(self) -> str:
        """The metric that ranks the trials; where it is in no row, as that of trials that all failed, the first."""
        return scores.metric_of(self.cv_results, self.candidates)


class SearchHandle(Plots):
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
        self._loaded: BestModel | None = None
        self._has_warned = False
        self.id = search_id
        self.name = name

    @property
    def state(self) -> str:
        """What is with it now, as `gridfleet list` and the views say it.

        ``queued``, ``running``, ``waiting`` (no fleet is there), ``paused``, ``completed``, ``failed`` (nothing was
        scored), ``timed out`` or ``cancelled``.
        """
        return str(self._summary().state)

    def progress(self) -> reader.Progress:
        """Count its trials by state, as they are now."""
        return reader.progress(self._fleet.database, self.id)

    @without_our_frames
    def wait(self, timeout: float | None = None, *, verbose: int = 0) -> SearchHandle:
        """Wait until all trials are done, and the best model is fitted, if the fleet fits it.

        An embedded fleet that was stopped is started again.

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
        KeyboardInterrupt
            At Ctrl-C; what it says is whether the search goes on, and how to follow or stop it.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            with display(self.name, verbose=verbose, how=self._fleet.settings.progress) as shown:
                self._wait(until, shown)
        except KeyboardInterrupt:
            raise stopped_waiting(self._fleet, self.id, self.name) from None
        self._wait_for_refit(until, verbose=verbose)
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
        """Queue its failed trials once more, with their whole budget, or its refit, if only that failed.

        Returns
        -------
        int
            How many trials; 0 for a cancelled search.
        """
        self._finished_results = None
        self._loaded = None
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

    def delete(self) -> None:
        """Remove it: its trials, scores and view, and the payloads that no other search names. It must have ended.

        For those who submit: workers and readers may not.

        Raises
        ------
        SearchInUseError
            If trials of it are open, or views of others are made of its view. Nothing is removed then.
        """
        from gridfleet.storage import deletions

        deletions.delete_search(self._fleet.database, self.id)
        deletions.give_back_room(self._fleet.database, may_rewrite=False)

    @property
    def best_score_(self) -> float:
        """Mean score of the best trial, as scikit-learn's ``best_score_``."""
        finished = self._finished()
        score: float = finished.cv_results[f"mean_test_{finished.metric}"][self.best_index_]
        return score

    @property
    def best_index_(self) -> int:
        """Number of the best trial."""
        finished = self._finished()
        return scores.best_index(finished.cv_results, finished.candidates, finished.pruned)

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

    @property
    def best_estimator_(self) -> Any:
        """The best model, as the refit on the fleet fitted it; loading it runs what is in it, which a worker signed.

        Raises
        ------
        SearchNotFinishedError
            If it is not fitted yet.
        SearchCancelledError
            If the search was cancelled.
        BestModelError
            If the search has none, its refit failed, or it can't be loaded with the releases that are installed here.
        PayloadSignatureError
            If it is not what was signed.
        """
        return self._best_model().estimator

    @property
    def refit_time_(self) -> float:
        """Seconds that the refit took."""
        return self._best_model().refit_time or 0.0

    def predict(self, X: Any) -> Any:
        """Return what the best model predicts."""
        return self.best_estimator_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities that the best model predicts, if it has them."""
        return self.best_estimator_.predict_proba(X)

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of the probabilities that the best model predicts, if it has them."""
        return self.best_estimator_.predict_log_proba(X)

    def decision_function(self, X: Any) -> Any:
        """Return what the best model decides by, if it has that."""
        return self.best_estimator_.decision_function(X)

    def transform(self, X: Any) -> Any:
        """Return X as the best model transforms it, if it does."""
        return self.best_estimator_.transform(X)

    def inverse_transform(self, X: Any) -> Any:
        """Return X as it was before the best model transformed it, if it can."""
        return self.best_estimator_.inverse_transform(X)

    def score_samples(self, X: Any) -> Any:
        """Return the best model's score of each sample, if it has that."""
        return self.best_estimator_.score_samples(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the best model's score on other data, by the scoring that chose it."""
        estimator = self.best_estimator_
        summary = self._summary()
        metric = self._candidates(summary).refit_metric
        scorer = self._payload(summary, "evaluation", summary.evaluation_digest).arguments["scorer"]
        scorer = (getattr(scorer, "_scorers", None) or {}).get(metric, scorer)
        score = scorer(estimator, X, y)
        return float(score[metric] if isinstance(score, dict) else score)

    def to_frame(self, *, partial: bool = False) -> pd.DataFrame:
        """Return ``cv_results_`` as a pandas DataFrame, the best trial first.

        Parameters
        ----------
        partial : bool, default=False
            Whether a search that goes on or was cancelled gives the trials that have ended by now, ranked among
            themselves. One that failed has ``error_score``, or NaN where that is ``"raise"``.

        Returns
        -------
        pandas.DataFrame
            Its index are the trials' numbers.

        Raises
        ------
        SearchNotFinishedError, SearchCancelledError
            If the search has not all results, without `partial`.
        """
        import pandas as pd

        if not partial:
            finished, numbers = self._finished(), None
        elif (so_far := self._finished_by_now()) is None:
            return pd.DataFrame()
        else:
            finished, numbers = so_far
        return pd.DataFrame(finished.cv_results, index=numbers).sort_values(
            f"rank_test_{finished.metric}", kind="stable"
        )

    def failures(self) -> pd.DataFrame:
        """Return the trials that failed, and why, as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            By number, with the names of the table ``trials``: ``number``, ``params``, ``error_type``, ``cause`` (the
            line that says it), ``error`` (the whole traceback), ``attempt`` (how many there were), ``worker_id`` (host
            and process of the last one).
        """
        import pandas as pd

        failed = trial_reader.failures(self._fleet.database, self.id, limit=None)
        columns = ["number", "params", "error_type", "cause", "error", "attempt", "worker_id"]
        rows = [{**asdict(trial), "cause": cause(trial.error, trial.error_type)} for trial in failed]
        return pd.DataFrame(rows, columns=columns)

    def rows(self) -> list[dict[str, Any]]:
        """Return what scikit-learn's ``_fit_and_score`` returned on the workers, call by call.

        Of a search that is not finished, trials that have no result count as fits that raised.
        """
        summary = self._summary()
        return self._rows(summary, self._candidates(summary))

    def _stored_search(self) -> tuple[Database, int]:
        return self._fleet.database, self.id

    def _proposed_params(self) -> list[dict[str, Any]]:
        """Return the hyperparameters of its trials, by number."""
        return list(self._candidates(self._summary()).params)

    def __repr__(self) -> str:
        return f"<SearchHandle {self.name!r} (id {self.id}): {self._described()}>"

    def _described(self) -> str:
        """Say how far it is, in the words of `state`, with what is best so far."""
        progress = self.progress()
        best = f"best {progress.metric} {with_deviation(progress.best_score, progress.std_test_score)}"
        facts = [described(progress.state), progress.counts, "" if progress.best_score is None else best]
        return ", ".join(filter(None, facts))

    def _repr_html_(self) -> str:
        ranked = trial_reader.leaderboard(self._fleet.database, self.id, limit=SHOWN)
        names = dict.fromkeys(name for trial in ranked for name in trial.params)
        header = ["rank", "number", "mean_test_score", "std_test_score", *names]
        rows = [
            [
                trial.rank,
                trial.number,
                score(trial.mean_test_score),
                score(trial.std_test_score),
                *(trial.params.get(name, "") for name in names),
            ]
            for trial in ranked
        ]
        table = "".join([_html_row("th", header), *(_html_row("td", row) for row in rows)]) if ranked else ""
        said = f"<b>{_html(self.name)}</b>: {_html(self._described())}"
        return f"<p>{said}</p><table>{table}</table>"

    def _give_warnings(self) -> None:
        """Give what the fits warned of, once."""
        if not self._has_warned:
            self._has_warned = True
            summary = self._summary()
            give_warnings(self._fleet.database, self.id, n_fits=summary.n_trials * summary.n_splits)
            refit = find_refit(self._fleet.database, self.id)
            if refit is not None:
                give_warnings(self._fleet.database, refit.search_id, n_fits=1)

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
                said = f"search {self.name!r} is not done: {progress.done} of {progress.total} trials"
                raise TimeoutError(f"{said}; {NOT_DONE.get(progress.state, GOES_ON)}")
            if time.monotonic() - looked_at_fleet > 1:
                self._fleet.keep_running()
                looked_at_fleet = time.monotonic()
            time.sleep(pause)
            pause = min(pause * 1.02, LAST_LOOK_S)

    def _wait_for_refit(self, until: float | None, *, verbose: int = 0) -> None:
        """Wait until the refit on the fleet has ended, however it did; there may be none."""
        try:
            self._look_until_refitted(until, verbose=verbose)
        except KeyboardInterrupt:
            raise stopped_waiting(self._fleet, self.id, self.name) from None

    def _look_until_refitted(self, until: float | None, *, verbose: int) -> None:
        looked_at_fleet = -math.inf
        pause = FIRST_LOOK_S
        while (refit := self._patiently(self._refit)) is not None and not refit.is_finished:
            if looked_at_fleet == -math.inf:
                self._begin_refit(refit, verbose=verbose)
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(
                    f"the best model of search {self.name!r} is not fitted yet; that goes on, wait again with a longer "
                    "timeout"
                )
            if time.monotonic() - looked_at_fleet > 1:
                self._fleet.keep_running()
                looked_at_fleet = time.monotonic()
            time.sleep(pause)
            pause = min(pause * 1.1, LAST_LOOK_S)

    def _begin_refit(self, refit: Refit, *, verbose: int) -> None:
        """Say that it is waited for, and send its message, which the reconciler may not have come to."""
        if verbose and self._fleet.settings.progress != "quiet":
            print(f"{plain(self.name)}: fitting the best params on all data", file=sys.stderr)  # noqa: T201 - as all progress
        if self._fleet.settings.secret_key is not None:  # who submits
            self._fleet.publish(queue.never_published(self._fleet.database, [refit.trial_id]))

    def _goes_on(self) -> bool:
        """Whether a fleet has something to do for it."""
        refit = self._refit()
        return not self._summary().is_finished or (refit is not None and not refit.is_finished)

    def _refit(self) -> Refit | None:
        return find_refit(self._fleet.database, self.id)

    def _best_model(self) -> BestModel:
        if self._loaded is None:
            from gridfleet.scheduler.results.best_model import load_best_model

            summary = self._summary()
            self._loaded = load_best_model(self._fleet, summary, self._stored_refit(summary))
        return self._loaded

    def _stored_refit(self, summary: reader.SearchSummary) -> Refit:
        """Return the refit of a search, whose model is there.

        Raises
        ------
        GridfleetError
            If it is not, with the reason.
        """
        self._require_finished(summary)
        refit = self._refit()
        if refit is None:
            raise BestModelError(
                f"search {self.name!r} has no best model on the fleet: its script fitted that itself, or it has "
                "refit=False. submit() with refit, or fit() with refit_on='fleet', stores one"
            )
        if refit.is_stored:
            return refit
        if not refit.is_finished:
            raise SearchNotFinishedError(f"the best model of search {self.name!r} is not fitted yet; call wait() first")
        if refit.error_type is None:
            raise BestModelError(
                f"search {self.name!r} has no best model: {plain(refit.error or 'its refit was cancelled')}"
            )
        raise BestModelError(
            f"the refit of search {self.name!r} failed: {plain(cause(refit.error, refit.error_type))}; "
            f"`gridfleet retry-failed {shlex.quote(self.name)}` or retry_failed() tries it once more"
        ) from scores.rebuild_exception(refit.error_type, refit.error, refit.exception)

    def _patient_progress(self) -> reader.Progress:
        """Count trials; a database that restarts meanwhile is waited for, as the search goes on."""
        return self._patiently(self.progress)

    def _patiently(self, look: Callable[[], T]) -> T:
        until = time.monotonic() + DATABASE_RESTART_S
        while True:
            try:
                return look()
            except OperationalError:
                if time.monotonic() > until:
                    self._fleet.database.check()  # says it in a sentence
                    raise
                time.sleep(LAST_LOOK_S)

    def _summary(self) -> reader.SearchSummary:
        return reader.find_search(self._fleet.database, self.id)

    def _candidates(self, summary: reader.SearchSummary) -> Candidates:
        candidates: Candidates = self._payload(summary, "candidates", summary.candidates_digest)
        if not candidates.are_proposed:
            return candidates
        return candidates.proposed(samples(self._fleet.database, self.id))

    def _payload(self, summary: reader.SearchSummary, kind: str, digest: str) -> Any:
        payloads = self._fleet.payloads
        try:
            return payloads.get(kind, digest)
        except PayloadError:
            if summary.sources_digest is None:
                raise
            # of a script whose modules this process does not find, or finds changed
            with ScriptModules(payloads, self._fleet.settings).of_search(summary.sources_digest, payloads.get):
                return payloads.get(kind, digest)

    def _rows(self, summary: reader.SearchSummary, candidates: Candidates) -> list[dict[str, Any]]:
        database = self._fleet.database
        return scores.fit_and_score_rows(database, self.id, candidates, summary.n_splits, stopped=summary.error)

    def _finished_by_now(self) -> tuple[_Finished, list[int]] | None:
        """Return what the trials came to that have ended, and their numbers; None before the first."""
        summary = self._summary()
        candidates = self._candidates(summary)
        numbers, rows = scores.rows_by_now(self._fleet.database, self.id, candidates, summary.n_splits)
        if not numbers:
            return None
        params = [candidates.params[number] for number in numbers]
        error_score = math.nan if candidates.error_score == "raise" else candidates.error_score
        candidates = replace(candidates, params=params, error_score=error_score, numbers=numbers)
        return _Finished(candidates, scores.cv_results(rows, candidates, summary.n_splits)), numbers

    def _finished(self) -> _Finished:
        if self._finished_results is None:
            summary = self._summary()
            self._require_finished(summary)
            candidates = self._candidates(summary)
            rows = self._rows(summary, candidates)
            self._finished_results = _Finished(
                candidates,
                scores.cv_results(rows, candidates, summary.n_splits),
                scores.pruned_numbers(rows, summary.n_splits),
            )
        return self._finished_results

    def _require_finished(self, summary: reader.SearchSummary) -> None:
        if summary.state == ShownState.CANCELLED:
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


def _html(value: object) -> str:
    return html.escape(plain(str(value)))


def _html_row(kind: str, cells: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{kind}>{_html(cell)}</{kind}>' for cell in cells)}</tr>"
