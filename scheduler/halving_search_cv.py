"""HalvingGridSearchCV and HalvingRandomSearchCV: scikit-learn's classes, whose rounds are one search of the fleet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from sklearn.model_selection import _search_successive_halving as sklearns

from gridfleet.scheduler.search_cv import _FleetSearch
from gridfleet.scheduler.submission.request import Rounds
from gridfleet.scheduler.submission.sizes import check_size
from gridfleet.storage.halving import RAISE, Halving
from gridfleet.worker.trial.process import is_worker_process


class _RoundsEndError(Exception):
    """Leaves scikit-learn's loop at a round that was not evaluated, as its search was stopped."""


class _HalvingSearch(_FleetSearch):
    """Lets the fleet evaluate all rounds as one search; which candidates go on, it decides as scikit-learn does."""

    #: Results of other searches are not taken: who adds the trials of a round does not see into their values.
    reuse = False
    #: The rounds of the `fit` that runs.
    rounds_on_fleet: Rounds | None = None

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any) -> None:
        if is_worker_process():  # a search inside a trial
            super()._run_search(evaluate_candidates, callback_ctx=callback_ctx)  # type: ignore[misc]
            return
        with self._quiet() as spoken, self._drawn_once():
            halving, splitters = self._planned()
            check_size(halving.n_trials, self.n_splits_)  # type: ignore[attr-defined]
            rounds = Rounds(halving)

            def evaluate(candidates: Any, cv: Any, more_results: dict[str, list[int]], **more: Any) -> Any:
                index = more_results["iter"][0]
                if index:
                    if index >= len(rounds.params):
                        raise _RoundsEndError
                    candidates = rounds.params[index]  # those that were evaluated, whatever breaks ties here
                    more_results = {name: values[: len(candidates)] for name, values in more_results.items()}
                with spoken():
                    cv = _RoundSplitter(rounds, splitters, index)
                    return evaluate_candidates(candidates, cv, more_results=more_results, **more)

            self.rounds_on_fleet = rounds
            try:
                super()._run_search(evaluate, callback_ctx=callback_ctx)  # type: ignore[misc]
            except _RoundsEndError:
                self._end_after(rounds)
            finally:
                del self.rounds_on_fleet

    def _planned(self) -> tuple[Halving, list[Any]]:
        """Let scikit-learn go through all rounds with equal scores; return what it asked for, and how it splits."""
        n_candidates, n_resources, splitters = [], [], []

        def note(candidates: Any, cv: Any, more_results: dict[str, list[int]], **_: Any) -> dict[str, Any]:
            candidates = list(candidates)
            n_candidates.append(len(candidates))
            n_resources.append(int(more_results["n_resources"][0]))
            splitters.append(cv)
            return {"iter": more_results["iter"], "mean_test_score": np.zeros(len(candidates)), "params": candidates}

        super()._run_search(note, callback_ctx=_NoCallbacks())  # type: ignore[misc]
        search: Any = self
        error_score = RAISE if search.error_score == RAISE else repr(float(search.error_score))
        return Halving(search.resource, n_candidates, n_resources, error_score), splitters

    def _end_after(self, rounds: Rounds) -> None:
        """Have the attributes of a search that ended with its last evaluated round."""
        search: Any = self
        search.n_candidates_ = [len(params) for params in rounds.params]
        search.n_resources_ = search.n_resources_[: len(rounds.params)]
        search.n_iterations_ = len(rounds.params)
        search.n_remaining_candidates_ = math.ceil(search.n_candidates_[-1] / search.factor)

    @contextmanager
    def _quiet(self) -> Iterator[Callable[[], Any]]:
        """Keep scikit-learn's lines about its rounds from standard output; gives what lets the fits be told of."""
        search: Any = self
        verbose = search.verbose

        @contextmanager
        def spoken() -> Iterator[None]:
            search.verbose = verbose
            try:
                yield
            finally:
                search.verbose = 0

        search.verbose = 0
        try:
            yield spoken
        finally:
            search.verbose = verbose

    @contextmanager
    def _drawn_once(self) -> Iterator[None]:
        """Let all that asks for the candidates of the first round get the same ones."""
        search: Any = self
        candidates = list(search._generate_candidate_params())
        # copies, for a round may set its resource
        search._generate_candidate_params = lambda: [dict(one) for one in candidates]
        try:
            yield
        finally:
            del search._generate_candidate_params

    def _class_of_sklearn(self) -> Any:
        grid = isinstance(self, sklearns.HalvingGridSearchCV)
        return sklearns.HalvingGridSearchCV if grid else sklearns.HalvingRandomSearchCV


class _RoundSplitter:
    """Splits as scikit-learn does in a round; those of all rounds are made at once, for the fleet goes on alone."""

    def __init__(self, rounds: Rounds, splitters: Sequence[Any], index: int) -> None:
        self._rounds = rounds
        self._splitters = splitters
        self._index = index

    def split(self, X: Any, y: Any = None, **params: Any) -> list[tuple[Any, Any]]:
        """Return the splits of the round."""
        made: dict[int, list[tuple[Any, Any]]] = {}
        for splitter in self._splitters if not self._rounds.splits else ():
            if id(splitter) not in made:  # the same one in all rounds whose resource is no number of samples
                made[id(splitter)] = list(splitter.split(X, y, **params))
            self._rounds.splits.append(made[id(splitter)])
        return self._rounds.splits[self._index]


class _NoCallbacks:
    """Stands for scikit-learn's context of callbacks, of which none is to be called."""

    def __getattr__(self, name: str) -> Callable[..., Self]:
        return lambda *_, **__: self


class HalvingGridSearchCV(_HalvingSearch, sklearns.HalvingGridSearchCV):
    """Search over a grid with successive halving, on a fleet.

    scikit-learn's ``HalvingGridSearchCV``, whose parameters, attributes and results it has, without
    ``enable_halving_search_cv``. All rounds are one search in SQL: ``trials.iter`` and ``trials.n_resources`` say what
    each trial is of.

    Parameters
    ----------
    estimator : estimator object
        As in scikit-learn. Functions and classes of the script travel to the workers.
    param_grid : dict or list of dicts
        As in scikit-learn.
    factor, resource, max_resources, min_resources, aggressive_elimination, cv, scoring, refit, error_score,
    return_train_score, random_state
        As in scikit-learn.
    n_jobs, verbose, name, fit_mode, trial_timeout, search_timeout, load_if_exists, priority, refit_on, keep_curves,
    tags
        As in `GridSearchCV`.

    Attributes
    ----------
    n_resources_, n_candidates_, n_remaining_candidates_, max_resources_, min_resources_, n_iterations_,
    n_possible_iterations_, n_required_iterations_, cv_results_, best_estimator_, best_score_, best_params_,
    best_index_, scorer_, n_splits_, refit_time_, multimetric_, classes_, n_features_in_, feature_names_in_
        As in scikit-learn. Of a search that its ``search_timeout`` ended they are of the rounds that were begun.

    See Also
    --------
    HalvingRandomSearchCV : Draws the candidates of its first round.

    Examples
    --------
    >>> from gridfleet import HalvingGridSearchCV
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> search = HalvingGridSearchCV(SVC(), {"C": [0.1, 1, 10, 100]}, random_state=0, n_jobs=2)
    >>> search.fit(*load_iris(return_X_y=True)).n_candidates_  # doctest: +SKIP
    [4, 2]
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: Any = "auto",
        min_resources: Any = "exhaust",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 1,
        name: str | None = None,
        fit_mode: str | None = None,
        trial_timeout: float | None = None,
        search_timeout: float | None = None,
        load_if_exists: bool = False,
        priority: int = 0,
        refit_on: str = "script",
        keep_curves: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.name = name
        self.fit_mode = fit_mode
        self.trial_timeout = trial_timeout
        self.search_timeout = search_timeout
        self.load_if_exists = load_if_exists
        self.priority = priority
        self.refit_on = refit_on
        self.keep_curves = keep_curves
        self.tags = tags


class HalvingRandomSearchCV(_HalvingSearch, sklearns.HalvingRandomSearchCV):
    """Randomized search with successive halving, on a fleet.

    scikit-learn's ``HalvingRandomSearchCV``, whose parameters, attributes and results it has, without
    ``enable_halving_search_cv``. The candidates are drawn here, once, in scikit-learn's order.

    Parameters
    ----------
    estimator : estimator object
        As in scikit-learn. Functions and classes of the script travel to the workers.
    param_distributions : dict or list of dicts
        As in scikit-learn: lists, or distributions such as scipy.stats'.
    n_candidates, factor, resource, max_resources, min_resources, aggressive_elimination, cv, scoring, refit,
    error_score, return_train_score, random_state
        As in scikit-learn.
    n_jobs, verbose, name, fit_mode, trial_timeout, search_timeout, load_if_exists, priority, refit_on, keep_curves,
    tags
        As in `GridSearchCV`.

    Attributes
    ----------
    n_resources_, n_candidates_, n_remaining_candidates_, max_resources_, min_resources_, n_iterations_,
    n_possible_iterations_, n_required_iterations_, cv_results_, best_estimator_, best_score_, best_params_,
    best_index_, scorer_, n_splits_, refit_time_, multimetric_, classes_, n_features_in_, feature_names_in_
        As in `HalvingGridSearchCV`.

    See Also
    --------
    HalvingGridSearchCV : Begins with every combination of a grid.
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_candidates: Any = "exhaust",
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: Any = "auto",
        min_resources: Any = "smallest",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 1,
        name: str | None = None,
        fit_mode: str | None = None,
        trial_timeout: float | None = None,
        search_timeout: float | None = None,
        load_if_exists: bool = False,
        priority: int = 0,
        refit_on: str = "script",
        keep_curves: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_candidates=n_candidates,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.name = name
        self.fit_mode = fit_mode
        self.trial_timeout = trial_timeout
        self.search_timeout = search_timeout
        self.load_if_exists = load_if_exists
        self.priority = priority
        self.refit_on = refit_on
        self.keep_curves = keep_curves
        self.tags = tags
