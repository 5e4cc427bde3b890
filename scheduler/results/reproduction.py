"""Evaluates a trial once more, here or on the fleet, and says split by split whether it is equal to the last bit."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import select
from threadpoolctl import threadpool_limits

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage import deletions, searches
from gridfleet.storage.errors import SearchNotFinishedError, SearchNotFoundError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.halving import Halving
from gridfleet.storage.schema import Search, SplitScore, Trial, TrialState
from gridfleet.storage.session import this_session
from gridfleet.storage.tags import add_tags
from gridfleet.storage.texts import text_of
from gridfleet.storage.trial_results import TrialResult, score_of
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_packages
from gridfleet.worker.guards.memory import THREAD_VARIABLES
from gridfleet.worker.trial.machine import machine
from gridfleet.worker.trial.sources import ScriptModules

#: Names of packages whose releases differ that a difference lists.
NAMED = 8
#: What of a search is copied to evaluate one of its trials on the fleet.
_COPIED = (
    *("strategy", "scoring", "refit_metric", "n_splits", "random_state", "estimator", "fit_mode", "trial_timeout"),
    *("x_digest", "y_digest", "sources_digest", "python_version", "needs_python"),
    *("tensorflow_version", "keras_version", "scikit_learn_version", "gridfleet_version", "submitted_by"),
)


@dataclass(frozen=True, slots=True)
class ScorePair:
    """One metric on one split: what was recorded, and what came out now."""

    split: int
    metric: str
    recorded: float
    again: float | None

    @property
    def is_equal(self) -> bool:
        """Whether they are the same to the last bit; of what is no number, whether both are none."""
        if self.again is None:
            return False
        if self.recorded != self.recorded or self.again != self.again:
            return self.recorded != self.recorded and self.again != self.again
        return struct.pack("<d", self.recorded) == struct.pack("<d", self.again)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A trial that was evaluated once more.

    Parameters
    ----------
    number : int
        The trial's.
    scores : sequence of ScorePair
        In the order of splits.
    seed : int or None
        The seed that was set again; None: the estimator has its own, or none was recorded.
    differences : sequence of str
        What differs between then and now that may change a result.
    error : str or None
        What the evaluation failed with.
    """

    number: int
    scores: Sequence[ScorePair]
    seed: int | None
    differences: Sequence[str]
    error: str | None = None

    @property
    def is_equal(self) -> bool:
        """Whether all scores are the same."""
        return bool(self.scores) and all(pair.is_equal for pair in self.scores)


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """What is known of a trial that was evaluated."""

    search: Mapping[str, Any]
    number: int
    trial_id: int
    params: Mapping[str, Any]
    sample: Any
    seed: int | None
    fit_mode: str | None
    environment: Mapping[str, Any] | None
    packages: str | None
    scores: Mapping[tuple[int, str], float]

    def thread_variables(self) -> dict[str, str]:
        """Return the variables that gave its worker's libraries their threads; no others, for a worker said so."""
        threads = {} if self.environment is None else self.environment.get("threads")
        known = threads if isinstance(threads, dict) else {}
        return {name: known[name] for name in THREAD_VARIABLES if _is_number_of_threads(known.get(name))}


def _is_number_of_threads(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,3}", value) is not None


def recorded_trial(fleet: Fleet, search_id: int, number: int) -> RecordedTrial:
    """Read what was recorded of a trial.

    Raises
    ------
    SearchNotFoundError
        If the search has no trial of this number.
    SearchNotFinishedError
        If it has no scores: it waits, runs, was cancelled or failed.
    PayloadSignatureError
        If its search is not what was submitted.
    """
    with fleet.database.read() as connection:
        search = connection.execute(select(*Search.__table__.columns).where(Search.id == search_id)).one()
        of_number = select(*Trial.__table__.columns).where(Trial.search_id == search_id, Trial.number == number)
        # SQL's integers have an end
        trial = connection.execute(of_number).one_or_none() if 0 <= number < search.n_trials else None
        if trial is None:
            raise SearchNotFoundError(
                f"search {search.name!r} has no trial {number}; its numbers are 0 to {search.n_trials - 1}"
            )
        if trial.state != TrialState.COMPLETED:
            raise SearchNotFinishedError(
                f"trial {number} of search {search.name!r} is {trial.state}; only one that is completed can be compared"
            )
        rows = connection.execute(
            select(SplitScore.split, SplitScore.metric, SplitScore.test_score, SplitScore.test_score_reason).where(
                SplitScore.trial_id == trial.id
            )
        ).all()
    facts = search._asdict()
    searches.check_signature(fleet.settings.verifier(), search_id, facts)
    known = _environment(text_of(fleet.database, trial.environment_digest))
    return RecordedTrial(
        search=facts,
        number=number,
        trial_id=trial.id,
        params=trial.params,
        sample=trial.sample,
        seed=trial.seed,
        fit_mode=trial.fit_mode,
        environment=known,
        packages=None if known is None else text_of(fleet.database, str(known.get("packages"))),
        scores={(row.split, row.metric): score_of(row.test_score, row.test_score_reason) for row in sorted(rows)},
    )


def _environment(text: str | None) -> dict[str, Any] | None:
    """Read what a worker said of itself; None if it said nothing, or nothing that a worker of ours says."""
    try:
        told = json.loads(text or "")
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def completed_numbers(fleet: Fleet, search_id: int) -> list[int]:
    """Return the numbers of a search's trials that can be compared."""
    completed = select(Trial.number).where(Trial.search_id == search_id, Trial.state == TrialState.COMPLETED)
    with fleet.database.read() as connection:
        return list(connection.execute(completed.order_by(Trial.number)).scalars())


def reproduce_here(fleet: Fleet, trial: RecordedTrial) -> Reproduction:
    """Evaluate a trial once more in this process, as a worker process does it, and compare."""
    from gridfleet.storage.references.host_data import HostData
    from gridfleet.worker.trial.cross_validation import cross_validate_trial
    from gridfleet.worker.trial.referred_data import with_data

    search = trial.search
    with _loaded(fleet, trial) as (evaluation, params):
        load = fleet.payloads.get
        data = HostData(fleet.settings)
        evaluation, X, y = with_data(data, evaluation, load("X", search["x_digest"]), load("y", search["y_digest"]))
        result = cross_validate_trial(
            evaluation,
            X,
            y,
            _splits_of(fleet, trial),
            params,
            number=trial.number,
            n_trials=search["n_trials"],
            refit_metric=search["refit_metric"],
            fit_mode=FitMode(search["fit_mode"]),
            seed=trial.seed,
        )
    return _compared(trial, result, machine(), installed_packages())


def reproduce_on_fleet(fleet: Fleet, trial: RecordedTrial) -> Reproduction:
    """Evaluate a trial once more on the fleet, as a search of one trial that is removed afterwards, and compare."""
    handle = _submit_again(fleet, trial)
    try:
        handle._wait(None, _Silent())
        return _compared_with_stored(fleet, trial, handle.id)
    finally:
        handle.cancel()  # if somebody interrupts it
        if handle.progress().is_finished:
            deletions.delete_search(fleet.database, handle.id)


class _Silent:
    def show(self, progress: Any) -> None:
        """Show nothing."""


@contextmanager
def _loaded(fleet: Fleet, trial: RecordedTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Load what a search evaluates, and a trial's hyperparameters, in a process that is the same afterwards."""
    from gridfleet.worker.trial.keras_objects import registered_for_a_trial
    from gridfleet.worker.trial.keras_state import any_model_loads
    from gridfleet.worker.trial.process_state import unchanged_process

    def load(kind: str, digest: str) -> Any:
        with any_model_loads():
            return fleet.payloads.get(kind, digest)

    modules = ScriptModules(fleet.payloads, fleet.settings)
    with ExitStack() as stack:
        stack.enter_context(unchanged_process())
        stack.enter_context(registered_for_a_trial())
        stack.enter_context(modules.of_search(trial.search["sources_digest"], load))
        evaluation = load("evaluation", trial.search["evaluation_digest"])
        if evaluation.keras_objects is not None:
            evaluation.keras_objects.register()
        all_params = evaluation.params
        if all_params is None or trial.search["sampler"] is not None:
            candidates = load("candidates", trial.search["candidates_digest"])
            if candidates.are_proposed:
                all_params = {trial.number: candidates.params_of(trial.number, trial.sample, all_params)}
            else:
                all_params = candidates.params
        if "tensorflow" in sys.modules:  # as workers do, for their programs and for the generators in them
            from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels

            stack.enter_context(kept_kernels())
        # of what is imported already, which reads its variables no more
        threads = {name: int(value) for name, value in trial.thread_variables().items()}
        limits = {"openmp": threads.get("OMP_NUM_THREADS"), "blas": threads.get("OPENBLAS_NUM_THREADS")}
        stack.enter_context(threadpool_limits({name: most for name, most in limits.items() if most is not None}))
        yield evaluation, all_params[trial.number]


def _splits_of(fleet: Fleet, trial: RecordedTrial) -> Any:
    splits = fleet.payloads.get("splits", trial.search["splits_digest"])
    described = trial.search["sampler"]
    if described is None or trial.search["space"] is not None:
        return splits
    return Halving.from_json(described).splits(splits, trial.number)


def _submit_again(fleet: Fleet, trial: RecordedTrial) -> SearchHandle:
    """Store and enqueue a search of one trial: of the same data, splits and code, with the seed that was recorded."""
    with _loaded(fleet, trial) as (evaluation, params):
        candidates = fleet.payloads.get("candidates", trial.search["candidates_digest"])
        candidates = replace(candidates, params=[params], space=None, halving=None)
        only = [params] if evaluation.params is not None else None
        prepared = [
            fleet.payloads.prepare("evaluation", replace(evaluation, params=only, seed=trial.seed), what="the trial"),
            fleet.payloads.prepare("candidates", candidates, what="the trial"),
            fleet.payloads.prepare("splits", _splits_of(fleet, trial), what="the trial"),
        ]
    columns = {name: trial.search[name] for name in _COPIED}
    columns |= {"n_trials": 1, "session": this_session()}
    columns |= {f"{payload.kind}_digest": fleet.payloads.insert(payload) for payload in prepared}
    with fleet.database.write() as connection:
        fleet.payloads.require_stored(connection, [columns[name] for name in columns if name.endswith("_digest")])
        search_id, name = searches.create_search(connection, None, columns, fleet.settings.signer())
        add_tags(connection, search_id, {"reproduces": f"{trial.search['name']}/{trial.number}"})
        queue.create_trials(connection, search_id, [dict(params)])
    fleet.publish(queue.in_turn(fleet.database, search_id))  # or the reconciler does, if the broker is away
    return SearchHandle(fleet, search_id, name)


def _compared_with_stored(fleet: Fleet, trial: RecordedTrial, search_id: int) -> Reproduction:
    with fleet.database.read() as connection:
        row = connection.execute(select(Trial.state, Trial.error).where(Trial.search_id == search_id)).one()
    if row.state != TrialState.COMPLETED:
        return Reproduction(trial.number, _pairs(trial, {}), trial.seed, [], error=row.error or f"it was {row.state}")
    again = recorded_trial(fleet, search_id, 0)
    differences = _differences(trial, again.environment or {}, again.packages or "", again.fit_mode)
    return Reproduction(trial.number, _pairs(trial, again.scores), trial.seed, differences)


def _compared(trial: RecordedTrial, result: TrialResult, here: Mapping[str, Any], packages: str) -> Reproduction:
    scores = {(split.split, split.metric): split.test_score for split in result.splits}
    differences = _differences(trial, here, packages, result.fit_mode)
    return Reproduction(trial.number, _pairs(trial, scores), trial.seed, differences, error=result.error)


def _pairs(trial: RecordedTrial, scores: Mapping[tuple[int, str], float]) -> list[ScorePair]:
    return [ScorePair(*place, recorded, scores.get(place)) for place, recorded in trial.scores.items()]


def _differences(trial: RecordedTrial, here: Mapping[str, Any], packages: str, fit_mode: str | None) -> list[str]:
    """Say what differs that may change a result: releases, processor, threads, the way of training."""
    found = []
    if (trial.fit_mode or None) != (fit_mode or None):
        found.append(f"its Keras models trained {trial.fit_mode or 'not at all'} then, {fit_mode or 'not at all'} now")
    if trial.environment is None:
        return [*found, "on what it was evaluated was not recorded"]
    then, now = map(_flat, (trial.environment, here))
    found += [
        _difference(name, then.get(name), now.get(name))
        for name in sorted({*then, *now})
        # TensorFlow may have been imported there for another search
        if then.get(name) != now.get(name) and not ("tensorflow " in name and (name in then) != (name in now))
    ]
    if trial.packages is not None and trial.packages != packages:
        found.append(_other_packages(trial.packages, packages))
    return found


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an environment may change a result."""
    told = environment.get("threads")
    threads = {f"threads by {name}": value for name, value in (told if isinstance(told, dict) else {}).items()}
    return {name: environment[name] for name in environment if name not in ("host", "packages", "threads")} | threads


def _difference(name: str, then: Any, now: Any) -> str:
    if name == "cpu_flags":
        before, after = set(str(then or "").split()), set(str(now or "").split())
        return f"cpu flags: only then {_few(before - after)}, only now {_few(after - before)}"
    return f"{name.removesuffix('_version')}: {then} then, {now} now"


def _other_packages(then: str, now: str) -> str:
    before, after = set(then.splitlines()), set(now.splitlines())
    return f"packages: only then {_few(before - after)}, only now {_few(after - before)}"


def _few(names: set[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return (", ".join(shown[:NAMED]) or "none") + more


def as_json(reproduction: Reproduction) -> dict[str, Any]:
    """Return a reproduction as JSON types."""
    told = asdict(reproduction)
    scores = [{**asdict(pair), "is_equal": pair.is_equal} for pair in reproduction.scores]
    return {**told, "scores": scores, "is_equal": reproduction.is_equal}


def verdict(done: Sequence[Reproduction], *, n_completed: int, on: str) -> str:
    """Say in a sentence how many trials were equal, and on what."""
    n_equal = sum(one.is_equal for one in done)
    n_scores = sum(len(one.scores) for one in done)
    here = machine()
    versions = ", ".join(
        f"{name.removesuffix('_version').replace('_', '-')} {here[name]}"
        for name in sorted(here)
        if name.endswith("_version") and here[name] is not None
    )
    where = f"on {here['cpu']}, {here['system']}, with {versions}" if on == "here" else "on the fleet"
    equal = "all" if n_equal == len(done) else str(n_equal)
    return (
        f"{equal} of {len(done)} trials, drawn at random from {n_completed} completed ones, were equal to the last bit "
        f"in each of their splits ({n_scores} scores compared), evaluated again {where}"
    )
