"""One round of one search, as scikit-learn wants it evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from gridfleet.scheduler.proposals.samplers import Sampler
from gridfleet.scheduler.proposals.spaces import examples
from gridfleet.scheduler.submission.by_reference import References
from gridfleet.storage.halving import Halving
from gridfleet.storage.params import params_to_json
from gridfleet.storage.pruner import SCORE, Pruner
from gridfleet.storage.spaces import GivenSpace


@dataclass(frozen=True)
class Proposals:
    """How the trials of a search are proposed that learns.

    Parameters
    ----------
    given : GivenSpace
        Of what.
    sampler : Sampler
        By what.
    n_trials : int
        How many at most.
    seed : int
        Of all of them.
    asks_in_order : bool
        Whether proposal n knows exactly the results of 0 to n - lookahead.
    lookahead : int
        How many may be open beside each other.
    pruner : Pruner, default=None
        What stops poor ones; None: nothing.
    monitor : str, default="score"
        What they are compared by between epochs.
    """

    given: GivenSpace
    sampler: Sampler
    n_trials: int
    seed: int
    asks_in_order: bool
    lookahead: int
    pruner: Pruner | None = None
    monitor: str = SCORE

    @property
    def examples(self) -> list[Any]:
        """Samples in which all values of lists are met, and the ends of all distributions."""
        return examples(self.given)

    def columns(self) -> dict[str, Any]:
        """Return what the table ``searches`` says of it."""
        return {
            "space": self.given.space.to_json(),
            "sampler": self.sampler.to_json(),
            "n_trials": self.n_trials,
            "seed": self.seed,
            "asks_in_order": self.asks_in_order,
            "lookahead": self.lookahead,
            "n_asked": 0,
            "optuna_version": metadata.version("optuna"),
            "pruner": None if self.pruner is None else self.pruner.to_json(),
            "monitor": None if self.pruner is None else self.monitor,
        }


@dataclass
class Rounds:
    """The rounds of a halving search that is being run.

    Parameters
    ----------
    halving : Halving
        How many candidates each has, and what they get.
    splits : list of list of (train, test)
        Those of each round, from the moment on at which the first is asked for.
    params : list of list of dict
        The candidates of each round that was evaluated, when all have ended.
    rows : list of list of dict
        What ``_fit_and_score`` returned for them.
    """

    halving: Halving
    splits: list[list[tuple[Any, Any]]] = field(default_factory=list)
    params: list[list[dict[str, Any]]] = field(default_factory=list)
    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    #: Rounds that were given back to scikit-learn.
    n_returned: int = 0

    def take(self, params: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
        """Note what became of all trials, by number."""
        n_splits = len(self.splits[0])
        for index, n_candidates in enumerate(self.halving.n_candidates):
            first = self.halving.first_of(index)
            mine = slice(first, first + n_candidates)
            if params[mine]:
                self.params.append(list(params[mine]))
                self.rows.append(list(rows[n_splits * mine.start : n_splits * mine.stop]))

    def columns(self) -> dict[str, Any]:
        """Return what the table ``searches`` says of it."""
        return {
            "sampler": self.halving.to_json(),
            "n_trials": self.halving.n_trials,
            "n_asked": self.halving.n_candidates[0],
        }


@dataclass(frozen=True)
class SearchRequest:
    """What scikit-learn handed to joblib: the fits of some candidates on some splits.

    Parameters
    ----------
    caller : BaseSearchCV
        The search.
    estimator : estimator object
        Unfitted; each candidate's parameters are set on a clone of it.
    X, y : array-like
        As for ``fit``.
    splits : sequence of (train, test)
        Indices of rows, in the order of ``split0_test_score`` and those after it.
    candidates : sequence of dict
        The combinations, in the order of ``cv_results_``.
    arguments : dict
        Those of ``_fit_and_score`` that are the same for all candidates and splits.
    config : dict
        scikit-learn's configuration around the fits.
    warning_filters : list of tuple
        Python's around the fits.
    n_jobs : int or None
        The search's own, for an embedded fleet that has to be started.
    references : References, default=None
        Which of the data travel by reference; None: none of them.
    proposals : Proposals, default=None
        How trials are proposed while the search goes on; `candidates` are examples of them then. None: they are all
        known.
    rounds : Rounds, default=None
        Of a halving search, whose first round's candidates are `candidates`, and of all of whose rounds `splits` are.
    refits_on_fleet : bool, default=False
        Whether the best combination is fitted on all data on the fleet, when all trials are done.
    """

    caller: Any
    estimator: Any
    X: Any
    y: Any
    splits: Sequence[tuple[Any, Any]]
    candidates: Sequence[dict[str, Any]]
    arguments: dict[str, Any]
    config: dict[str, Any]
    warning_filters: list[Any]
    n_jobs: int | None = None
    references: References | None = None
    proposals: Proposals | None = None
    rounds: Rounds | None = None
    refits_on_fleet: bool = False

    @property
    def n_splits(self) -> int:
        """Splits of each trial."""
        return len(self.splits) if self.rounds is None else len(self.rounds.splits[0])

    @property
    def columns_of_proposals(self) -> dict[str, Any]:
        """What the table ``searches`` says of trials that are added while the search goes on."""
        added = self.proposals or self.rounds
        return {} if added is None else added.columns()

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The candidates as ``trials.params`` has them."""
        if self.proposals is None:
            return [params_to_json(params) for params in self.candidates]
        return [self.proposals.given.space.shown(sample) for sample in self.proposals.examples]

    def sent(self, value: Any) -> Any:
        """Return what travels to the workers in place of X, y or a value of the arguments."""
        return value if self.references is None else self.references.sent(value)

    @property
    def refit(self) -> Any:
        """``refit`` of the search: a metric's name, a function, or whether to fit the best one."""
        return getattr(self.caller, "refit", True)

    @property
    def metrics(self) -> list[str] | None:
        """Names of several metrics; None for a single score."""
        scorers = getattr(self.arguments.get("scorer"), "_scorers", None)
        return list(scorers) if isinstance(scorers, dict) else None

    @property
    def refit_metric(self) -> str:
        """The metric whose mean ranks the trials."""
        if isinstance(self.refit, str):
            return self.refit
        return self.metrics[0] if self.metrics else "score"


#: Evaluates a request; returns the rows of ``_fit_and_score``, candidate by candidate, split by split.
Evaluate = Callable[[SearchRequest], Sequence[dict[str, Any]]]


def halves(search: Any) -> bool:
    """Whether the trials of a search are in rounds, of which each has the best of the one before it."""
    return hasattr(type(search), "rounds_on_fleet")


def proposes(search: Any) -> bool:
    """Whether the trials of a search are proposed while it goes on."""
    return hasattr(type(search), "proposals")
