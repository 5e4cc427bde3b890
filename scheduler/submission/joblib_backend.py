"""joblib's seam: scikit-learn's own ``fit`` runs unchanged, its fits run on the fleet.

Every call that scikit-learn's searches hand to joblib is ``_fit_and_score`` for one candidate and one
split. The backend collects them all, makes one trial of the calls of one candidate, and gives the rows that
the fleet recorded back as if they had been computed here. Whatever else uses joblib meanwhile, a forest or
``cross_val_score``, gets the processes or threads of this machine that it had without this backend.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from joblib import Parallel, parallel_config
from joblib.parallel import ParallelBackendBase, SequentialBackend
from sklearn.base import BaseEstimator
from sklearn.model_selection._validation import _fit_and_score
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from gridfleet.scheduler.submission.request import Evaluate, SearchRequest, halves, proposes

#: Arguments of ``_fit_and_score`` that differ from call to call, or have no meaning on a worker.
PER_CALL = ("train", "test", "parameters", "split_progress", "candidate_progress", "caller", "callback_ctx")
#: Arguments that the workers set themselves.
SET_BY_WORKER = ("return_parameters", "return_n_test_samples", "return_times", "return_estimator")


class FleetBackend(ParallelBackendBase):
    """A joblib backend for scikit-learn's searches; any other call runs on this machine, by joblib's own backends.

    Parameters
    ----------
    evaluate : callable
        What to do with a search; it returns the rows of ``_fit_and_score``.
    **options : dict
        joblib's own.
    """

    default_n_jobs = -1
    supports_retrieve_callback = False
    supports_sharedmem = False

    def __init__(self, evaluate: Evaluate, **options: Any) -> None:
        super().__init__(**options)
        self._evaluate = evaluate
        self._n_jobs: int | None = None
        self._calls: list[_Call] = []
        self._prefers_threads = False

    def configure(self, n_jobs: int = 1, parallel: Any = None, **keywords: Any) -> int:
        """Take over a Parallel: all its calls are wanted before the first result."""
        parallel.pre_dispatch = "all"
        self._n_jobs = n_jobs
        self._prefers_threads = keywords.get("prefer") == "threads"
        super().configure(n_jobs=n_jobs, parallel=parallel, **keywords)
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return any number above 1, lest joblib runs the calls itself."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        return max(2, os.cpu_count() or 1)

    def start_call(self) -> None:
        """Forget the calls of the last round."""
        self._calls = []

    def submit(self, func: Any, callback: Any = None) -> _Call:
        """Note a batch of calls."""
        call = _Call(func.items, callback)
        self._calls.append(call)
        return call

    def retrieve_result(self, out: _Call, timeout: float | None = None) -> list[Any]:
        """Return the results of one batch of calls; the first one asked for runs them all."""
        if out.results is None:
            if all(call.is_candidate for call in self._calls):
                self._run_search()
            else:
                self._run_here()
        out.callback(out)  # joblib counts finished calls by it
        return out.results or []

    def _run_search(self) -> None:
        calls = self._calls
        rows = self._evaluate(_request(calls, n_jobs=self._n_jobs))
        for call, row in zip(calls, rows, strict=True):
            call.results = [row]
            _tell_callbacks(call)

    def _run_here(self) -> None:
        """Run calls that are no search's as joblib does without this backend."""
        calls = self._calls
        items = [item for call in calls for item in call.items]
        if any(_holds_fleet_search(item) for item in items):
            # its own fits run on the fleet, and this process has the connections
            with parallel_config(backend=self.get_nested_backend()[0]):
                results = iter([function(*args, **keywords) for function, args, keywords in items])
        else:
            backend = "threading" if self._prefers_threads else "loky"
            results = iter(Parallel(n_jobs=self._n_jobs, backend=backend)(items))
        for call in calls:
            call.results = list(itertools.islice(results, len(call.items)))

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Run what is nested in a call one by one."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


class _Call:
    """A batch of calls that joblib handed over, one call if it is a search's, and its results."""

    __slots__ = ("args", "callback", "function", "items", "keywords", "results")

    def __init__(self, items: Sequence[tuple[Any, Any, dict[str, Any]]], callback: Any) -> None:
        self.items = items
        self.function, self.args, self.keywords = items[0]
        self.callback = callback
        self.results: list[Any] | None = None

    @property
    def is_candidate(self) -> bool:
        called = getattr(self.function, "function", self.function)
        return called is _fit_and_score and self.keywords.get("candidate_progress") is not None


def _holds_fleet_search(item: tuple[Any, Any, dict[str, Any]]) -> bool:
    """Whether a call has one of gridfleet's own searches among its arguments, or in a pipeline."""
    _, args, keywords = item
    estimators = [value for value in (*args, *keywords.values()) if isinstance(value, BaseEstimator)]
    parts = [part for value in estimators for part in (value, *value.get_params(deep=True).values())]
    return any(hasattr(type(part), "runs_on_fleet") for part in parts)


def _tell_callbacks(call: _Call) -> None:
    """Call the search's scikit-learn callbacks as ``_fit_and_score`` does; those of the models stay silent."""
    context = call.keywords.get("callback_ctx")
    if context is None or not context._callbacks:
        return
    estimator, X, y = call.args
    X_train, y_train = _safe_split(estimator, X, y, call.keywords["train"])
    fit_params = _check_method_params(X, params=call.keywords["fit_params"] or {}, indices=call.keywords["train"])
    weights = {name: value for name, value in fit_params.items() if name == "sample_weight" and value is not None}
    for hook in (context.call_on_fit_task_begin, context.call_on_fit_task_end):
        hook(estimator=call.keywords["caller"], X=X_train, y=y_train, metadata=weights or None)


def _request(calls: Sequence[_Call], *, n_jobs: int | None) -> SearchRequest:
    first = calls[0]
    estimator, X, y = first.args
    n_splits = first.keywords["split_progress"][1]
    of_first_candidate = calls[:n_splits]
    caller: Any = first.keywords.get("caller")
    proposals = caller.proposals() if proposes(caller) else None
    candidates = [call.keywords["parameters"] for call in calls[::n_splits]]
    if proposals is not None:
        candidates = [proposals.given.params(sample) for sample in proposals.examples]
    splits = [(call.keywords["train"], call.keywords["test"]) for call in of_first_candidate]
    rounds = caller.rounds_on_fleet if halves(caller) else None
    if rounds is not None:
        splits = [split for of_round in rounds.splits for split in of_round]
    return SearchRequest(
        caller=caller,
        estimator=estimator,
        X=X,
        y=y,
        splits=splits,
        candidates=candidates,
        proposals=proposals,
        rounds=rounds,
        arguments={
            name: value for name, value in first.keywords.items() if name not in PER_CALL and name not in SET_BY_WORKER
        },
        config=getattr(first.function, "config", {}),
        warning_filters=list(getattr(first.function, "warning_filters", [])),
        n_jobs=n_jobs,
    )
