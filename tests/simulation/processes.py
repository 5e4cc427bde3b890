"""The processes of a fleet as actors: they do what the real ones do, with the real functions, and die."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

import gridfleet.worker.main_process.watchdog
import gridfleet.worker.trial.task
from gridfleet.scheduler.submission import store
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.publish import publish
from gridfleet.storage import searches
from gridfleet.storage.errors import PayloadSignatureError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.trial_results import NON_FINITE, TrialResult
from gridfleet.storage.trials import queue, transitions
from gridfleet.storage.trials.held import Claim, Held
from gridfleet.storage.versions import THIS_PYTHON
from gridfleet.worker.broker.app import KILL_AFTER_S
from gridfleet.worker.guards.sign_of_life import Answer, Found
from gridfleet.worker.main_process.service import _Hooks
from gridfleet.worker.trial.interrupter import TrialInterrupted
from gridfleet.worker.trial.process import WorkerProcess
from gridfleet.worker.trial.successor import MessageForAnother
from gridfleet.worker.trial.task import REST_S, WorkerStops
from tests.simulation.checker import score_of
from tests.simulation.turns import Actor, Crash, Life
from tests.storage.conftest import result_of, store_search

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

#: Seconds between the steps of a fit, at which it can be interrupted.
STEP_S = 7.0


class TimeLimit(Crash):
    """Celery killed a process that was told to stop and did not."""


@dataclass(frozen=True)
class _SeenSign:
    """What a main process sees of a child that holds a trial."""

    sign: Any
    held: Held
    memory_mb: int
    now_s: float
    holds_a_trial: bool = True

    def answer(self, found: Found) -> None:
        self.sign.answered = Answer(self.now_s, found, self.held.token)


class Node:
    """A worker: its main process, and the children that evaluate trials."""

    def __init__(self, simulation: Simulation, name: str, n_processes: int, *, python: str = THIS_PYTHON) -> None:
        self.name = name
        self.python = python
        #: whether its cache can't be written: every evaluation fails for that
        self.is_broken = False
        self._simulation = simulation
        self._turns = simulation.turns
        self._n_starts = 0
        self._pids = itertools.count(1)
        self._lives: dict[str, Life] = {}
        self._start_main()
        for number in range(n_processes):
            simulation.turns.start(f"{name}.{number}", self._work, role="worker")

    def _start_main(self) -> None:
        """Start a main process, under a name of its own as a container has it."""
        world = self._simulation.world
        self._n_starts += 1
        self.node = f"{self.name}{self._n_starts}"
        self.main = Life(f"{self.node} main")
        self.is_leaving = False
        self._n_lost = 0
        self._idle_watcher: Actor | None = None
        self._hooks = _Hooks(world.settings, world.database, self._simulation.broker, node=self.node, end_orphans=None)
        self._watchdog = gridfleet.worker.main_process.watchdog.Watchdog(
            world.settings,
            world.database,
            world.settings.cache_dir,  # no process writes a sign of life there: those that hang are told by _fit
            node=self.node,
            processes=self._living,
            publish_again=self._hooks._publish_again,
            top_up=self._hooks._top_up,
            drain=lambda: None,  # nobody asks
            take_out=lambda: None,  # a process tells by itself: `_work`
        )
        self._turns.start(f"{self.node} watchdog", self._watch, role="main", life=self.main)
        self._idle_beater: Actor | None = None
        self._turns.start(f"{self.node} beater", self._beat, role="main", life=self.main)

    def _living(self) -> list[int]:
        return [_pid(process_id) for process_id, life in self._lives.items() if not life.is_dead]

    def kill(self) -> None:
        """End the main process without notice; its children follow it, and a new one starts."""
        self.main.is_dead = True
        for life in self._lives.values():
            life.is_dead = True
        self._start_main()

    def leave(self) -> None:
        """Stop as at a deploy, as the present actor: let go of all trials, then end."""
        with self._as_main():
            self.is_leaving = True
            self._simulation.begin("SIGTERM")
            self._hooks._release_all()
            self._turns.pause(self._simulation.random.random())
            self._simulation.say("ends")
            self.kill()

    @contextmanager
    def _as_main(self) -> Iterator[None]:
        """Let the present actor be the main process: its children die with it."""
        main = self._turns.me.life = self.main
        self._turns.me.speaks_for = self._is_ours
        try:
            yield
        except Crash:
            if main is self.main:
                self.kill()
            raise

    def _is_ours(self, process_id: str) -> bool:
        """Whether the main process may end what a child holds: it is dead, or all are told to stop."""
        return process_id in self._lives and (self.is_leaving or self._lives[process_id].is_dead)

    def _work(self) -> None:
        handed_on: int | None = None
        while True:
            me = self._turns.me
            process_id = f"{self.node}/{next(self._pids)}"
            me.life = self._lives[process_id] = Life(process_id, on_begin=self._wake_beater)
            me.speaks_for = process_id.__eq__
            main, message = self.main, None
            try:
                process = self._simulation.world.worker_process(self.node, _pid(process_id), python=self.python)
                process.payloads.node = self
                while True:
                    message = None
                    message = self._simulation.broker.receive() if handed_on is None else handed_on
                    handed_on = None
                    self._receive(process, message)
            except MessageForAnother:
                me.life.is_dead = True
                self._simulation.say(f"{process_id} hands {message} on")
                handed_on = message if main is self.main else None
                continue
            except WorkerStops:
                handed_on = None
                self._simulation.say(f"{self.node} takes itself out")
                if main is self.main:
                    self.kill()
                # its orchestrator starts it again some time later
                me.life = Life(me.name)
                self._turns.pause(self._simulation.random.uniform(20, 100))
                continue
            except Crash as crash:
                handed_on = None
                me.life.is_dead = True
                self._simulation.say(f"{process_id} is dead")
                if message is not None and main is self.main:
                    self._tell_main(process, isinstance(crash, TimeLimit))
                self._maybe_write_late(process)
            me.life = Life(me.name)
            self._turns.pause(self._simulation.random.uniform(1, 6))

    def _receive(self, process: WorkerProcess, message: int) -> None:
        self._simulation.begin(f"receives {message} as {process.id}")
        try:
            claim = gridfleet.worker.trial.task._claim(process, message)
            if claim is None:
                self._simulation.say("claims nothing")
                return
            self._simulation.say(f"claims {claim.trial_id}, attempt {claim.attempt}")
            gridfleet.worker.trial.task._work_on(process, claim)
        except queue.WaitsForAnotherPythonError:
            self._simulation.say("leaves what waits for another Python")
            self._turns.pause(REST_S)
        except SQLAlchemyError as error:  # Celery logs it; the message is used up
            self._simulation.say(f"gives up: {type(error).__name__}")

    def _tell_main(self, process: WorkerProcess, was_time_limit: bool) -> None:
        """Let Celery tell the main process of a child's death: its watchdog looks what that held."""
        self._watchdog.on_process_lost(
            _pid(process.id), Outcome.TIMEOUT if was_time_limit else Outcome.WORKER_LOST, "the process ended"
        )
        self._n_lost += 1
        if self._idle_watcher is not None:
            self._turns.wake(self._idle_watcher, self._simulation.random.random())
            self._idle_watcher = None

    def _watch(self) -> None:
        """Do what the watchdog's thread does, but look only when there is something to see."""
        with self._as_main():
            while not self.is_leaving:
                if not self._n_lost:
                    self._idle_watcher = self._turns.me
                    self._turns.park()
                self._n_lost = 0
                self._simulation.begin("looks after the dead")
                try:
                    self._watchdog._take_back()
                except SQLAlchemyError:
                    self._n_lost = 1  # at the next beat, then
                    self._turns.pause(self._simulation.world.settings.heartbeat_s)

    def _beat(self) -> None:
        """Prolong the leases of children that live, as the watchdog's thread does, while there are any."""
        turns, main, seen = self._turns, self.main, {}
        turns.me.speaks_for = self._lives.__contains__
        heartbeat_s = self._simulation.world.settings.heartbeat_s
        while not self.is_leaving:
            turns.pause(heartbeat_s)
            holding = [
                life.sign
                for life in self._lives.values()
                if not life.is_dead and life.sign and life.sign.held is not None
            ]
            if not holding:
                self._idle_beater = turns.me
                turns.park()
                continue
            living = [sign for sign in holding if sign.n_beats != seen.get(sign)]
            seen = {sign: sign.n_beats for sign in holding}
            self._simulation.begin(f"beats for {len(living)} processes")
            try:
                self._watchdog._beat([_SeenSign(one, one.held, one.memory_mb, turns.now_s) for one in living])
            except SQLAlchemyError:
                self._simulation.say("can't beat")
            except Crash:
                if main is self.main:
                    self.kill()
                raise

    def _wake_beater(self) -> None:
        if self._idle_beater is not None:
            self._turns.wake(self._idle_beater)
            self._idle_beater = None

    def _maybe_write_late(self, process: WorkerProcess) -> None:
        """What a dead process had sent to the database before may arrive after its death."""
        checker, random = self._simulation.checker, self._simulation.random
        mine = [row for row in checker.attempts.values() if row.worker_id == process.id]
        last = max(mine, key=lambda row: row.started_at, default=None)
        if last is None or random.random() < 0.5:
            return
        held = Held(last.trial_id, last.token)
        kind = random.choice(("record", "record and claim", "heartbeat", "release", "reap"))
        database = self._simulation.world.database

        def write() -> None:
            self._turns.me.speaks_for = process.id.__eq__
            self._simulation.say(f"a late {kind} of trial {last.trial_id}, attempt {last.attempt}")
            with suppress(SQLAlchemyError):
                if kind == "record":
                    transitions.record(database, held, result_of(score_of(last.trial_id, last.attempt)))
                elif kind == "record and claim":
                    search_id = checker.trials[last.trial_id].search_id
                    claim = Claim(**{**dict.fromkeys(field.name for field in fields(Claim)), "search_id": search_id})
                    claim = replace(claim, trial_id=last.trial_id, token=last.token)
                    result = result_of(score_of(last.trial_id, last.attempt))
                    transitions.record_and_claim(database, claim, result, process.id, lease_s=60, max_runtime_s=240)
                elif kind == "heartbeat":
                    transitions.heartbeat(database, held, lease_s=60)
                elif kind == "release":
                    transitions.release(database, held)
                else:
                    transitions.reap(database, held, outcome=Outcome.WORKER_LOST, error="late", max_failures=3)

        self._turns.start(f"{process.id} late", write, role="worker", delay_s=random.uniform(0.1, 150))


def _pid(process_id: str) -> int:
    return int(process_id.rpartition("/")[2])


def evaluation(simulation: Simulation, process: WorkerProcess) -> TrialResult:
    """Do what a fit does in a worker process: take time, and end somehow."""
    turns = simulation.turns
    end, seconds = simulation.draw_end()
    turns.pause(0.001)  # the checker has to see the claim
    held = process._interrupter.held
    last = next(row for row in simulation.checker.attempts.values() if held and row.token == held.token)
    limit_s = simulation.world.settings.max_runtime_s
    simulation.say(f"evaluates {last.trial_id}: {end}, {seconds:g} s")
    if end == "standstill":  # SIGSTOP, a machine asleep, or C code that lets no other thread run
        lease_s = simulation.world.settings.lease_s
        turns.me.life.stalled_until_s = turns.now_s + simulation.random.uniform(lease_s - 10, lease_s + 30)
    _fit(simulation, 10 * limit_s if end.startswith("hang") else seconds, is_deaf=end == "hang, deaf")
    if end == "death":
        turns.me.life.is_dead = True
        raise Crash("the model's code crashed")
    if end == "no memory":
        raise MemoryError
    if end == "bad payload":
        raise PayloadSignatureError("damaged")
    if end == "defect":
        raise KeyError("a defect of ours")
    if process.payloads.node.is_broken:
        raise OSError(errno.ENOSPC, "No space left on device", f"part-{turns.now_s}")
    if end == "sys.exit":
        raise SystemExit(3)
    score = math.nan if end == "nan" else score_of(last.trial_id, last.attempt)
    result = result_of(score, error="ValueError: the model raised" if end == "error" else None)
    if end != "nan":  # of a Keras model, whose programs other trials of its structure use, or of another one
        return replace(result, fit_mode=simulation.random.choice((FitMode.EXACT, None)))
    return TrialResult(result.splits, mean_test_score=score, error_type=NON_FINITE, error="the mean is nan")


def _fit(simulation: Simulation, seconds: float, *, is_deaf: bool) -> None:
    turns = simulation.turns
    until_s = turns.now_s + seconds
    killed_at_s = turns.now_s + simulation.world.settings.max_runtime_s + KILL_AFTER_S
    while turns.now_s < until_s:
        try:
            turns.pause(min(STEP_S, until_s - turns.now_s))
        except TrialInterrupted:
            if not is_deaf:
                raise
        if is_deaf and turns.now_s >= killed_at_s:
            turns.me.life.is_dead = True
            raise TimeLimit


def submit(
    simulation: Simulation,
    n_trials: int,
    *,
    trial_timeout: float | None,
    search_timeout: float | None,
    for_real: bool,
) -> None:
    """Store a search and publish its trials: by the real `store`, or in a tenth of its time."""
    world = simulation.world
    simulation.begin(f"submits {n_trials} trials, trial_timeout={trial_timeout}, search_timeout={search_timeout}")
    fleet = world.fleet(simulation.broker)
    world.session = f"script of {simulation.turns.me.name}"
    try:
        if for_real:
            options = SearchOptions(FitMode.EXACT, trial_timeout, search_timeout)
            publish(fleet, store.store(fleet, world.request(n_trials), name=None, options=options).id)
            return
        candidates = [{"units": number % 2, "learning_rate": number} for number in range(n_trials)]
        search = store_search(
            world.database,
            candidates,
            name=f"search of {simulation.turns.me.name}",
            signer=world.signer,
            session=world.session,
            needs_python=THIS_PYTHON,
        )
        world.database.raw.execute(
            "UPDATE searches SET trial_timeout = ?, search_timeout = ? WHERE id = ?",
            (trial_timeout, search_timeout, search.id),
        )
        fleet.publish(search.trial_ids)
    except SQLAlchemyError:
        simulation.say("can't submit")


def ask(simulation: Simulation, wish: str, search_id: int) -> None:
    """Do what a user asks of a search, as an actor of that role."""
    database = simulation.world.database
    wishes = {
        "cancel": searches.cancel_search,
        "pause": searches.pause_search,
        "resume": searches.resume_search,
        "retry": searches.retry_failed,
    }
    simulation.begin(f"wants to {wish} search {search_id}")
    try:
        simulation.say(f"{wish}: {wishes[wish](database, search_id)}")
    except SQLAlchemyError:
        simulation.say("can't")
