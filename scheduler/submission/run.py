"""Run a search on the fleet and wait for it: what ``fit`` does, and scikit-learn's own searches by joblib."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from joblib.parallel import register_parallel_backend

from gridfleet.scheduler.fleet.connection import connect
from gridfleet.scheduler.reports import trial_reader
from gridfleet.scheduler.reports.progress import display, name_the_page_at_a_terminal
from gridfleet.scheduler.results.best_model import BestModel
from gridfleet.scheduler.results.fit_lines import FitLines
from gridfleet.scheduler.results.going_on import nothing_stored_yet, stopped_waiting
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.scheduler.submission.checks import check_name
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import SearchOptions, check_options, check_switch
from gridfleet.scheduler.submission.publish import publish
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.scheduler.submission.resume import resume_or_store_in_turn
from gridfleet.scheduler.submission.store import candidates_of, store
from gridfleet.storage.errors import ProposalError, SearchNotFinishedError
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.plain import plain
from gridfleet.storage.search_states import STOPPED
from gridfleet.storage.searches import numbered_name

#: Why a search that was stopped has no result at all.
NOTHING_EVALUATED = "the search was stopped before its first trial; give it more time"


class Proposed(BaseException):
    """Leaves scikit-learn's ``evaluate_candidates`` once the trials of a search are there that learns.

    It is called again with what was proposed, and then returns what was recorded.
    """

    def __init__(self, params: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(params)} trials")
        self.params = params


class SearchRun:
    """Evaluates what a search asks for, round by round: most have one, scikit-learn's own halving searches several.

    Parameters
    ----------
    name : str or None
        The search's name in SQL; None: ``search-<id>``.
    options : SearchOptions
        How trials are trained, and how long they may take.
    references : References, default=None
        Which of the data travel by reference.
    load_if_exists : bool, default=False
        Whether a search of that name is gone on with if it is the same, round by round.
    reuse : bool, default=False
        Whether trials whose computation was done before take the results of then.
    refits : bool, default=False
        Whether the best combination is fitted on the fleet.
    """

    def __init__(
        self,
        *,
        name: str | None,
        options: SearchOptions,
        references: References | None = None,
        load_if_exists: bool = False,
        reuse: bool = False,
        refits: bool = False,
    ) -> None:
        check_name(name)  # before a fleet starts, as all that is known now
        self.refits = refits
        self._handle: SearchHandle | None = None
        self._name = name
        self._options = options
        self._references = references
        self._load_if_exists = load_if_exists
        self._reuse = reuse
        self._caller: Any = None
        self._rounds = 0
        self._first_name = ""
        self._of_proposals: list[dict[str, Any]] | None = None

    def __call__(self, request: SearchRequest) -> Sequence[dict[str, Any]]:
        """Return the rows of ``_fit_and_score``."""
        if self._of_proposals is not None:
            rows, self._of_proposals = self._of_proposals, None
            return rows
        if request.rounds is not None and request.rounds.rows:  # all were evaluated with the first
            request.rounds.n_returned += 1
            return request.rounds.rows[request.rounds.n_returned - 1]
        if request.caller is not self._caller:
            self._caller, self._rounds = request.caller, 0
        self._rounds += 1
        name = self._name
        # scikit-learn's own halving search asks again with fewer candidates and more data: a search of its own in SQL
        if name is not None and self._rounds > 1:
            name = numbered_name(self._first_name, f"-round-{self._rounds}")
        request = replace(request, references=self._references, refits_on_fleet=self.refits)
        self._handle, rows = run_search(
            request, name=name, options=self._options, load_if_exists=self._load_if_exists, reuse=self._reuse
        )
        if self._rounds == 1:
            self._first_name = self._handle.name
        if request.proposals is not None:
            self._of_proposals = rows
            raise Proposed(self._handle._proposed_params())
        if request.rounds is not None:
            request.rounds.take(self._handle._proposed_params(), rows)
            if not request.rounds.rows:
                raise SearchNotFinishedError(NOTHING_EVALUATED)
            request.rounds.n_returned = 1
            return request.rounds.rows[0]
        return rows

    def stored(self) -> tuple[str, int] | None:
        """Return the fleet and the search that was run last, by their ids."""
        return None if self._handle is None else (fleet_id(self._handle._fleet.database), self._handle.id)

    def best_model(self, *, verbose: int) -> BestModel:
        """Wait until the best combination is fitted on the fleet, and return what came out."""
        if self._handle is None:
            raise RuntimeError("no search was run")
        self._handle._wait_for_refit(None, verbose=verbose)
        return self._handle._best_model()


def run_search(
    request: SearchRequest,
    *,
    name: str | None,
    options: SearchOptions,
    load_if_exists: bool = False,
    reuse: bool = False,
) -> tuple[SearchHandle, list[dict[str, Any]]]:
    """Store a request as a search of its own and wait for its trials.

    Parameters
    ----------
    request : SearchRequest
        What scikit-learn wants evaluated.
    name : str or None
        The search's name; one that is taken gets a number behind it.
    options : SearchOptions
        How trials are trained, and how long they may take.
    load_if_exists : bool, default=False
        Whether a search of that name is gone on with if it is the same.
    reuse : bool, default=False
        Whether trials whose computation was done before take the results of then.

    Returns
    -------
    handle : SearchHandle
        The search.
    rows : list of dict
        The rows of ``_fit_and_score``.
    """
    with nothing_stored_yet():
        fleet = connect(n_jobs=request.n_jobs)
    if load_if_exists:
        handle, is_new = resume_or_store_in_turn(fleet, request, name=name, options=options, reuse=reuse)
    else:
        handle, is_new = store(fleet, request, name=name, options=options, numbered=True, reuse=reuse), True
    verbose = request.arguments.get("verbose", 0)
    any_error = request.arguments.get("error_score") == "raise"
    if verbose and is_new and name not in (None, handle.name) and fleet.settings.progress != "quiet":
        _say_that_it_is_numbered(str(name), handle.name)
    try:
        if is_new:
            publish(fleet, handle.id)
        name_the_page_at_a_terminal(verbose=verbose, how=fleet.settings.progress)
        with display(handle.name, verbose=verbose, how=fleet.settings.progress) as shown:
            lines = FitLines(
                shown, fleet.database, handle.id, candidates_of(request), request.n_splits, verbose=verbose
            )
            progress = handle._wait(
                None,
                lines if verbose > 1 else shown,
                may_stop=lambda: trial_reader.has_raised(fleet.database, handle.id, any_error=any_error),
            )
    except KeyboardInterrupt:
        raise stopped_waiting(fleet, handle.id, handle.name) from None
    if not progress.is_finished:
        handle.cancel()
    handle._give_warnings()
    _require_proposals(handle)
    if fleet.is_embedded and fleet.settings.linger_s and verbose and fleet.settings.progress != "quiet":
        _say_that_it_lingers(fleet.settings.home, fleet.settings.linger_s)
    return handle, handle.rows()


def _require_proposals(handle: SearchHandle) -> None:
    """Make sure that a search did not end because nothing could be proposed any more."""
    error = handle._summary().error
    if error is not None and not error.startswith(STOPPED):
        raise ProposalError(
            f"search {handle.name!r} ended early, as {plain(error)}; what was scored until then is in its view, and "
            "load_if_exists=True goes on with it"
        )


def register_joblib_backend() -> None:
    """Make ``joblib.parallel_config(backend="gridfleet")`` work for scikit-learn's own searches.

    Its further arguments are ``name``, ``fit_mode``, ``trial_timeout``, ``search_timeout``, ``load_if_exists``,
    ``reuse``, ``priority``, ``keep_curves`` and ``tags``, as `GridSearchCV` has them.

    Examples
    --------
    >>> import joblib
    >>> from gridfleet import register_joblib_backend
    >>> register_joblib_backend()
    >>> with joblib.parallel_config(backend="gridfleet", name="pima"):  # doctest: +SKIP
    ...     search.fit(X, y)
    """
    register_parallel_backend("gridfleet", _backend)


def _backend(
    name: str | None = None,
    fit_mode: str | None = None,
    trial_timeout: float | None = None,
    search_timeout: float | None = None,
    load_if_exists: bool = False,
    reuse: bool = False,
    priority: int = 0,
    keep_curves: bool | None = None,
    tags: Mapping[str, str] | None = None,
    **joblib_options: Any,
) -> FleetBackend:
    run = SearchRun(
        name=name,
        options=check_options(fit_mode, trial_timeout, search_timeout, priority, keep_curves, tags),
        load_if_exists=check_switch("load_if_exists", load_if_exists),
        reuse=check_switch("reuse", reuse),
    )
    return FleetBackend(run, **joblib_options)


def _say_that_it_is_numbered(name: str, numbered: str) -> None:
    print(  # noqa: T201 - where the progress is shown
        f"gridfleet: the name {name!r} is taken, so this search is {numbered!r}; load_if_exists=True goes on with the "
        "one that has it, if it is the same",
        file=sys.stderr,
    )


@cache
def _say_that_it_lingers(home: Path, linger_s: float) -> None:  # once
    print(  # noqa: T201 - where the progress is shown
        f"gridfleet: the fleet in {home} stays for {linger_s:g} s after this process; `gridfleet down` ends it",
        file=sys.stderr,
    )
