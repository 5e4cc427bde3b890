"""OptunaSearchCV: a search whose trials are proposed by one of Optuna's samplers, by the results of those before."""

from __future__ import annotations

import math
import secrets
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection._search import BaseSearchCV

from gridfleet.scheduler.proposals.ask import Proposer, Row
from gridfleet.scheduler.proposals.pruners import given_pruner
from gridfleet.scheduler.proposals.samplers import given_sampler
from gridfleet.scheduler.proposals.spaces import given_space
from gridfleet.scheduler.search_cv import _FleetSearch
from gridfleet.scheduler.submission.request import Proposals
from gridfleet.scheduler.submission.run import NOTHING_EVALUATED, Proposed
from gridfleet.scheduler.submission.sizes import MAX_COMBINATIONS
from gridfleet.storage.errors import InvalidSearchError, SearchNotFinishedError
from gridfleet.worker.trial.process import is_worker_process
from gridfleet.worker.trial.scores import pruned_numbers, require_not_pruned, warning_of_pruned_left_out

if TYPE_CHECKING:
    import optuna

#: Trials that may be open beside each other.
MAX_LOOKAHEAD = 10_000


class OptunaSearchCV(_FleetSearch, BaseSearchCV):
    """Search that learns, on a fleet: each trial is proposed by the results of those before it.

    What Optuna's samplers choose is evaluated as `GridSearchCV` evaluates its combinations: one Celery task each, every
    score in SQL. The scheduler proposes, so that a search that was submitted goes on without its script. No combination
    is tried twice; a space that has nothing new ends the search.

    Parameters
    ----------
    estimator : estimator object
        As in scikit-learn. Functions and classes of the script travel to the workers.
    param_distributions : dict or list of dicts
        For each hyperparameter a list of values, a distribution of scipy.stats or anything else with a ``ppf``, or one
        of ``optuna.distributions``. Of several dicts each trial is of one, and which one is learned as well.
    n_trials : int, default=50
        How many trials at most.
    sampler : str or dict, default="tpe"
        ``tpe``, ``cmaes``, ``gp`` (needs PyTorch), ``random``, ``qmc`` or ``grid``; or a dict with settings of Optuna's
        class, as ``{"name": "tpe", "n_startup_trials": 20}``.
    pruner : str or dict, default=None
        What stops poor trials early: ``asha``, ``hyperband``, ``median``, ``percentile`` or ``wilcoxon``; or a dict
        with settings of Optuna's class, as ``{"name": "asha", "reduction_factor": 3}``. None: every trial is evaluated
        on all splits.
    monitor : str, default="score"
        What trials are compared by between epochs of the first split: ``score``, of its test rows, or a learning curve,
        as ``val_loss``. From its end on it is the mean of the scores so far.
    min_resource : int, default=1
        Epochs before the first comparison; then `reduction_factor` times as many, and so on.
    lookahead : int, default=16
        Trials that may be open beside each other. With a seed, proposal n knows the results of 0 to n - lookahead.
    timeout : float, default=None
        Optuna's name of ``search_timeout``.
    random_state : int, default=None
        With a seed, trials and scores are the same on one worker or on a hundred, whatever broke on the way. Without,
        each proposal knows what is there.
    scoring, refit, cv, error_score, return_train_score
        As in scikit-learn.
    n_jobs, verbose, name, fit_mode, trial_timeout, search_timeout, load_if_exists, priority, refit_on, keep_curves,
    tags
        As in `GridSearchCV`.

    Attributes
    ----------
    cv_results_, best_score_, best_params_, best_index_, best_estimator_, scorer_, n_splits_, refit_time_,
    multimetric_, classes_, n_features_in_, feature_names_in_
        As in scikit-learn.
    study_ : optuna.Study
        The same trials, for what takes a study.

    See Also
    --------
    GridSearchCV : Tries every combination of a grid.
    RandomizedSearchCV : Samples combinations from distributions.

    Examples
    --------
    >>> from gridfleet import OptunaSearchCV
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.svm import SVC
    >>> space = {"C": loguniform(1e-2, 1e2), "kernel": ["linear", "rbf"]}
    >>> search = OptunaSearchCV(SVC(), space, n_trials=20, random_state=0, n_jobs=2)
    >>> search.fit(*load_iris(return_X_y=True)).best_score_  # doctest: +SKIP
    0.98
    """

    #: Results of other searches are not taken: who proposes trials does not see into their values.
    reuse = False

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_trials: int = 50,
        sampler: Any = "tpe",
        pruner: Any = None,
        monitor: str = "score",
        min_resource: int = 1,
        lookahead: int = 16,
        timeout: float | None = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 1,
        random_state: int | None = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
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
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.param_distributions = param_distributions
        self.n_trials = n_trials
        self.sampler = sampler
        self.pruner = pruner
        self.monitor = monitor
        self.min_resource = min_resource
        self.lookahead = lookahead
        self.timeout = timeout
        self.random_state = random_state
        self.name = name
        self.fit_mode = fit_mode
        self.trial_timeout = trial_timeout
        self.search_timeout = search_timeout
        self.load_if_exists = load_if_exists
        self.priority = priority
        self.refit_on = refit_on
        self.keep_curves = keep_curves
        self.tags = tags

    def proposals(self) -> Proposals:
        """Return how its trials are to be proposed, checked; without a ``random_state`` a seed is drawn.

        Raises
        ------
        InvalidSearchError
            One sentence that names the argument that is wrong, and its value.
        """
        given = given_space(self.param_distributions)
        sampler = given_sampler(self.sampler, given.space)
        pruner = given_pruner(
            self.pruner,
            min_resource=self.min_resource,
            monitor=self.monitor,
            estimator=self.estimator,
            space=given.space,
        )
        return Proposals(
            given,
            sampler,
            n_trials=_whole("n_trials", self.n_trials, MAX_COMBINATIONS),
            seed=secrets.randbits(32) if self.random_state is None else _seed(self.random_state),
            asks_in_order=self.random_state is not None,
            lookahead=_whole("lookahead", self.lookahead, MAX_LOOKAHEAD),
            pruner=pruner,
            monitor=self.monitor,
        )

    def _run_search(self, evaluate_candidates: Any) -> None:
        proposals = self.proposals()
        if is_worker_process():
            self._run_here(proposals, evaluate_candidates)
            return
        try:
            # stored by the first candidate that scikit-learn asks to evaluate; what comes of it is proposed by then
            evaluate_candidates([proposals.given.params(proposals.examples[0])])
        except Proposed as proposed:
            params = proposed.params
        if not params:
            raise SearchNotFinishedError(NOTHING_EVALUATED)
        evaluate_candidates(params)

    def _run_here(self, proposals: Proposals, evaluate_candidates: Any) -> None:
        """Propose and evaluate one trial after the other in this process: of a search inside a trial.

        Nothing is pruned there: what is compared is in the rows of other searches only.
        """
        proposer = Proposer(proposals.given.space, proposals.sampler, proposals.seed)
        rows: list[Row] = []
        for number in range(proposals.n_trials):
            first_unknown = number - proposals.lookahead + 1 if proposals.asks_in_order else number
            sample = proposer.ask(rows, range(max(0, first_unknown), number))
            if sample is None:
                return
            results = evaluate_candidates([proposals.given.params(sample)])
            metric = self.refit if isinstance(self.refit, str) and self.multimetric_ else "score"
            score = float(results[f"mean_test_{metric}"][number])
            rows.append(Row(sample, is_final=True, score=score if math.isfinite(score) else None))

    def _format_results(
        self, candidate_params: Any, n_splits: int, out: Any, more_results: Any = None
    ) -> dict[str, Any]:
        with warning_of_pruned_left_out(out, n_splits):
            results: dict[str, Any] = super()._format_results(candidate_params, n_splits, out, more_results)
        self._pruned = pruned_numbers(out, n_splits)
        return results

    def _select_best_index(self, refit: Any, refit_metric: str, results: Any) -> int:
        index = int(super()._select_best_index(refit, refit_metric, results))
        require_not_pruned(index, self._pruned)
        return index

    @property
    def study_(self) -> optuna.Study:
        """The same trials in Optuna's words; made of the rows each time that it is asked for."""
        return self.to_optuna()

    def to_sklearn(self) -> Any:
        """Return this fitted search as scikit-learn's ``RandomizedSearchCV``, as `GridSearchCV.to_sklearn`."""
        from sklearn.model_selection import RandomizedSearchCV
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "cv_results_")
        names = RandomizedSearchCV._get_param_names()
        theirs = RandomizedSearchCV(
            **{name: getattr(self, name) for name in names if hasattr(self, name)}, n_iter=self.n_trials
        )
        ours = {*self.get_params(deep=False), "_ran_as", "_pruned"}
        vars(theirs).update({name: value for name, value in vars(self).items() if name not in ours})
        return theirs


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _whole(name: str, value: Any, most: int) -> int:
    if not _is_whole(value) or not 1 <= value <= most:
        raise InvalidSearchError(f"{name}={value!r} must be a whole number from 1 to {most}")
    return int(value)


def _seed(value: Any) -> int:
    if not _is_whole(value) or not 0 <= value < 2**63:
        raise InvalidSearchError(
            f"random_state={value!r} must be a whole number, 0 or more, or None; a generator does not travel to where "
            "proposals are made"
        )
    return int(value)
