"""Store a search and leave; find it again from any process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gridfleet.scheduler.fleet.connection import connect, read_only
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.frames import without_our_frames
from gridfleet.scheduler.results.going_on import nothing_stored_yet, say_at_exit_if_it_stops
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.search_cv import fit_with
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.scheduler.submission.checks import check_can_be_submitted, check_can_travel, check_has_rows, check_name
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.names import check_name_is_free_before_start
from gridfleet.scheduler.submission.options import check_switch, options_of
from gridfleet.scheduler.submission.publish import publish
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.scheduler.submission.resume import resume_or_store
from gridfleet.scheduler.submission.sizes import check_space, check_splits
from gridfleet.scheduler.submission.store import store
from gridfleet.storage.settings import load_settings
from gridfleet.storage.tags import check_tags


class _Submitted(BaseException):
    """Leaves scikit-learn's ``fit`` once the search is stored."""

    def __init__(self, handle: SearchHandle, *, is_new: bool) -> None:
        super().__init__(handle.name)
        self.handle = handle
        self.is_new = is_new


@without_our_frames
def submit(
    search: Any,
    X: Any,
    y: Any = None,
    *,
    name: str | None = None,
    groups: Any = None,
    load_if_exists: bool | None = None,
    reuse: bool | None = None,
    tags: Mapping[str, str] | None = None,
    **fit_params: Any,
) -> SearchHandle:
    """Store a search, enqueue its trials, and return.

    With ``refit``, the best combination is fitted on all data on the fleet, when the trials are done: the handle has it
    as ``best_estimator_``.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV, OptunaSearchCV, HalvingGridSearchCV or HalvingRandomSearchCV
        gridfleet's, or one of the first two of scikit-learn; it is not changed. Others of scikit-learn that choose
        candidates by earlier results need `fit`.
    X, y : array-like or DataRef
        As for ``fit``.
    name : str, default=None
        The search's name; None takes the search's own ``name``, or ``search-<id>``.
    groups : array-like of shape (n_samples,) or DataRef, default=None
        For splitters that need groups.
    load_if_exists : bool, default=None
        Whether a search that has this name already, and is the same, is gone on with: what was cancelled or never
        ran is queued again. None takes the search's own ``load_if_exists``. As for `GridSearchCV`.
    reuse : bool, default=None
        Whether trials whose computation was done before take the results of then. None takes the search's own
        ``reuse``. As for `GridSearchCV`.
    tags : dict of str to str, default=None
        What the search is found by, beside the ``tags`` that it has itself.
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
    check_can_be_submitted(search)
    name = name if name is not None else getattr(search, "name", None)
    check_name(name)
    check_space(search)
    check_has_rows(X)
    references = References(load_settings(), reads_all=False)
    X, y, groups = references.opened("X", X), references.opened("y", y), references.opened("groups", groups)
    fit_params = references.all_opened(fit_params)
    check_splits(search, X, y, groups)
    check_can_travel(search.estimator)
    options = options_of(search)
    resumes = check_switch("load_if_exists", _given(load_if_exists, search, "load_if_exists"))
    reuses = check_switch("reuse", _given(reuse, search, "reuse"))
    options = replace(options, tags={**options.tags, **check_tags(tags)})
    if groups is not None:
        fit_params["groups"] = groups
    if not resumes:
        check_name_is_free_before_start(name)
    with nothing_stored_yet():
        fleet = connect(n_jobs=search.n_jobs)

    def store_and_leave(request: SearchRequest) -> Any:
        request = replace(request, references=references, refits_on_fleet=bool(request.refit))
        if resumes:
            handle, is_new = resume_or_store(fleet, request, name=name, options=options, reuse=reuses)
            raise _Submitted(handle, is_new=is_new)
        raise _Submitted(store(fleet, request, name=name, options=options, reuse=reuses), is_new=True)

    shallow = copy.copy(search)  # and not a clone, which a generator as cv does not survive
    shallow.verbose = 0
    try:
        fit_with(FleetBackend(store_and_leave), shallow, X, y, **fit_params)
    except _Submitted as submitted:
        if submitted.is_new:
            publish(fleet, submitted.handle.id)
        handle = submitted.handle
        say_at_exit_if_it_stops(fleet, handle.id, handle.name, handle._goes_on)
        return handle
    raise AssertionError("scikit-learn's fit ended without asking joblib for a single fit")


def _given(value: Any, search: Any, name: str) -> Any:
    return getattr(search, name, False) if value is None else value


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
