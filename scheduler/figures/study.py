"""A search in Optuna's words: a study in memory, with a trial for each of ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gridfleet.scheduler.figures.style import optuna_module
from gridfleet.scheduler.figures.trials import Drawn, DrawnTrial
from gridfleet.scheduler.figures.values import LOG_FROM, is_number, key_of, labels_of
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.tables import metric_of
from gridfleet.scheduler.reports.whole_trials import WholeTrial, iterate, iterate_params, most_epochs
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import TrialState

if TYPE_CHECKING:
    import optuna

#: Integers up to here are the same as floats, which is what Optuna's storages keep.
MAX_INTEGER = 2**53
#: Characters of a category; of the params that are stored no text is longer.
MAX_CATEGORY = 4_000


class Space:
    """The values that hyperparameters have in a search, and the distributions that Optuna may know them by.

    Optuna takes numbers, and as categories texts, booleans, None and numbers. Where a hyperparameter has another value,
    as a list of layers, or some that are equal for Python and not the same, as 1 and True, all its values become texts.
    """

    def __init__(self) -> None:
        #: of those that are numbers throughout: the least, the greatest, and whether all are integers
        self._ranges: dict[str, tuple[float, float, bool]] = {}
        #: of the others: their values
        self._choices: dict[str, dict[str, Any]] = {}
        self._labels: dict[str, dict[str, str]] = {}

    @classmethod
    def of(cls, read: Callable[[], Iterable[Mapping[str, Any]]]) -> Space:
        """Return that of some combinations, which are read twice if hyperparameters are numbers now and then."""
        space = cls()
        for params in read():
            for name, value in params.items():
                space._add(name, value)
        mixed = space._ranges.keys() & space._choices.keys()
        if mixed:
            for params in read():
                for name in mixed & params.keys():
                    space._choices[name][key_of(params[name])] = params[name]
        for name in mixed:
            del space._ranges[name]
        for name, found in space._choices.items():
            if not _are_choices(found.values()):
                space._labels[name] = labels_of(found.values(), MAX_CATEGORY)
        return space

    def _add(self, name: str, value: Any) -> None:
        if _is_optunas_number(value):
            low, high, is_integer = self._ranges.get(name, (value, value, True))
            self._ranges[name] = (min(low, value), max(high, value), is_integer and isinstance(value, int))
        else:
            self._choices.setdefault(name, {})[key_of(value)] = value

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Return Optuna's distribution of each hyperparameter."""
        distributions = optuna_module().distributions
        found: dict[str, Any] = {}
        for name, (low, high, is_integer) in self._ranges.items():
            is_log = low > 0 and high / low >= LOG_FROM
            if is_integer:
                found[name] = distributions.IntDistribution(int(low), int(high), log=is_log)
            else:
                found[name] = distributions.FloatDistribution(float(low), float(high), log=is_log)
        for name, values in self._choices.items():
            choices = self._labels[name].values() if name in self._labels else values.values()
            found[name] = distributions.CategoricalDistribution(tuple(choices))
        return found

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return a combination as Optuna takes it."""
        return {name: self._value(name, value) for name, value in params.items()}

    def _value(self, name: str, value: Any) -> Any:
        if name in self._ranges:
            return value if self._ranges[name][2] else float(value)
        return self._labels[name][key_of(value)] if name in self._labels else value


def _is_optunas_number(value: Any) -> bool:
    return is_number(value) and not (isinstance(value, int) and abs(value) > MAX_INTEGER)


def _are_choices(values: Iterable[Any]) -> bool:
    """Whether Optuna takes some values, and tells them apart as they are."""
    kinds = {type(value) for value in values} - {type(None)}
    return len(kinds) <= 1 and kinds <= {str, bool, int, float}


def study(database: Database, search_id: int) -> optuna.Study:
    """Return a search as a study of Optuna in memory: its trials by number, their states, values, params and times.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.

    Returns
    -------
    optuna.Study
        Its direction is ``maximize``, as greater scores are better. Trials that are cancelled or failed are ``FAIL``,
        queued ones ``WAITING``. Intermediate values are what was compared where poor trials are pruned: after epochs
        of the first split, and behind those each split that ended. User attributes of a trial are ``state``,
        ``std_test_score``, ``split_test_scores``, ``split_train_scores``, ``seed``, ``error``, and of a pruned one
        ``pruned_split``, ``pruned_epoch``, ``pruned_value``.

    Raises
    ------
    MissingPackageError
        If Optuna is not installed.
    """
    library = optuna_module()
    search = reader.find_search(database, search_id)
    with quiet():
        made: optuna.Study = library.create_study(study_name=search.name, direction="maximize")
        describe(made, search)
        made.add_trials(frozen_trials(database, search_id))
    return made


def describe(made: optuna.Study, search: reader.SearchSummary) -> None:
    """Write into a study what search it is."""
    metric = metric_of(search)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of metrics are experimental
        made.set_metric_names([f"mean test {metric}"])
    facts = {"strategy": search.strategy, "estimator": search.estimator, "metric": metric}
    for name, value in {**facts, "submitted_by": search.submitted_by}.items():
        made.set_user_attr(name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna log no line about what is made of rows."""
    logging = optuna_module().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def frozen_trials(database: Database, search_id: int) -> Iterator[optuna.trial.FrozenTrial]:
    """Yield the trials of a search as Optuna has them, by number."""
    space = Space.of(lambda: iterate_params(database, search_id))
    distributions = space.distributions()
    n_epochs = most_epochs(database, search_id)
    for trial in iterate(database, search_id):
        yield frozen(trial, space, distributions, attributes(trial), _intermediate_values(trial, n_epochs))


def _intermediate_values(trial: WholeTrial, n_epochs: int) -> dict[int, float]:
    """Return what a trial was compared by: after epochs of its first split, and behind those each split that ended."""
    return {
        step or n_epochs + split + 1: math.nan if value is None else value
        for (split, step), value in trial.reports.items()
    }


def frozen(
    trial: DrawnTrial | WholeTrial,
    space: Space,
    distributions: Mapping[str, Any],
    user_attrs: Mapping[str, Any],
    intermediate_values: Mapping[int, float] | None = None,
) -> optuna.trial.FrozenTrial:
    """Return a trial as Optuna has it."""
    library = optuna_module()
    states = library.trial.TrialState
    state = {
        TrialState.COMPLETED: states.COMPLETE,
        TrialState.RUNNING: states.RUNNING,
        TrialState.QUEUED: states.WAITING,
        TrialState.PRUNED: states.PRUNED,
    }.get(TrialState(trial.state), states.FAIL)
    if state == states.COMPLETE and trial.mean_test_score is None:
        state = states.FAIL
    params = space.params(trial.params)
    value = trial.mean_test_score if state == states.COMPLETE else None
    if state == states.PRUNED and intermediate_values:  # as Optuna itself has it
        last = intermediate_values[max(intermediate_values)]
        value = None if math.isnan(last) else last
    made: optuna.trial.FrozenTrial = library.create_trial(
        state=state,
        value=value,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=dict(user_attrs),
        intermediate_values=dict(intermediate_values or {}),
    )
    # not Optuna's own time, which is now: and a trial that was cancelled in the queue never started
    started = None if state == states.WAITING else trial.started_at or trial.finished_at
    made.datetime_start = _local(started)
    made.datetime_complete = _local(trial.finished_at)
    return made


def _local(at: datetime | None) -> datetime | None:
    """Return a time as Optuna notes it: of this machine's zone, without saying so."""
    return None if at is None else at.astimezone().replace(tzinfo=None)


def attributes(trial: WholeTrial) -> dict[str, Any]:
    """Return what a trial has that Optuna has no place for."""
    found = {
        "number": trial.number,
        "state": trial.state,
        "std_test_score": trial.std_test_score,
        "split_test_scores": _in_order(trial.test_scores),
        "split_train_scores": _in_order(trial.train_scores),
        "mean_fit_time": trial.mean_fit_time,
        "seed": trial.seed,
        "pruned_split": trial.pruned_split,
        "pruned_epoch": trial.pruned_epoch,
        "pruned_value": trial.pruned_value,
        "fit_mode": trial.fit_mode,
        "worker_id": trial.worker_id,
        "error_type": trial.error_type,
        "error": trial.error,
    }
    return {name: value for name, value in found.items() if value not in (None, {})}


def _in_order(scores: Mapping[str, Mapping[int, float | None]]) -> dict[str, list[float | None]]:
    return {metric: [by_split[split] for split in sorted(by_split)] for metric, by_split in scores.items()}


def study_of(found: Drawn, only: Sequence[str] | None = None) -> optuna.Study:
    """Return the scored trials that a figure draws as a study whose hyperparameters are named by their places.

    What users wrote as names would stand in Optuna's figures as HTML.

    Parameters
    ----------
    found : Drawn
        The trials.
    only : sequence of str, default=None
        The hyperparameters; None: all that each trial has.
    """
    library = optuna_module()
    scored = [trial for trial in found.fair if trial.state == TrialState.COMPLETED]
    shared = [name for name in (scored[0].params if scored else ()) if all(name in trial.params for trial in scored)]
    places = {name: str(place) for place, name in enumerate(shared if only is None else only)}
    placed = [replace(trial, params={place: trial.params[name] for name, place in places.items()}) for trial in scored]
    space = Space.of(lambda: (trial.params for trial in placed))
    distributions = space.distributions()
    with quiet():
        made: optuna.Study = library.create_study(direction="maximize")
        made.add_trials([frozen(trial, space, distributions, {}) for trial in placed])
    return made
