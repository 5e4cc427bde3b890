"""Validate, store, enqueue; the handle of a running search."""

from __future__ import annotations

import copy
import getpass
import html
import os
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError

from gridfleet.scheduler.fleet.connection import Fleet, connect, read_only
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.progress import Display, display
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.storage import searches
from gridfleet.storage.errors import NameTakenError, SearchCancelledError, SearchNotFinishedError, SearchNotFoundError
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.schema import Search, SearchState, Trial
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions

if TYPE_CHECKING:
    import pandas as pd

    from gridfleet.scheduler.submission.joblib_backend import SearchRequest
    from gridfleet.worker.trial.cross_validation import Candidates

#: Seconds between looks at a search: short for short ones, longer the longer it takes.
FIRST_LOOK_S = 0.01
LAST_LOOK_S = 0.5
#: Seconds for which whoever waits for a search puts up with a database that does not answer.
DATABASE_RESTART_S = 120
#: Characters of an estimator's repr that are stored.
MAX_REPR = 1_000


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
        self._cache: dict[str, Any] = {}
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

        Raises
        ------
        TimeoutError
            If it takes longer. The search goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with display(self.name, verbose=verbose) as shown:
            self._wait(until, shown, stop_at_failure=False)
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

    def retry_failed(self) -> int:
        """Queue its failed trials once more, with their whole budget.

        Returns
        -------
        int
            How many trials; 0 for a cancelled search.
        """
        self._cache.clear()
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
        results = self.cv_results_
        score: float = results[f"mean_test_{self._metric(results)}"][self.best_index_]
        return score

    @property
    def best_index_(self) -> int:
        """Number of the best trial."""
        from sklearn.model_selection._search import BaseSearchCV

        results = self.cv_results_
        index: int = BaseSearchCV._select_best_index(self._candidates().refit, self._metric(results), results)
        return int(index)

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
        if "cv_results_" not in self._cache:
            from gridfleet.scheduler.results import scores as results

            self._require_finished()
            self._cache["cv_results_"] = results.cv_results(self.rows(), self._candidates(), self._summary().n_splits)
        cached: dict[str, Any] = self._cache["cv_results_"]
        return cached

    def to_frame(self) -> pd.DataFrame:
        """Return ``cv_results_`` as a pandas DataFrame, the best trial first."""
        import pandas as pd

        frame = pd.DataFrame(self.cv_results_)
        return frame.sort_values(f"rank_test_{self._metric(self.cv_results_)}", kind="stable")

    def rows(self) -> list[dict[str, Any]]:
        """Return what scikit-learn's ``_fit_and_score`` returned on the workers, call by call."""
        from gridfleet.scheduler.results import scores as results

        summary = self._summary()
        return results.fit_and_score_rows(
            self._fleet.database, self.id, self._candidates(), summary.n_splits, stopped=summary.error
        )

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

    def _wait(self, until: float | None, shown: Display, *, stop_at_failure: bool) -> reader.Progress:
        pause = FIRST_LOOK_S
        looked_at_fleet = time.monotonic()
        while True:
            progress = self._patient_progress()
            shown.show(progress)
            if progress.is_finished:
                return progress
            if stop_at_failure and progress.failed and reader.has_raised(self._fleet.database, self.id):
                return progress
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(
                    f"search {self.name!r} is not done: {progress.done} of {progress.total} trials; it goes on, "
                    "wait again with a longer timeout"
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

    def _candidates(self) -> Candidates:
        candidates: Candidates = self._fleet.payloads.get("candidates", self._summary().candidates_digest)
        return candidates

    def _metric(self, results: dict[str, Any]) -> str:
        metric = self._candidates().refit_metric
        if f"mean_test_{metric}" in results:
            return metric
        return next(key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_"))

    def _require_finished(self) -> None:
        progress = self.progress()
        if self.state == SearchState.CANCELLED:
            raise SearchCancelledError(
                f"search {self.name!r} was cancelled after {progress.completed} of {progress.total} trials; "
                "what was scored is in its view"
            )
        if not progress.is_finished:
            raise SearchNotFinishedError(
                f"search {self.name!r} is not done: {progress.done} of {progress.total} trials; call wait() first"
            )


class _Submitted(BaseException):
    """Leaves scikit-learn's ``fit`` once the search is stored."""

    def __init__(self, handle: SearchHandle) -> None:
        super().__init__(handle.name)
        self.handle = handle


def submit(
    search: Any,
    X: Any,
    y: Any = None,
    *,
    name: str | None = None,
    groups: Any = None,
    **fit_params: Any,
) -> SearchHandle:
    """Store a search, enqueue its trials, and return.

    Parameters
    ----------
    search : GridSearchCV or RandomizedSearchCV
        gridfleet's or scikit-learn's own; it is not changed. Searches that choose candidates by earlier
        results (halving) need `fit`.
    X, y : array-like
        As for ``fit``.
    name : str, default=None
        The search's name; None takes the search's own ``name``, or ``search-<id>``.
    groups : array-like of shape (n_samples,), default=None
        For splitters that need groups.
    **fit_params : dict
        As for ``fit``.

    Returns
    -------
    SearchHandle
        Its results, when they are there.

    Raises
    ------
    GridfleetError
        One sentence; nothing is stored then.
    """
    from gridfleet.scheduler.search_cv import fit_with
    from gridfleet.scheduler.submission.checks import (
        check_can_be_submitted,
        check_can_travel,
        check_has_rows,
        check_space,
    )
    from gridfleet.scheduler.submission.joblib_backend import FleetBackend

    check_can_be_submitted(search)
    check_space(search)
    check_has_rows(X)
    check_can_travel(search.estimator)
    name = name if name is not None else getattr(search, "name", None)
    if groups is not None:
        fit_params["groups"] = groups
    fleet = connect(n_jobs=search.n_jobs)

    def store_and_leave(request: SearchRequest) -> Any:
        raise _Submitted(store(fleet, request, name=name, options=SearchOptions.of(search)))

    shallow = copy.copy(search)  # and not a clone, which a generator as cv does not survive
    shallow.verbose = 0
    try:
        fit_with(FleetBackend(store_and_leave), shallow, X, y, **fit_params)
    except _Submitted as submitted:
        return submitted.handle
    raise AssertionError("scikit-learn's fit ended without asking joblib for a single fit")


def open_search(name_or_id: str | int) -> SearchHandle:
    """Find a search that was submitted, from any process.

    Parameters
    ----------
    name_or_id : str or int
        Its name or its id.

    Returns
    -------
    SearchHandle

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    fleet = read_only()
    summary = reader.find_search(fleet.database, name_or_id)
    return SearchHandle(fleet, summary.id, summary.name)


def run_search(
    request: SearchRequest, *, name: str | None, n_jobs: int | None, options: SearchOptions
) -> list[dict[str, Any]]:
    """Run one round of a search on the fleet and wait for it.

    Parameters
    ----------
    request : SearchRequest
        What scikit-learn wants evaluated.
    name : str or None
        The search's name; rounds after the first of a halving search get the next free one.
    n_jobs : int or None
        Worker processes of an embedded fleet.
    options : SearchOptions
        How trials are trained, and how long they may take.

    Returns
    -------
    list of dict
        The rows of ``_fit_and_score``.
    """
    fleet = connect(n_jobs=n_jobs)
    handle = store(fleet, request, name=name, options=options)
    stop_at_failure = request.arguments.get("error_score") == "raise"
    try:
        with display(handle.name, verbose=request.arguments.get("verbose", 0)) as shown:
            progress = handle._wait(None, shown, stop_at_failure=stop_at_failure)
    except KeyboardInterrupt:
        _say_how_to_go_on(fleet, handle)
        raise
    if not progress.is_finished:
        handle.cancel()
    return handle.rows()


def store(fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions) -> SearchHandle:
    """Validate a search, store it with all its trials in one transaction, and publish the messages.

    Raises
    ------
    InvalidSearchError, NotPicklableError, NameTakenError
        Before anything of the search is stored.
    """
    from gridfleet.scheduler.submission import checks
    from gridfleet.worker.trial.cross_validation import Candidates, Evaluation

    checks.check_name(name)
    options = options.checked(default_fit_mode=fleet.settings.fit_mode)
    checks.check_params(request.estimator, request.candidates)
    checks.check_finite(request.estimator, request.X, request.y, request.candidates)
    checks.warn_of_params_that_do_not_arrive(request.estimator, request.candidates)
    _check_name_is_free(fleet, name)
    candidates = Candidates(
        params=list(request.candidates),
        refit=getattr(request.caller, "refit", True),
        refit_metric=_refit_metric(request),
        return_train_score=bool(request.arguments.get("return_train_score")),
        error_score=request.arguments.get("error_score"),
        metrics=_metrics(request),
    )
    evaluation = Evaluation(request.estimator, request.arguments, request.config)
    digests = _store_payloads(
        fleet,
        evaluation=(evaluation, f"the estimator {type(request.estimator).__name__}"),
        candidates=(candidates, "a hyperparameter's value"),
        X=(request.X, "X"),
        y=(request.y, "y"),
        splits=(list(request.splits), "a split"),
    )
    with _name_taken_as_sentence(fleet, name), fleet.database.write() as connection:
        search_id, name = _insert_search(connection, request, candidates, name, options, digests)
        queue.create_trials(connection, search_id, candidates.params)
        create_search_view(connection, search_id, name, column_kinds(map(params_to_json, candidates.params)))
    _publish(fleet, search_id)
    return SearchHandle(fleet, search_id, name)


def _store_payloads(fleet: Fleet, **objects: tuple[Any, str]) -> dict[str, str]:
    """Store what a search needs, each with what an error calls it, and return the digests by column."""
    payloads = fleet.payloads
    # all are pickled before the first is stored: one that can't be must not leave the others behind
    prepared = [payloads.prepare(kind, obj, what=what) for kind, (obj, what) in objects.items()]
    return {f"{payload.kind.lower()}_digest": payloads.insert(payload) for payload in prepared}


def _insert_search(
    connection: Connection,
    request: SearchRequest,
    candidates: Candidates,
    name: str | None,
    options: SearchOptions,
    digests: dict[str, str],
) -> tuple[int, str]:
    scoring = getattr(request.caller, "scoring", None)
    random_state = request.estimator.get_params(deep=False).get("random_state")
    search_id: int = connection.execute(
        insert(Search)
        .values(
            # until its id is known, something that no other search has
            name=name if name is not None else f"search-{secrets.token_hex(8)}",
            strategy=type(request.caller).__name__,
            scoring=None if scoring is None else _shown(scoring),
            refit_metric=candidates.refit_metric,
            n_trials=len(candidates.params),
            n_splits=len(request.splits),
            random_state=None if random_state is None else _shown(random_state),
            **asdict(options),
            estimator=_shown(request.estimator),
            submitted_by=f"{_user()}@{socket.gethostname()}",
            **digests,
            **installed_versions(),
        )
        .returning(Search.id)
    ).scalar_one()
    if name is None:
        name = f"search-{search_id}"
        connection.execute(update(Search).where(Search.id == search_id).values(name=name))
    return search_id, name


def _publish(fleet: Fleet, search_id: int) -> None:
    # after the commit: a message about a trial that is not there yet would be lost
    with fleet.database.read() as connection:
        trials_of_search = connection.execute(
            select(Trial.id, Trial.structure_digest).where(Trial.search_id == search_id).order_by(Trial.number)
        )
        ids = _structures_in_turn([(row.id, row.structure_digest) for row in trials_of_search])
    if not fleet.publish(ids):
        print(  # noqa: T201 - for whoever waits at the terminal
            "gridfleet: the broker does not answer; the search is stored and starts as soon as it does",
            file=sys.stderr,
        )


def _structures_in_turn(trials_of_search: list[tuple[int, str | None]]) -> list[int]:
    """Order trials so that workers begin with different structures; each then stays with its own (`queue.choose`)."""
    seen: Counter[str | None] = Counter()
    turns = []
    for trial_id, structure in trials_of_search:
        turns.append((seen[structure], trial_id))
        seen[structure] += 1
    return [trial_id for _, trial_id in sorted(turns)]


def _check_name_is_free(fleet: Fleet, name: str | None) -> None:
    if name is None:
        return
    try:
        other = reader.find_search(fleet.database, name)
    except SearchNotFoundError:
        return
    raise NameTakenError(
        f"name={name!r} is taken by search {other.id} ({other.state}, {other.created_at:%Y-%m-%d %H:%M} UTC); "
        f"choose another, or read that one with open_search({other.name!r})"
    )


@contextmanager
def _name_taken_as_sentence(fleet: Fleet, name: str | None) -> Iterator[None]:
    """Say it in a sentence if another process took the name since we looked."""
    try:
        yield
    except IntegrityError:
        _check_name_is_free(fleet, name)
        raise


def _refit_metric(request: SearchRequest) -> str:
    refit = getattr(request.caller, "refit", True)
    metrics = _metrics(request)
    if isinstance(refit, str):
        return refit
    return metrics[0] if metrics else "score"


def _metrics(request: SearchRequest) -> list[str] | None:
    scorers = getattr(request.arguments.get("scorer"), "_scorers", None)
    return list(scorers) if isinstance(scorers, dict) else None


def _shown(obj: Any) -> str:
    text = " ".join(repr(obj).replace("\x00", "\\x00").split())
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _say_how_to_go_on(fleet: Fleet, handle: SearchHandle) -> None:
    progress = handle.progress()
    done = f"{progress.done} of {progress.total} trials done"
    again = f"from gridfleet import open_search; open_search({handle.name!r}).wait()"
    if fleet.is_embedded:
        said = f"search {handle.name!r} stops with this process ({done}); to resume it here: {again}, or `gridfleet up`"
    else:
        said = f"search {handle.name!r} goes on on the fleet ({done}); to get it back: {again}"
    print(f"\ngridfleet: {said}", file=sys.stderr)  # noqa: T201 - for whoever pressed Ctrl-C
