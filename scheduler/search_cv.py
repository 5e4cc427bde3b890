"""GridSearchCV and RandomizedSearchCV: scikit-learn's classes, evaluated on the fleet."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import joblib
import numpy as np
from sklearn import model_selection
from sklearn.utils.validation import check_is_fitted

from gridfleet.scheduler.fleet.connection import read_only
from gridfleet.scheduler.reports.progress import in_notebook
from gridfleet.scheduler.results.best_model import BestModel
from gridfleet.scheduler.results.frames import without_our_frames
from gridfleet.scheduler.results.plots import Plots
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.scheduler.submission.checks import check_can_travel, check_has_rows
from gridfleet.scheduler.submission.joblib_backend import FleetBackend
from gridfleet.scheduler.submission.options import check_switch, options_of
from gridfleet.scheduler.submission.request import halves, proposes
from gridfleet.scheduler.submission.run import SearchRun
from gridfleet.scheduler.submission.sizes import check_space, check_splits
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, NothingToDrawError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.settings import load_settings
from gridfleet.worker.compiled_fit import compiled_fit
from gridfleet.worker.trial.keras_state import names_numbered_anew
from gridfleet.worker.trial.process import is_worker_process

#: Where the best combination may be fitted on all data.
REFITS_ON = ("script", "fleet")


class _FleetSearch(Plots):
    """Runs a search's fits on the fleet; all else is scikit-learn's."""

    #: So that calls of joblib that hold such a search stay in this process.
    runs_on_fleet = True

    name: str | None
    fit_mode: str | None
    trial_timeout: float | None
    search_timeout: float | None
    load_if_exists: bool
    reuse: bool
    priority: int
    refit_on: str
    keep_curves: bool
    tags: dict[str, str] | None
    #: The fleet and the search of the last `fit`, by their ids; a pickled search draws its figures elsewhere, too.
    _ran_as: tuple[str, int] | None = None

    @without_our_frames
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Run the search on the fleet and, with ``refit``, fit the best estimator: here, or where ``refit_on`` says.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or DataRef
            Training data; also pandas frames, scipy sparse matrices and lists. Keras models of several inputs
            take one array too, of which scikeras' ``feature_encoder`` makes the dict (docs/scikit-learn.md).
            By reference it goes through no database; with ``refit`` it is read here for the last fit.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), or DataRef, default=None
            Target.
        **params : dict of str -> object
            As for scikit-learn: parameters of the estimator's ``fit``, the scorer and the splitter. Those with a
            value for each row, as ``groups`` and ``sample_weight``, may be a DataRef.

        Returns
        -------
        self : object
            Fitted, with scikit-learn's attributes.

        Raises
        ------
        GridfleetError
            One sentence, before anything is stored, for a search that can't run; or if broker or
            database do not answer.
        """
        self._ran_as = None
        check_space(self)
        check_has_rows(X)
        references = References(load_settings(), reads_all=self._needs_rows_here())
        X, y, params = references.opened("X", X), references.opened("y", y), references.all_opened(params)
        check_splits(self, X, y, params.get("groups"))
        if is_worker_process():  # a search inside a trial: waiting for the fleet would wait for itself
            return super().fit(X, y, **params)  # type: ignore[misc,no-any-return]
        check_can_travel(self.estimator)  # type: ignore[attr-defined]
        options = options_of(self)
        run = SearchRun(
            name=self.name,
            options=options,
            references=references,
            load_if_exists=check_switch("load_if_exists", self.load_if_exists),
            reuse=check_switch("reuse", self.reuse),
            refits=self._refits_on_fleet(),
        )
        with ExitStack() as refit:
            if run.refits:
                fit_with(FleetBackend(run), self, X, y, lambda: _leave_refit_out(refit, self), **params)
            else:
                fit_with(FleetBackend(run), self, X, y, lambda: _enter_fit(refit, options.fit_mode), **params)
        self._ran_as = run.stored()
        if run.refits:
            self._take(run.best_model(verbose=self.verbose))  # type: ignore[attr-defined]
        return self

    def _stored_search(self) -> tuple[Database, int]:
        check_is_fitted(self, "cv_results_")
        if self._ran_as is None:
            raise NothingToDrawError(
                "this search was not fitted on a fleet, so nothing of it is stored; figures are made of what is"
            )
        fleet, search_id = self._ran_as
        database = read_only().database
        if fleet_id(database) != fleet:
            raise NothingToDrawError(
                "this search was fitted on another fleet; set GRIDFLEET_HOME or GRIDFLEET_DATABASE_URL as they were"
            )
        return database, search_id

    def _needs_rows_here(self) -> bool:
        """Whether X is looked at in this process: by the refit, by callbacks, or by all fits, as inside a trial."""
        refits_here = bool(self.refit) and not self._refits_on_fleet()  # type: ignore[attr-defined]
        return refits_here or is_worker_process() or hasattr(self, "_skl_callbacks")

    def _refits_on_fleet(self) -> bool:
        if self.refit_on not in REFITS_ON:
            places = " or ".join(map(repr, REFITS_ON))
            raise InvalidSearchError(f"refit_on={self.refit_on!r} is no place for the refit; give {places}")
        return bool(self.refit) and self.refit_on == "fleet"  # type: ignore[attr-defined]

    def _take(self, model: BestModel) -> None:
        """Become what scikit-learn's own refit makes of a search, with the model that the fleet fitted."""
        search: Any = self
        results = search.cv_results_
        if search.multimetric_ and callable(search.scoring):  # known only now; scikit-learn checks it before its refit
            metrics = [key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_")]
            search._check_refit_for_multimetric(dict.fromkeys(metrics))
        search.best_estimator_ = model.estimator
        search.best_index_ = model.number
        search.best_params_ = results["params"][model.number]
        if callable(search.refit):
            vars(search).pop("best_score_", None)
        else:
            metric = search.refit if search.multimetric_ else "score"
            search.best_score_ = results[f"mean_test_{metric}"][model.number]
        search.refit_time_ = model.refit_time
        if hasattr(model.estimator, "feature_names_in_"):
            search.feature_names_in_ = model.estimator.feature_names_in_

    def to_sklearn(self) -> Any:
        """Return this fitted search as an object of scikit-learn's own class.

        It has the same attributes and predicts the same, and can be pickled for where gridfleet is not installed.

        Returns
        -------
        sklearn.model_selection.GridSearchCV or another class of sklearn.model_selection
            With scikit-learn's arguments of this search; ``name`` and the other options of gridfleet are left out. The
            best estimator is this one's, not a copy.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        check_is_fitted(self, "cv_results_")
        kind = self._class_of_sklearn()
        theirs = kind(**{name: getattr(self, name) for name in kind._get_param_names()})
        ours = {*self.get_params(deep=False), "_ran_as"}  # type: ignore[attr-defined]
        vars(theirs).update({name: value for name, value in vars(self).items() if name not in ours})
        return theirs

    def _class_of_sklearn(self) -> Any:
        grid = isinstance(self, model_selection.GridSearchCV)
        return model_selection.GridSearchCV if grid else model_selection.RandomizedSearchCV


class GridSearchCV(_FleetSearch, model_selection.GridSearchCV):
    """Exhaustive search over a grid of hyperparameters, on a fleet.

    scikit-learn's ``GridSearchCV``, whose parameters and attributes it has; each combination is one Celery
    task, and every score lands in SQL.

    Parameters
    ----------
    estimator : estimator object
        As in scikit-learn. Functions and classes of the script travel to the workers.
    param_grid : dict or list of dicts
        As in scikit-learn.
    scoring, refit, cv, error_score, return_train_score
        As in scikit-learn.
    n_jobs : int, default=None
        Worker processes of an embedded fleet; None and -1: one per core. A fleet that is configured by
        ``GRIDFLEET_*`` or runs already has its own size.
    verbose : int, default=1
        0 shows nothing, 1 progress on standard error; from 2 on, scikit-learn's lines of each fit are printed as
        its trial ends.
    pre_dispatch : int or str, default='2*n_jobs'
        Has nothing to do: all trials are enqueued at once.
    name : str, default=None
        Name of the search and of its view in SQL; None: ``search-<id>``.
    fit_mode : {"exact", "xla", "auto", "keras"}, default=None
        How Keras models are trained: ``exact`` runs Keras' loop inside the graph, with Keras' own result bit
        for bit; ``xla`` compiles it, equal to about 1e-6; ``auto`` compiles where that pays; ``keras`` is
        Keras' own ``fit``. None: what ``GRIDFLEET_FIT_MODE`` says, by default ``exact``.
    trial_timeout : float, default=None
        Seconds that one attempt at a trial may take; one that takes longer is stopped, fails, and counts as a
        fit that raised. None: ``GRIDFLEET_MAX_RUNTIME_S``, by default a day.
    search_timeout : float, default=None
        Seconds after its first trial started at which the search is stopped. What is scored by then is the
        result; trials that are not count as fits that raised, with ``error_score``.
    load_if_exists : bool, default=False
        Whether a search that has this name already is gone on with, if it is the same (estimator, data, splits,
        combinations, scoring, ``fit_mode``, time limits): what is done counts, what was cancelled or never ran is
        queued again, what failed stays failed. If it is another one, the error says in what it differs.
        What was drawn without a seed, splits and combinations, is taken from the stored search.
    reuse : bool, default=False
        Whether trials whose computation was done before, in any search of this fleet, take the results of then.
        It is the same if code, data, splits, hyperparameters, scoring, ``fit_mode`` and releases are, and if all that
        the estimator draws comes of seeds.
    priority : int, default=0
        Its trials start before all of searches with a lower one, from -1000 to 1000. Searches with the same one share
        the fleet. `SearchHandle.set_priority` and ``gridfleet priority`` change it at any time.
    refit_on : {"script", "fleet"}, default="script"
        Where ``fit`` fits the best combination on all data: in its own process, or on a worker, which stores the model
        for `open_search`. `submit` has it fitted on the fleet whatever this says.
    keep_curves : bool, default=True
        Whether the learning curves of Keras models are stored.
    tags : dict of str to str, default=None
        What the search is found by, as ``{"dataset": "pima"}``: ``gridfleet list --tag``, the table ``tags``.

    Attributes
    ----------
    cv_results_, best_score_, best_params_, best_index_, best_estimator_, scorer_, n_splits_, refit_time_,
    multimetric_, classes_, n_features_in_, feature_names_in_
        As in scikit-learn.

    See Also
    --------
    RandomizedSearchCV : Samples combinations from distributions.
    submit : Returns at once, with a handle.

    Examples
    --------
    >>> from gridfleet import GridSearchCV
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> search = GridSearchCV(SVC(), {"C": [1, 10]}, n_jobs=2)
    >>> search.fit(*load_iris(return_X_y=True)).best_params_  # doctest: +SKIP
    {'C': 1}
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 1,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
        name: str | None = None,
        fit_mode: str | None = None,
        trial_timeout: float | None = None,
        search_timeout: float | None = None,
        load_if_exists: bool = False,
        reuse: bool = False,
        priority: int = 0,
        refit_on: str = "script",
        keep_curves: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.name = name
        self.fit_mode = fit_mode
        self.trial_timeout = trial_timeout
        self.search_timeout = search_timeout
        self.load_if_exists = load_if_exists
        self.reuse = reuse
        self.priority = priority
        self.refit_on = refit_on
        self.keep_curves = keep_curves
        self.tags = tags


class RandomizedSearchCV(_FleetSearch, model_selection.RandomizedSearchCV):
    """Randomized search over distributions of hyperparameters, on a fleet.

    scikit-learn's ``RandomizedSearchCV``, whose parameters and attributes it has. The combinations are drawn
    here, in scikit-learn's order, so a ``random_state`` gives the same ones.

    Parameters
    ----------
    estimator : estimator object
        As in scikit-learn. Functions and classes of the script travel to the workers.
    param_distributions : dict or list of dicts
        As in scikit-learn: lists, or distributions such as scipy.stats'.
    n_iter, random_state, scoring, refit, cv, error_score, return_train_score
        As in scikit-learn.
    n_jobs, verbose, pre_dispatch, name, fit_mode, trial_timeout, search_timeout, load_if_exists, reuse, priority,
    refit_on
        As in `GridSearchCV`.
    keep_curves, tags
        As in `GridSearchCV`.

    Attributes
    ----------
    cv_results_, best_score_, best_params_, best_index_, best_estimator_, scorer_, n_splits_, refit_time_,
    multimetric_, classes_, n_features_in_, feature_names_in_
        As in scikit-learn.

    See Also
    --------
    GridSearchCV : Tries every combination of a grid.
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 1,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        name: str | None = None,
        fit_mode: str | None = None,
        trial_timeout: float | None = None,
        search_timeout: float | None = None,
        load_if_exists: bool = False,
        reuse: bool = False,
        priority: int = 0,
        refit_on: str = "script",
        keep_curves: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.name = name
        self.fit_mode = fit_mode
        self.trial_timeout = trial_timeout
        self.search_timeout = search_timeout
        self.load_if_exists = load_if_exists
        self.reuse = reuse
        self.priority = priority
        self.refit_on = refit_on
        self.keep_curves = keep_curves
        self.tags = tags


def _leave_refit_out(stack: ExitStack, search: Any) -> None:
    """Let scikit-learn's ``fit`` go on as with ``refit=False``, until the stack closes."""
    stack.callback(setattr, search, "refit", search.refit)
    search.refit = False


def _enter_fit(stack: ExitStack, fit_mode: FitMode) -> None:
    """Fit as trials do from now on, until the stack closes: in compiled loops, and with Keras' names numbered anew."""
    stack.enter_context(names_numbered_anew())
    stack.enter_context(compiled_fit(fit_mode))


@contextmanager
def _fits_announced(search: Any, n_candidates: int, *, said: bool = False) -> Iterator[None]:
    """Say how many fits there are where all progress is shown; scikit-learn prints it to standard output."""
    verbose, n_splits = search.verbose, search.n_splits_
    # the one output of a notebook says how many trials there are
    if verbose > (1 if in_notebook() else 0) and not said and load_settings().progress != "quiet":
        counts = f"{n_splits} folds for each of {n_candidates} candidates, totalling {n_splits * n_candidates} fits"
        print(f"Fitting {counts}", file=sys.stderr)  # noqa: T201 - as all progress
    search.verbose = 0  # the fits' own was read before
    try:
        yield
    finally:
        search.verbose = verbose


def fit_with(
    backend: FleetBackend,
    search: Any,
    X: Any,
    y: Any,
    before_refit: Callable[[], object] = lambda: None,
    /,
    **params: Any,
) -> None:
    """Call scikit-learn's own ``fit`` of a search with a joblib backend.

    Parameters
    ----------
    backend : FleetBackend
        Gets the search's fits.
    search : BaseSearchCV
        Is fitted.
    X, y, **params
        As for ``fit``.
    before_refit : callable, default=None
        Is called when all combinations are evaluated.
    """
    fit: Any = search.fit
    if isinstance(search, _FleetSearch):
        fit = super(_FleetSearch, search).fit  # type: ignore[misc] # scikit-learn's, next in the order of bases
    run_search = search._run_search
    asked: list[int] = []
    with ExitStack() as fleet:
        fleet.enter_context(joblib.parallel_config(backend=backend))

        @functools.wraps(run_search)
        def run_search_on_fleet(evaluate_candidates: Any, *args: Any, **keywords: Any) -> None:
            def evaluate(candidate_params: Any, *more: Any, **keys: Any) -> Any:
                candidates = list(candidate_params)
                # a search that learns asks with an example, and then with all that was proposed and is recorded
                rounds = search.rounds_on_fleet if halves(search) else None
                n_candidates = search.n_trials if proposes(search) else len(candidates)
                n_candidates = n_candidates if rounds is None else rounds.halving.n_trials
                said = bool(asked) and (proposes(search) or rounds is not None)
                asked.append(n_candidates)
                with _fits_announced(search, n_candidates, said=said):
                    return evaluate_candidates(candidates, *more, **keys)

            run_search(evaluate, *args, **keywords)
            # the refit that follows is the user's own: whatever it runs in parallel is not for the fleet
            fleet.close()
            before_refit()

        search._run_search = run_search_on_fleet  # of the object, for a subclass may have a method of its own
        try:
            fit(X, y, **params)
        finally:
            del search._run_search
