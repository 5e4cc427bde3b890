"""The next proposal of a search: a function of its space, its sampler, its seed, and the rows that it may know.

Each is asked of a fresh sampler, seeded by the search's seed and the proposal's number, over a study in memory that is
built from rows. So no state of a sampler is stored, and any process goes on where another one died.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gridfleet.scheduler.proposals.samplers import Sampler, fresh_sampler
from gridfleet.scheduler.proposals.spaces import combinations
from gridfleet.storage.errors import ProposalError
from gridfleet.storage.spaces import Choice, Dimension, Quantile, Real, Space, Whole

#: How often a proposal is asked again that was made before, each time with another seed.
MAX_AGAIN = 16
#: What the choice of a branch is called in a study.
BRANCH = "(branch)"
#: More than any split has, so that steps of a study are in their order.
EPOCHS_OF_A_SPLIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """Where a trial was pruned: in a split after an epoch, or at its end (None), with the value of then."""

    split: int | None
    epoch: int | None
    value: float | None

    @property
    def step(self) -> int:
        """Return the step of a study: later ones are of trials that came further."""
        ended = 0 if self.split is None else self.split + (self.epoch is None)
        return ended * EPOCHS_OF_A_SPLIT + (self.epoch or 0)


@dataclass(frozen=True)
class Row:
    """A trial that was proposed.

    Parameters
    ----------
    sample : mapping
        As it was proposed.
    is_final : bool
        Whether it has ended.
    score : float or None
        Its mean score; None: it has none.
    unknown : collection of int
        The numbers of earlier trials whose results its proposal did not know.
    pruned : Pruned or None
        Where it was pruned; None: it was not.
    """

    sample: Mapping[str, Any]
    is_final: bool = False
    score: float | None = None
    unknown: Collection[int] = field(default=())
    pruned: Pruned | None = None


def seed_of(seed: int, number: int, again: int = 0) -> int:
    """Return the seed of a proposal: SHA-256 of the search's seed, its number, and how often it was asked before."""
    digest = hashlib.sha256(f"{seed}:{number}:{again}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def propose(
    space: Space, sampler: Sampler, seed: int, rows: Sequence[Row], unknown: Collection[int] = ()
) -> dict[str, Any] | None:
    """Return the proposal that follows some rows.

    Parameters
    ----------
    space : Space
        What may be proposed.
    sampler : Sampler
        How it is chosen.
    seed : int
        The search's.
    rows : sequence of Row
        All earlier trials, by number.
    unknown : collection of int, default=()
        The numbers of those whose results it may not know: they count as running.

    Returns
    -------
    dict or None
        A sample of the space; None: it has no point that was not proposed before.
    """
    return Proposer(space, sampler, seed).ask(rows, unknown)


class Proposer:
    """The proposals of one search, which keeps its study from one to the next.

    Parameters
    ----------
    space : Space
        What may be proposed.
    sampler : Sampler
        How it is chosen.
    seed : int
        The search's.
    """

    def __init__(self, space: Space, sampler: Sampler, seed: int) -> None:
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._labels = _labels(space)
        self._n_points = combinations(space)
        self._made: set[str] = set()
        #: the number of each trial in the study, which has others: of proposals that had been made before
        self._in_study: list[int] = []
        self._told: set[int] = set()
        self._study: Any = None

    def ask(self, rows: Sequence[Row], unknown: Collection[int] = ()) -> dict[str, Any] | None:
        """Return the proposal that follows some rows, as `propose`; rows of before have to be among them."""
        if self._sampler.name == "grid":
            return next(itertools.islice(_points(self._space), len(rows), None), None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some settings are experimental
            self._catch_up(rows)
            self._tell(rows, unknown, len(rows))
            return self._ask(len(rows))

    def _catch_up(self, rows: Sequence[Row]) -> None:
        """Let the study have the trials that others proposed."""
        from optuna.trial import TrialState, create_trial

        if self._study is None:
            self._study = _new_study()
        for number in range(len(self._in_study), len(rows)):
            row = rows[number]
            if self._sampler.name == "cmaes":  # its state is in what it notes of each trial, so that it is asked again
                self._tell(rows, row.unknown, number)
                if self._ask(number) != row.sample:
                    raise ProposalError(
                        f"proposal {number} is another one now than when it was made, as with another release of Optuna"
                    )
                continue
            params, distributions = self._as_params(row.sample)
            self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
            self._note(self._n_in_study() - 1, row.sample)

    def _tell(self, rows: Sequence[Row], unknown: Collection[int], n_rows: int) -> None:
        """Tell the study what may be known of the first rows."""
        from optuna.trial import TrialState

        for number in range(n_rows):
            row = rows[number]
            if number in self._told or number in unknown or not row.is_final:
                continue
            self._told.add(number)
            if row.pruned is not None:
                self._tell_pruned(self._in_study[number], row.pruned)
            elif row.score is None:
                self._study.tell(self._in_study[number], state=TrialState.FAIL)
            else:
                self._study.tell(self._in_study[number], row.score)

    def _tell_pruned(self, in_study: int, pruned: Pruned) -> None:
        from optuna.trial import TrialState

        # of the storage itself: an object for it would ask the sampler for this trial once more
        trial_id = self._study.get_trials(deepcopy=False)[in_study]._trial_id
        value = math.nan if pruned.value is None else pruned.value
        self._study._storage.set_trial_intermediate_value(trial_id, pruned.step, value)
        self._study.tell(in_study, state=TrialState.PRUNED)

    def _ask(self, number: int) -> dict[str, Any] | None:
        from optuna.trial import TrialState

        for again in range(MAX_AGAIN):
            self._study.sampler = self._fresh_sampler(number, again)
            trial = self._study.ask()
            sample = self._suggested(trial)
            if self._key(sample) not in self._made:
                self._note(trial.number, sample)
                return sample
            self._study.tell(trial, state=TrialState.FAIL)
            if self._n_points is not None and len(self._made) >= self._n_points:
                break
        return None if self._n_points is None else self._first_new(number)

    def _fresh_sampler(self, number: int, again: int) -> Any:
        if self._sampler.name == "qmc" and not again:  # one sequence, of which each has its point
            seed, sampler = seed_of(self._seed, 0), self._sampler
        else:
            seed = seed_of(self._seed, number, again)
            sampler = Sampler("random") if self._sampler.name == "qmc" else self._sampler
        return fresh_sampler(sampler, seed=seed, number=number, distributions=self._distributions())

    def _first_new(self, number: int) -> dict[str, Any] | None:
        """Return a point of a space that was not proposed: few are left, which a sampler may not come to."""
        sample = next((point for point in _points(self._space) if self._key(point) not in self._made), None)
        if sample is not None:
            from optuna.trial import TrialState, create_trial

            params, distributions = self._as_params(sample)
            self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
            self._note(self._n_in_study() - 1, sample)
        return sample

    def _note(self, in_study: int, sample: Mapping[str, Any]) -> None:
        self._in_study.append(in_study)
        self._made.add(self._key(sample))

    def _n_in_study(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _key(self, sample: Mapping[str, Any]) -> str:
        """Return what is equal of two samples that would be evaluated alike."""
        branch = self._space.branches[sample["branch"]]
        values = {
            name: branch[name].show(value) if isinstance(branch[name], Quantile) else value
            for name, value in sample["values"].items()
        }
        return json.dumps([sample["branch"], values], sort_keys=True)

    def _distributions(self) -> dict[str, Any]:
        return _distributions_of(self._space, self._labels)

    def _as_params(self, sample: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a study has of a trial."""
        number, values = self._space.require(sample)
        branch = self._space.branches[number]
        params = {self._labels[number][name]: value for name, value in values.items()}
        distributions = {self._labels[number][name]: _distribution(branch[name]) for name in values}
        if len(self._space.branches) > 1:
            params = {BRANCH: number, **params}
            distributions = {BRANCH: _choice(len(self._space.branches)), **distributions}
        return params, distributions

    def _suggested(self, trial: Any) -> dict[str, Any]:
        n_branches = len(self._space.branches)
        number = trial.suggest_categorical(BRANCH, tuple(range(n_branches))) if n_branches > 1 else 0
        branch, labels = self._space.branches[number], self._labels[number]
        values = {name: _suggest(trial, labels[name], dimension) for name, dimension in branch.items()}
        return {"branch": number, "values": values}


def _new_study() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


def _labels(space: Space) -> list[dict[str, str]]:
    """Return what each hyperparameter is called in a study: branches share those that are the same in both."""
    shared = {
        name: len({repr(branch[name]) for branch in space.branches if name in branch}) == 1
        for branch in space.branches
        for name in branch
    }
    return [
        {name: name if shared[name] else f"{name} ({number})" for name in branch}
        for number, branch in enumerate(space.branches)
    ]


def _distributions_of(space: Space, labels: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    found = {BRANCH: _choice(len(space.branches))} if len(space.branches) > 1 else {}
    for branch, names in zip(space.branches, labels, strict=True):
        found |= {names[name]: _distribution(dimension) for name, dimension in branch.items()}
    return found


def _choice(n_values: int) -> Any:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(tuple(range(n_values)))


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        # by index: TPE writes values as JSON, and layers and tuples have to work
        return _choice(len(dimension.shown))
    if isinstance(dimension, Whole):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    if isinstance(dimension, Real):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return FloatDistribution(dimension.low, dimension.high)


def _suggest(trial: Any, label: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(label, tuple(range(len(dimension.shown))))
    if isinstance(dimension, Whole):
        return trial.suggest_int(label, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
    if isinstance(dimension, Real):
        return trial.suggest_float(label, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
    return trial.suggest_float(label, dimension.low, dimension.high)


def _points(space: Space) -> Iterator[dict[str, Any]]:
    """Give all points of a space, branch by branch, the last hyperparameter changing first, as `ParameterGrid` does."""
    for number, branch in enumerate(space.branches):
        names = sorted(branch)
        for values in itertools.product(*(_values(branch[name]) for name in names)):
            of_name = dict(zip(names, values, strict=True))
            yield {"branch": number, "values": {name: of_name[name] for name in branch}}


def _values(dimension: Dimension) -> Sequence[Any]:
    if isinstance(dimension, Choice):
        return range(len(dimension.shown))
    if isinstance(dimension, Whole):
        return range(dimension.low, dimension.high + 1, dimension.step)
    if isinstance(dimension, Real) and dimension.step is not None:
        n_steps = round((dimension.high - dimension.low) / dimension.step)
        return [dimension.low + step * dimension.step for step in range(n_steps + 1)]
    raise ProposalError("a distribution without steps has no end of values")
