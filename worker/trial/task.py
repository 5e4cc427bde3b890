"""The one task: claim, evaluate, record."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from traceback import format_exc
from typing import Any, TypeVar

from billiard.common import terminate_handler_fired
from celery import shared_task, signals
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.storage import workers
from gridfleet.storage.database.retries import patiently
from gridfleet.storage.errors import (
    GridfleetError,
    InvalidDataError,
    PayloadSignatureError,
    SampleError,
    first_line,
)
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.logs import working_on
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.searches import check_signature
from gridfleet.storage.settings import load_settings
from gridfleet.storage.trial_results import TrialResult
from gridfleet.storage.trials import claims, handed_back, proposed, queue, transitions
from gridfleet.storage.trials.held import Claim, Held
from gridfleet.storage.trials.lost_together import runs_alone
from gridfleet.storage.trials.recorded import SearchGoesOnError
from gridfleet.storage.trials.uncertain_commits import claim_of, was_recorded
from gridfleet.worker.broker.app import GO_ON_S, KILL_AFTER_S
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.message import TASK
from gridfleet.worker.broker.publisher import Publisher
from gridfleet.worker.guards.memory import bound_memory, explain_memory_error, too_much
from gridfleet.worker.guards.output import bounded_output
from gridfleet.worker.guards.parent_death import die_with_parent
from gridfleet.worker.guards.peak_memory import memory_mb, own_memory_kb, replace_by_own_memory
from gridfleet.worker.guards.pools import allow_pools
from gridfleet.worker.guards.prctl import name_process
from gridfleet.worker.guards.xla_cache import bound_compiled_programs
from gridfleet.worker.trial import logs  # noqa: F401 - Celery calls what it connects
from gridfleet.worker.trial.interrupter import TrialInterrupted
from gridfleet.worker.trial.keras_objects import registered_for_a_trial
from gridfleet.worker.trial.keras_state import any_model_loads
from gridfleet.worker.trial.model_memory import without_garbage_collection
from gridfleet.worker.trial.process import WorkerProcess, this_process
from gridfleet.worker.trial.process_state import unchanged_process
from gridfleet.worker.trial.successor import MessageForAnother, leave, require_own

logger = logging.getLogger(__name__)

#: What ``ps -o comm`` shows of a process that evaluates trials.
PROCESS_NAME = "gridfleet-trial"
#: Seconds for which a process takes no message after one of a trial that waits for another Python, while none waits for
#: its own: so that it does not use up the messages of workers that have that Python.
REST_S = 2.0
#: Seconds between looks, the first and the longest, while others hold all trials that wait: for a moment, to claim them
#: or to note that they were published. Whoever took one as theirs would use up the message of another one.
LOOK_AGAIN_S = 0.05
LONGEST_LOOK_S = 1.0
#: What a process ends with whose worker takes itself out.
STOPPED = 0x9D

T = TypeVar("T")


class WorkerStops(Exception):  # noqa: N818 - no error
    """A worker can't evaluate trials, and takes itself out; its main process reads why in the database."""


@signals.worker_process_init.connect
def _begin(**_: object) -> None:
    die_with_parent(os.getppid())
    name_process(PROCESS_NAME)
    settings = load_settings()
    bound_memory(settings.memory_limit_mb)
    replace_by_own_memory()
    allow_pools()
    bound_compiled_programs(settings)
    this_process()  # so that the table of workers has it before its first trial


@shared_task(name=TASK, ignore_result=True, Request="gridfleet.worker.main_process.lost_process:TrialRequest")
def evaluate(trial_id: int) -> None:
    """Evaluate a trial if it is still to be done.

    A message only says that the trial may be worth a look; late and repeated ones end at the claim.

    Parameters
    ----------
    trial_id : int
        The trial's id in the database.
    """
    process = patiently(this_process, patience_s=math.inf)  # the task's time limit ends it
    try:
        suspect = _work_beside_others(process, trial_id)
        if suspect is not None:
            _work_alone(process, suspect)
    except MessageForAnother as message:
        logger.debug("the message of trial %d is for a process that has worked for no other session", trial_id)
        leave(process, message.status)
    except WorkerStops:
        leave(process, STOPPED)
    except queue.WaitsForAnotherPythonError:
        # the message is used up: those that stay in the queue are enough for whoever has that Python, and when it is
        # empty, the reconciler publishes again
        time.sleep(REST_S)
    except MemoryError:  # a model kept it all; Celery would take this for its own, and end the whole worker
        logger.critical("a worker process has no memory left and is replaced")
        os._exit(1)


def _work_beside_others(process: WorkerProcess, trial_id: int) -> int | None:
    """Evaluate trials at a message; returns the id of one that was claimed and may not run beside others."""
    with process.neighbours.beside():
        claim = _claim(process, trial_id)
        if claim is None:
            return None
        if claim.attempt > 1 and _patiently(process, lambda: runs_alone(process.database, claim.trial_id)):
            # not held while the others end what they do: that may take as long as a trial
            _patiently(process, lambda: transitions.release(process.database, Held(claim.trial_id, claim.token)))
            return claim.trial_id
        _work_on(process, claim)
    return None


def _work_alone(process: WorkerProcess, trial_id: int) -> None:
    with process.neighbours.alone():
        # nobody else, or another worker was faster
        claim = _claim(process, trial_id, claim_now=_claim_one)
        if claim is not None:
            _evaluate(process, claim)
            _publish_refit(process, claim)


def _work_on(process: WorkerProcess, claim: Claim) -> None:
    """Evaluate a trial, and then, if it was short, those of its search that were claimed as the last was recorded."""
    goes_on_until = time.monotonic() + GO_ON_S
    following = _evaluate(process, claim, goes_on_until=goes_on_until)
    while following is not None:
        following = _evaluate(process, following, goes_on_until=goes_on_until)
    _publish_refit(process, claim)


def _publish_refit(process: WorkerProcess, claim: Claim) -> None:
    """Send the message of a refit that this process let go, as it recorded the last trial of its search."""
    if claim.refit_of is not None:
        return
    try:
        let_go = queue.never_published(process.database, [claim.trial_id])
        if let_go:
            with closing(Publisher(process.settings, Keys(fleet_id(process.database)))) as publisher:
                publisher.publish(let_go)
            queue.mark_published(process.database, let_go)
    except (SQLAlchemyError, RedisError, GridfleetError) as error:  # the reconciler will
        logger.warning("could not publish the refit of search %d: %s", claim.search_id, first_line(error))


def _claim(
    process: WorkerProcess, trial_id: int, *, claim_now: Callable[[WorkerProcess, int], Claim | None] | None = None
) -> Claim | None:
    """Claim a trial at a message; a database that is away is waited for, or all messages would be used up."""
    has_failed = False

    def claim() -> Claim | None:
        nonlocal has_failed
        # a claim whose answer was lost may have been made
        made = claim_of(process.database, process.id) if has_failed else None
        has_failed = True
        return made or (claim_now or _claim_now)(process, trial_id)

    claimed = patiently(claim, patience_s=process.settings.max_runtime_s)
    if claimed is not None and process.settings.forks_processes:  # a fresh interpreter would take seconds
        process.session = claimed.session
    return claimed


def _claim_now(process: WorkerProcess, trial_id: int) -> Claim | None:
    """Claim a trial of the search whose turn it is at a message, rather one that this process has programs for."""
    pause_s = LOOK_AGAIN_S
    # looked at first, for most messages of short trials come when these are done, and a claim locks
    while (hint := _look(process, trial_id)) is not None:
        require_own(process, hint.session)
        claim = claims.claim_at_message(
            process.database, hint, process.id, structures=process.structures, **_limits(process)
        )
        if claim is not None:
            return claim
        logger.debug("what waits of search %d is held by others just now", hint.search_id)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_LOOK_S)
    return None


def _look(process: WorkerProcess, trial_id: int) -> queue.Hint | None:
    return queue.look(process.database, trial_id, python=process.python, session=process.session)


def _claim_one(process: WorkerProcess, trial_id: int) -> Claim | None:
    return claims.claim(
        process.database, trial_id, process.id, session=process.session, python=process.python, **_limits(process)
    )


def _limits(process: WorkerProcess) -> dict[str, Any]:
    settings = process.settings
    return {
        "memory_mb": memory_mb(),
        "lease_s": settings.lease_s,
        "max_runtime_s": settings.max_runtime_s,
        # this process notices first, at a heartbeat, then its main process kills it; the reconciler is the last
        "grace_s": settings.heartbeat_s + 2 * KILL_AFTER_S,
    }


def _evaluate(process: WorkerProcess, claim: Claim, *, goes_on_until: float = -math.inf) -> Claim | None:
    """Evaluate and record a trial; returns the next one, if one was to be claimed before that time and was."""
    with working_on(search=claim.name, trial=claim.number, attempt=claim.attempt):
        logger.debug("begins, with the id %d", claim.trial_id)
        following = _evaluate_logged(process, claim, goes_on_until=goes_on_until)
        _tell(process, claim)
        logger.debug(
            "has ended; %s follows it at the same message", "no trial" if following is None else following.number
        )
    return following


def _evaluate_logged(process: WorkerProcess, claim: Claim, *, goes_on_until: float) -> Claim | None:
    held = Held(claim.trial_id, claim.token)
    following = None
    try:
        with process.holding(held, limit_s=claim.trial_timeout):
            with bounded_output(), unchanged_process(), process.interruptible():
                result = _result(process, claim)
            # not before: nothing interrupts a write, and a database that is away takes no part in the trial's time
            environment_digest = process.environment_digest()
            result = replace(result, peak_memory_mb=process.memory.mb(), environment_digest=environment_digest)
            if result.fit_mode is not None:
                process.remember(claim.structure_digest)
            if time.monotonic() < goes_on_until and not _is_to_be_replaced(process):
                recorded, following = _record_and_claim(process, claim, result)
            else:
                recorded = _record(process, held, result)
    except TrialInterrupted as interrupted:
        _give_up(process, held, interrupted.reason, claim.trial_timeout)
    except PayloadSignatureError as error:
        if not _has_the_fleets_key(process):
            _hand_back(process, held, error, "this process's key is not the fleet's")
        else:
            _reap(process, held, Outcome.PAYLOAD_ERROR, str(error))
    except MemoryError:  # of the data, before any fit
        _reap(process, held, Outcome.OUT_OF_MEMORY, format_exc() + too_much(process.settings.memory_limit_mb))
    except Exception as error:  # not the model's: a full disk, a missing package, a defect of ours
        logger.exception("trial %d, attempt %d", claim.trial_id, claim.attempt)
        _hand_back(process, held, error, format_exc())
    else:
        if not recorded:
            logger.warning("trial %d, attempt %d: stale result discarded", claim.trial_id, claim.attempt)
    return following


def _is_to_be_replaced(process: WorkerProcess) -> bool:
    """Whether Celery ends this process after the message, for the memory that it took."""
    return own_memory_kb() > process.settings.max_memory_mb * 1000


def _record(process: WorkerProcess, held: Held, result: TrialResult) -> bool:
    """Record a result, however long the database is away: it says whether the trial is still this process's.

    Returns
    -------
    bool
        False if it was taken back meanwhile.
    """

    def record() -> bool:
        # not held any more: taken back, or recorded by a commit whose answer was lost
        return transitions.record(process.database, held, result) or was_recorded(process.database, held)

    return patiently(record, patience_s=process.settings.max_runtime_s)


def _record_and_claim(process: WorkerProcess, claim: Claim, result: TrialResult) -> tuple[bool, Claim | None]:
    """Record a result and claim the next trial of its search, as patiently as `_record`.

    Returns
    -------
    is_recorded : bool
        False if it was taken back meanwhile.
    following : Claim or None
        The next trial, if there is one for this process.
    """
    held = Held(claim.trial_id, claim.token)
    # other processes have the programs of other structures: the next message says which one is left
    structures = None if result.fit_mode is None else process.structures

    def record_and_claim() -> tuple[bool, Claim | None]:
        is_recorded, following = transitions.record_and_claim(
            process.database, claim, result, process.id, structures=structures, **_limits(process)
        )
        if is_recorded or not was_recorded(process.database, held):
            return is_recorded, following
        # by a commit whose answer was lost; it made the claim too
        return True, claim_of(process.database, process.id)

    return patiently(record_and_claim, patience_s=process.settings.max_runtime_s)


def _result(process: WorkerProcess, claim: Claim) -> TrialResult:
    """Evaluate a trial; what a model does to end its process, or to take all memory, is the model's own error."""
    try:
        with registered_for_a_trial():
            return explain_memory_error(_cross_validate(process, claim), process.settings.memory_limit_mb)
    except InvalidDataError as error:  # what is wrong with its data is the same on every worker
        return TrialResult(splits=[], error_type=type(error).__name__, error=str(error))
    except (Exception, TrialInterrupted):
        raise
    except BaseException as raised:  # sys.exit() in a fit, or what asyncio raises: scikit-learn lets it pass
        if terminate_handler_fired():  # Celery's, at a signal that ends this process
            raise
        kind = type(raised).__name__
        reason = (
            f"the model's own code raised {kind}, as sys.exit() does; a model has to return, or to raise an Exception"
        )
        return TrialResult(splits=[], error_type=kind, error=format_exc() + reason)


def _cross_validate(process: WorkerProcess, claim: Claim) -> TrialResult:
    check_signature(process.verifier, claim.search_id, asdict(claim))
    _check_number(claim)

    def load(kind: str, digest: str) -> Any:
        with any_model_loads():
            return patiently(lambda: process.payloads.get(kind, digest), patience_s=process.settings.max_runtime_s)

    with without_garbage_collection():
        from gridfleet.worker.trial.cross_validation import (
            cross_validate_trial,  # claim first: importing scikit-learn takes a second
        )
        from gridfleet.worker.trial.referred_data import with_data
        from gridfleet.worker.trial.refit import refit

    with process.modules.of_search(claim.sources_digest, load):
        with without_garbage_collection():
            # first, for with it comes what models among the candidates may need to be unpickled
            evaluation = load("evaluation", claim.evaluation_digest)
            if evaluation.keras_objects is not None:  # unpickled for an earlier trial, it may not be registered now
                evaluation.keras_objects.register()
            all_params = evaluation.params
            if all_params is None or claim.refit_of is not None or claim.sampler is not None:
                candidates = load("candidates", claim.candidates_digest)
                if claim.refit_of is not None and candidates.are_proposed:
                    candidates = candidates.proposed(_samples(process, claim.refit_of), all_params)
                all_params = all_params or candidates.params
        process.keep_kernels()
        evaluation, X, y = with_data(process.data, evaluation, load("X", claim.x_digest), load("y", claim.y_digest))
        splits = load("splits", claim.splits_digest)
        if claim.refit_of is not None:
            try:
                return refit(process.settings, process.database, claim, evaluation, candidates, X, y, splits=splits)
            except SearchGoesOnError:
                raise TrialInterrupted(Outcome.RELEASED) from None
        params = all_params[claim.number] if claim.sampler is None else _proposed(claim, candidates, all_params)
        if claim.sampler is not None and candidates.halving is not None:
            splits = candidates.halving.splits(splits, claim.number)
        result = cross_validate_trial(
            evaluation,
            X,
            y,
            splits,
            params,
            number=claim.number,
            n_trials=claim.n_trials,
            refit_metric=claim.refit_metric,
            fit_mode=FitMode(claim.fit_mode),
            race=_race(process, claim),
        )
        return result if claim.keep_curves else replace(result, curves=())


def _race(process: WorkerProcess, claim: Claim) -> Any:
    """Return how a trial stands against others, where poor ones are pruned; else None."""
    if claim.pruner is None:
        return None
    from gridfleet.worker.trial.race import Race  # imports scikit-learn

    return Race(process.database, claim, patience_s=process.settings.max_runtime_s)


def _samples(process: WorkerProcess, search_id: int) -> list[Any]:
    return patiently(lambda: proposed.samples(process.database, search_id), patience_s=process.settings.max_runtime_s)


def _proposed(claim: Claim, candidates: Any, all_params: Any) -> dict[str, Any]:
    """Return the hyperparameters of a proposed trial: a point of the space that was signed, whoever proposed it."""
    try:
        params: dict[str, Any] = candidates.params_of(claim.number, claim.sample, all_params)
    except SampleError as error:
        raise PayloadSignatureError(
            f"trial {claim.number} of search {claim.search_id} is no point of the space that was submitted: {error}; "
            "somebody else than gridfleet wrote it into the database"
        ) from error
    return params


def _tell(process: WorkerProcess, claim: Claim) -> None:
    """Let whoever proposes trials know that one has ended; it looks by itself after a while as well."""
    if claim.sampler is None:
        return
    try:
        with closing(Publisher(process.settings, Keys(fleet_id(process.database)))) as publisher:
            publisher.tell()
    except (SQLAlchemyError, RedisError, GridfleetError) as error:
        logger.warning("could not tell that a trial of search %d has ended: %s", claim.search_id, first_line(error))


def _check_number(claim: Claim) -> None:
    """Refuse a trial that its search did not have when it was submitted: of Python's lists, -1 is the last item."""
    if not 0 <= claim.number < claim.n_trials:
        raise PayloadSignatureError(
            f"trial {claim.number} is none of search {claim.search_id}, which was submitted with {claim.n_trials} "
            "trials; somebody else than gridfleet wrote it into the database"
        )


def _give_up(process: WorkerProcess, held: Held, reason: str, trial_timeout: float | None) -> None:
    if reason == Outcome.CANCELLED:
        transitions.cancel(process.database, held)
    elif reason == Outcome.RELEASED:
        _patiently(process, lambda: transitions.release(process.database, held))
    elif reason == Outcome.TIMEOUT:
        fleets = process.settings.max_runtime_s
        limit = f"GRIDFLEET_MAX_RUNTIME_S={fleets:g} s"
        if trial_timeout is not None and trial_timeout <= fleets:
            limit = f"trial_timeout={trial_timeout:g} s"
        _reap(process, held, Outcome.TIMEOUT, f"the attempt took longer than {limit}")
    logger.warning("trial %d: stopped, %s", held.trial_id, reason)


def _reap(process: WorkerProcess, held: Held, outcome: Outcome, error: str) -> None:
    max_failures = process.settings.max_failures
    _patiently(
        process,
        lambda: transitions.reap(process.database, held, outcome=outcome, error=error, max_failures=max_failures),
    )


def _has_the_fleets_key(process: WorkerProcess) -> bool:
    """Whether what is not signed is the trial's fault; as this worker started, nothing may have been stored yet."""
    try:
        process.payloads.check_key()
    except PayloadSignatureError:
        return False
    return True


def _hand_back(process: WorkerProcess, held: Held, error: Exception, told: str) -> None:
    """Give a trial back that failed for this worker's reasons, and end this worker if it does nothing else.

    Raises
    ------
    WorkerStops
        If it takes itself out.
    """
    reason = handed_back.reason_of(error)

    def hand_back() -> str | None:
        transitions.hand_back(process.database, held, worker_id=process.id, reason=reason, error=told)
        why = handed_back.why_to_stop(process.database, process.id)
        if why is not None:
            workers.stop(process.database, process.id, why)
        return why

    if _patiently(process, hand_back) is not None:
        raise WorkerStops


def _patiently(process: WorkerProcess, call: Callable[[], T]) -> T:
    """Ask the database about a trial that is held, for as long as it is; after that the reconciler acts."""
    return patiently(call, patience_s=process.settings.lease_s)
