"""Searches, a broker, workers and a clock as one state machine, whose invariants hypothesis tries to break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Row, delete, select, text

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import FINAL_STATES, Attempt, Curve, Lease, Search, SplitScore, Trial, TrialWarning
from gridfleet.storage.trials import claims, handed_back, queue, transitions
from gridfleet.storage.trials.held import Claim, Held, expired
from gridfleet.storage.versions import THIS_PYTHON
from tests.properties.invariants import MAX_FAILURES, Memory, hold, result_counts
from tests.storage.conftest import TRIAL_WITH_LEASE, StoredSearch, result_of, store_search

# Times are large, and differ from all sums of ticks by far more than an example takes in real seconds.
LEASE_S = 6_050
MAX_RUNTIME_S = 20_050
BACKOFF_S = 1_050
TICKS_S = (100, 3_000, 6_100, 60_000)
REPUBLISH_S = 550

#: Columns of a trial that publishing may change.
PUBLISHING = ("published_at", "publish_count")


class Trials(RuleBasedStateMachine):
    """Searches, a broker that loses, repeats and reorders, workers that never really die, a clock."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.broker: list[int] = []
        self.claims: dict[str, Claim] = {}
        self.zombies: list[Any] = []  # every claim ever made: each may act at any later time
        self.seen_expired: list[Any] = []  # what a reaper has read and not yet acted upon
        self.now_s = 0
        self.n_steps = 0
        self.results_from = self.cancels_from = 0
        self.lease_until: dict[str, float] = {}
        self.deadline: dict[str, float] = {}
        self.not_before: dict[int, float] = {}
        self.handed_back: dict[int, list[str]] = {}
        self.memory = Memory()
        self.searches: list[StoredSearch] = []
        self.params: dict[int, Any] = {}
        self.paused: set[int] = set()
        self.opened_again: set[int] = set()
        self.priorities: dict[int, int] = {}
        self.forgiven: dict[int, int] = {}  # attempts that count no more, since somebody asked for new ones
        with self.database.write() as connection:
            for table in (Lease, Curve, TrialWarning, SplitScore, Attempt, Trial, Search):
                connection.execute(delete(table))

    @initialize(
        results_from=st.sampled_from([0, 10, 25]),
        cancels_from=st.sampled_from([0, 20, 1_000]),
        sizes=st.sampled_from([(2,), (1, 2)]),
    )
    def submit(self, results_from: int, cancels_from: int, sizes: tuple[int, ...]) -> None:
        # final states soon, or only after the trials have lived through something
        self.results_from, self.cancels_from = results_from, cancels_from
        for size in sizes:
            self.submit_another(size)

    @precondition(lambda self: all(row.state in FINAL_STATES for row in self.rows().values()))
    @rule(size=st.integers(1, 2))
    def submit_another(self, size: int) -> None:
        search = store_search(self.database, size, needs_python=THIS_PYTHON)
        self.searches.append(search)
        self.params |= {row.id: row.params for row in self.rows().values() if row.search_id == search.id}

    # what the broker does

    @rule(noted=st.booleans())
    def publish(self, noted: bool) -> None:
        due = queue.due_for_publishing(self.database, republish_s=REPUBLISH_S)
        before = self.rows()
        self.broker += due
        if noted:  # else: killed between the broker and the database
            queue.mark_published(self.database, due)
        after = self.rows()
        hold(_without(before, PUBLISHING) == _without(after, PUBLISHING), "I9: publishing changed a state")
        for trial_id in due:
            hold(before[trial_id].state == "queued", "I9: published what is not queued", before[trial_id])
            hold(self.is_due(trial_id), "published before its time", before[trial_id])
            hold(before[trial_id].search_id not in self.paused, "published of a paused search", before[trial_id])

    @precondition(lambda self: self.broker)
    @rule()
    def erase_broker(self) -> None:
        self.broker.clear()

    @precondition(lambda self: self.broker)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.broker) - 1))
        self.claim(self.broker[index] if again else self.broker.pop(index))

    @rule(data=st.data())
    def deliver_forged(self, data: st.DataObject) -> None:
        self.claim(data.draw(st.sampled_from([*self.params, 2**40])))

    @precondition(lambda self: self.broker)
    @rule(data=st.data(), late=st.booleans())
    def deliver_as_a_hint(self, data: st.DataObject, late: bool) -> None:
        """A worker takes what a message leads to; others may have been faster since it looked."""
        rows = self.rows()
        trial_id = data.draw(st.sampled_from(self.broker))
        known = data.draw(st.sampled_from([(), (rows[trial_id].structure_digest,)]))
        hint = queue.look(self.database, trial_id)
        next_ones = self.next_searches()
        hold((hint is not None) == bool(next_ones), "a message that hides work", hint)
        if hint is None:
            return
        hold(hint.search_id in next_ones, "fair share: another search is next", hint, next_ones)
        if late and hint.trial_id is not None:
            self.claim(hint.trial_id)
        waiting = self.waiting_of(hint.search_id)
        limits = {"lease_s": LEASE_S, "max_runtime_s": MAX_RUNTIME_S}
        claim = claims.claim_at_message(self.database, hint, "node/1", structures=known, **limits)
        hold((claim is not None) == bool(waiting), "I10: claimed what may not start, or not what may", waiting, claim)
        if claim is not None:
            row = next((row for row in waiting if row.id == claim.trial_id), None)
            hold(row is not None and claim.attempt == row.attempt + 1, "took another", waiting, claim)
            self.note_claim(claim)

    def next_searches(self) -> list[int]:
        """List those of the highest priority of which a trial waits, and of these those of which fewest run."""
        rows = self.rows().values()
        n_running = {search.id: 0 for search in self.searches if self.waiting_of(search.id)}
        most = max((self.priorities.get(search_id, 0) for search_id in n_running), default=0)
        n_running = {one: n for one, n in n_running.items() if self.priorities.get(one, 0) == most}
        for row in rows:
            if row.state == "running" and row.search_id in n_running:
                n_running[row.search_id] += 1
        return [one for one, n in n_running.items() if n == min(n_running.values())]

    def waiting_of(self, search_id: int) -> list[Row[Any]]:
        rows = [row for row in self.rows().values() if row.search_id == search_id and search_id not in self.paused]
        return [row for row in rows if row.state == "queued" and self.is_due(row.id)]

    @rule(data=st.data())
    def deliver_to_another_python(self, data: st.DataObject) -> None:
        before, trial_id = self.rows(), data.draw(st.sampled_from(list(self.params)))
        options = {"lease_s": LEASE_S, "max_runtime_s": MAX_RUNTIME_S, "python": "3.99"}
        claim = claims.claim(self.database, trial_id, "node/1", **options)
        hold(claim is None and before == self.rows(), "claimed by another Python", claim)

    def claim(self, trial_id: int) -> None:
        before = self.rows().get(trial_id)
        claim = claims.claim(self.database, trial_id, "node/1", lease_s=LEASE_S, max_runtime_s=MAX_RUNTIME_S)
        may_start = before is not None and before.state == "queued" and self.is_due(trial_id)
        may_start = may_start and before.search_id not in self.paused
        hold((claim is not None) == may_start, "I10: claimed what may not start, or not what may", before, claim)
        if claim is None:
            return
        hold(claim.attempt == before.attempt + 1, "I4: an attempt is not the next one", before, claim)
        self.note_claim(claim)

    def note_claim(self, claim: Claim) -> None:
        self.claims[claim.token] = claim
        self.zombies.append(Held(claim.trial_id, claim.token))
        self.lease_until[claim.token] = self.now_s + LEASE_S
        self.deadline[claim.token] = self.now_s + MAX_RUNTIME_S

    # what workers do, those that lost their lease included

    def act(self, data: st.DataObject, action: Callable[[Any, Row[Any]], Any]) -> tuple[Any, bool]:
        """Let one of all workers act; what it does must work exactly if it holds the trial."""
        before, holders = self.rows(), self.holders()
        held = data.draw(st.sampled_from(holders if holders and data.draw(st.booleans()) else self.zombies))
        is_held = before[held.trial_id].token == held.token
        answer = action(held, before[held.trial_id])
        if not is_held:
            hold(answer in (False, None), "I8: an old token wrote", held, answer)
            hold(before == self.rows(), "I8: an old token changed a row", held)
        return held, is_held

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        def beat(held: Any, before: Row[Any]) -> bool | None:
            answer = transitions.heartbeat(self.database, held, lease_s=LEASE_S)
            if before.token == held.token:
                hold(answer == before.cancel_requested, "a heartbeat hides or makes up a cancellation", before)
            return answer

        held, is_held = self.act(data, beat)
        if is_held:
            self.lease_until[held.token] = self.now_s + LEASE_S

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def heartbeats(self, data: st.DataObject) -> None:
        """A main process beats for all its processes, those that lost their lease included."""
        some = data.draw(st.lists(st.sampled_from(self.zombies), unique=True, max_size=4))
        before = self.rows()
        answers = transitions.heartbeats(self.database, dict.fromkeys(some, 100), lease_s=LEASE_S)
        held = {one: before[one.trial_id].cancel_requested for one in some if before[one.trial_id].token == one.token}
        hold(answers == held, "heartbeats hide or make up a cancellation or a loss", answers, held)
        for one in held:
            self.lease_until[one.token] = self.now_s + LEASE_S

    @precondition(lambda self: self.zombies and self.n_steps >= self.results_from)
    @rule(data=st.data(), outcome=st.sampled_from(["completed", "failed", "nan"]))
    def record(self, data: st.DataObject, outcome: str) -> None:
        def write(held: Any, before: Row[Any]) -> bool:
            score = math.nan if outcome == "nan" else float(before.attempt)
            result = result_of(score, error=None if outcome == "completed" else "it raised")
            return transitions.record(self.database, held, result)

        held, is_held = self.act(data, write)
        if is_held:
            after = self.rows()[held.trial_id]
            hold(after.state == ("completed" if outcome == "completed" else "failed"), "recorded as another", after)

    @precondition(lambda self: self.zombies and self.n_steps >= self.results_from)
    @rule(data=st.data(), after=st.sampled_from(["nothing", "a pause", "a cancellation"]))
    def record_and_claim(self, data: st.DataObject, after: str) -> None:
        """A trial ends and the next one is claimed with it, perhaps just after somebody wanted none any more."""
        if after == "a pause":
            self.pause_search(data)
        elif after == "a cancellation" and self.n_steps >= self.cancels_from:
            self.cancel_search(data)

        def write(held: Any, before: Row[Any]) -> bool:
            claim = self.claims[held.token]
            first = next((row for row in self.waiting_of(before.search_id) if row.id > before.id), None)
            is_recorded, following = transitions.record_and_claim(
                self.database,
                claim,
                result_of(float(before.attempt)),
                "node/1",
                lease_s=LEASE_S,
                max_runtime_s=MAX_RUNTIME_S,
            )
            may_follow = before.token == held.token and first is not None and first.attempt == 0
            hold((following is not None) == may_follow, "I10: took what may not start, or not what may", first)
            if following is not None:
                hold((following.trial_id, following.attempt) == (first.id, 1), "took another", first, following)
                self.note_claim(following)
            return is_recorded

        held, is_held = self.act(data, write)
        if is_held:
            hold(self.rows()[held.trial_id].state == "completed", "recorded as another", held)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held, is_held = self.act(data, lambda held, _: transitions.release(self.database, held))
        if is_held:
            self.not_before.pop(held.trial_id, None)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data(), host=st.sampled_from("abcd"), reason=st.sampled_from(["disk full", "no package"]))
    def hand_back(self, data: st.DataObject, host: str, reason: str) -> None:
        """A worker can't evaluate what it holds, for reasons of its own."""

        def give(held: Any, before: Row[Any]) -> bool:
            return transitions.hand_back(
                self.database, held, worker_id=f"{host}/1", reason=reason, error=f"by {host}: {reason}"
            )

        held, is_held = self.act(data, give)
        if is_held:
            self.note_handed_back(held.trial_id, reason)

    @rule(data=st.data(), times=st.integers(2, 3))
    def hand_back_again_and_again(self, data: st.DataObject, times: int) -> None:
        trial_id = data.draw(st.sampled_from(list(self.params)))
        for _ in range(times):
            self.claim(trial_id)
            token = self.rows()[trial_id].token
            if token is not None:
                options = {"worker_id": "a/1", "reason": "disk full", "error": ""}
                hold(transitions.hand_back(self.database, Held(trial_id, token), **options), "not handed back", token)
                self.note_handed_back(trial_id, "disk full")
            self.trials_are_sound()
            self.tick(6_100)

    def note_handed_back(self, trial_id: int, reason: str) -> None:
        after = self.rows()[trial_id]
        told = self.handed_back.setdefault(trial_id, [])
        self.not_before[trial_id] = self.now_s + BACKOFF_S * (2 ** min(len(told), 8) - 1)
        told.append(reason)
        # nobody is registered, so nobody else is there who could evaluate it
        is_refused = told.count(reason) >= handed_back.WORKERS or len(told) >= handed_back.MOST
        hold(after.state in ("queued", "cancelled") or is_refused, "failed before all workers refused it", after)
        hold(after.state != "queued" or not is_refused, "circles for ever", after, told)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        held, is_held = self.act(data, lambda held, _: self.reap_as(held, Outcome.WORKER_LOST))
        if is_held:
            self.back_off(held.trial_id)

    @rule(data=st.data(), times=st.integers(1, MAX_FAILURES), patient=st.booleans())
    def crash_again_and_again(self, data: st.DataObject, times: int, patient: bool) -> None:
        trial_id = data.draw(st.sampled_from(list(self.params)))
        for _ in range(times):
            self.claim(trial_id)
            token = self.rows()[trial_id].token
            if token is not None:
                self.reap_as(Held(trial_id, token), Outcome.WORKER_LOST)
                self.back_off(trial_id)
            self.trials_are_sound()
            if patient:
                self.tick(3_000)

    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        """A trial that does not end: its lease is prolonged until, at last, its deadline is over."""
        self.claim(data.draw(st.sampled_from(list(self.params))))
        for _ in range(MAX_RUNTIME_S // 3_000 + 1):
            for held in self.holders():
                transitions.heartbeat(self.database, held, lease_s=LEASE_S)
                self.lease_until[held.token] = self.now_s + LEASE_S
            self.tick(3_000)
        self.look_for_expired()

    @rule(data=st.data(), cancelled=st.booleans())
    def deploy(self, data: st.DataObject, cancelled: bool) -> None:
        """Every worker is told to stop, perhaps just after somebody cancelled a search."""
        self.claim(data.draw(st.sampled_from(list(self.params))))
        if cancelled and self.n_steps >= self.cancels_from:
            self.cancel_search(data)
        for held in self.holders():
            before = self.rows()[held.trial_id]
            hold(transitions.release(self.database, held), "a held trial was not released", before)
            self.not_before.pop(held.trial_id, None)
            after = self.rows()[held.trial_id]
            hold(after.state == ("cancelled" if before.cancel_requested else "queued"), "released as another", after)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def end_cancelled(self, data: st.DataObject) -> None:
        def end(held: Any, before: Row[Any]) -> bool | None:
            # a worker cancels only what it was told to, perhaps before the search was opened again
            was_told = before.cancel_requested or before.search_id in self.opened_again
            return transitions.cancel(self.database, held) if was_told else None

        before = self.rows()
        held, is_held = self.act(data, end)
        if is_held and before[held.trial_id].search_id in self.opened_again:
            ended = "cancelled" if before[held.trial_id].cancel_requested else "queued"
            hold(self.rows()[held.trial_id].state == ended, "cancelled what goes on, or not", before[held.trial_id])
            self.not_before.pop(held.trial_id, None)

    # what the reconciler and users do

    @rule()
    def look_for_expired(self) -> None:
        self.seen_expired = expired(self.database)
        running = {row.token for row in self.rows().values() if row.state == "running"}
        over = {token for token in running if self.is_over(token)}
        hold({held.token for held in self.seen_expired} == over, "the reaper sees others than the expired ones")

    @precondition(lambda self: self.zombies)
    @rule(late_heartbeat=st.booleans())
    def outlive_the_lease(self, late_heartbeat: bool) -> None:
        self.tick(6_100)
        self.look_for_expired()
        for held in self.seen_expired if late_heartbeat else []:
            transitions.heartbeat(self.database, held, lease_s=LEASE_S)
            self.lease_until[held.token] = self.now_s + LEASE_S
        self.reap()

    @precondition(lambda self: self.seen_expired)
    @rule()
    def reap(self) -> None:
        for held in self.seen_expired:  # read some steps ago: a heartbeat may have come since
            before = self.rows()[held.trial_id]
            taken = self.reap_as(held, Outcome.TIMEOUT if held.is_overdue else Outcome.LEASE_EXPIRED, expired_only=True)
            due = before.token == held.token and self.is_over(held.token)
            hold(taken == due, "the reaper took a living trial back, or left a dead one", before)
            if taken:
                self.back_off(held.trial_id)
        self.seen_expired = []

    @precondition(lambda self: self.n_steps >= self.cancels_from)
    @rule(data=st.data())
    def cancel_search(self, data: st.DataObject) -> None:
        search = self.searches[-1 - data.draw(st.integers(0, min(2, len(self.searches)) - 1))]
        was_finished = search.row().finished_at is not None
        cancelled = searches.cancel_search(self.database, search.id)
        hold(cancelled != was_finished, "a finished search was cancelled, or an open one was not", search.row())
        for row in self.rows().values():
            if row.search_id == search.id and not was_finished:
                hold(row.state != "queued", "a cancelled search has queued trials", row)
                hold(row.state != "running" or row.cancel_requested, "a running trial was not asked to stop", row)

    @rule(data=st.data())
    def pause_search(self, data: st.DataObject) -> None:
        search = data.draw(st.sampled_from(self.searches))
        may_pause = search.row().finished_at is None and search.id not in self.paused
        hold(searches.pause_search(self.database, search.id) == may_pause, "paused what is over, or not", search.row())
        if may_pause:
            self.paused.add(search.id)

    @rule(data=st.data(), priority=st.sampled_from([-1, 0, 1]))
    def set_priority(self, data: st.DataObject, priority: int) -> None:
        search = data.draw(st.sampled_from(self.searches))
        may_change = search.row().finished_at is None
        hold(searches.set_priority(self.database, search.id, priority) == may_change, "ended, or not", search.row())
        if may_change:
            self.priorities[search.id] = priority

    @precondition(lambda self: self.paused)
    @rule(data=st.data())
    def resume_search(self, data: st.DataObject) -> None:
        search = data.draw(st.sampled_from([one for one in self.searches if one.id in self.paused]))
        was_finished = search.row().finished_at is not None
        resumed = searches.resume_search(self.database, search.id)
        hold(resumed != was_finished, "resumed what is over, or not", search.row())
        if resumed:
            self.paused.discard(search.id)
            queued = [row for row in self.rows().values() if row.search_id == search.id and row.state == "queued"]
            hold(all(row.published_at is None for row in queued), "messages of before the pause are counted on", queued)

    @rule(data=st.data())
    def retry_failed(self, data: st.DataObject) -> None:
        """The one way out of a final state, which somebody has to ask for."""
        search = data.draw(st.sampled_from(self.searches))
        rows = [row for row in self.rows().values() if row.search_id == search.id and row.state == "failed"]
        wanted = [] if search.row().state == "cancelled" else rows
        hold(searches.retry_failed(self.database, search.id) == len(wanted), "not the failed ones", rows)
        after, results = self.rows(), result_counts(self.database)
        for row in wanted:
            hold((after[row.id].state, after[row.id].failures) == ("queued", 0), "not queued anew", after[row.id])
            hold(row.id not in results, "kept the scores of before", row)
            del self.memory.final[row.id]
            self.not_before.pop(row.id, None)
            self.forgiven[row.id] = row.attempt

    @rule(data=st.data())
    def open_again(self, data: st.DataObject) -> None:
        """The other way out of a final state: somebody submits a search that was cancelled once more."""
        search = data.draw(st.sampled_from(self.searches))
        before = [row for row in self.rows().values() if row.search_id == search.id]
        cancelled = [row for row in before if row.state == "cancelled"]
        was_open = search.row().finished_at is None
        searches.open_again(self.database, search.id)
        hold(search.row().state != "cancelled", "is cancelled still", search.row())
        after = self.rows()
        for row in cancelled:
            hold((after[row.id].state, after[row.id].attempt) == ("queued", row.attempt), "not queued", after[row.id])
            del self.memory.final[row.id]
            self.not_before.pop(row.id, None)
        hold(not any(after[row.id].cancel_requested for row in before if row.state != "completed"), "is to stop", after)
        if was_open or cancelled:
            self.paused.discard(search.id)
            self.opened_again.add(search.id)

    @rule()
    def finish_searches(self) -> None:
        for search_id in searches.unfinished_searches(self.database):
            hold(not searches.finish_search(self.database, search_id), "a search was left unfinished", search_id)

    @rule(dt_s=st.sampled_from(TICKS_S))
    def tick(self, dt_s: int) -> None:
        """Move all open times into the past, which is the same as moving the clock on."""
        self.now_s += dt_s
        with self.database.write() as connection:
            for table, columns, where in _OPEN_TIMES:
                moved = ", ".join(f"{column} = {self._earlier(column)}" for column in columns)
                connection.execute(text(f"UPDATE {table} SET {moved} WHERE {where}"), {"dt": dt_s})

    def _earlier(self, column: str) -> str:
        if self.database.dialect == "postgresql":
            return f"{column} - CAST(:dt AS integer) * interval '1 second'"
        return f"strftime('%Y-%m-%d %H:%M:%f+00:00', {column}, '-' || :dt || ' seconds')"

    # what must hold after each step

    @invariant()
    def trials_are_sound(self) -> None:
        self.n_steps += 1
        rows = self.rows()
        hold({row.id: row.params for row in rows.values()} == self.params, "I7: trials appeared, vanished or changed")
        self.memory.check(self.database, rows, forgiven=self.forgiven)

    @invariant()
    def leases_are_those_of_running_trials(self) -> None:
        running = {(row.id, row.token, row.worker_id) for row in self.rows().values() if row.state == "running"}
        with self.database.read() as connection:
            leases = set(map(tuple, connection.execute(select(Lease.trial_id, Lease.token, Lease.worker_id))))
        hold(leases == running, "I3: a lease of each running trial, and no other", leases, running)

    @invariant()
    def searches_are_sound(self) -> None:
        rows = self.rows().values()
        for search in self.searches:
            mine, row = [trial for trial in rows if trial.search_id == search.id], search.row()
            all_final = all(trial.state in FINAL_STATES for trial in mine)
            hold((row.finished_at is not None) == all_final, "a search is finished exactly when its trials are", row)
            hold(row.state != "completed" or all_final, "completed too early", row)
            hold(row.state != "queued" or not any(trial.attempt for trial in mine), "still queued", row)

    def teardown(self) -> None:
        """I12, I14: when the faults stop, one round of the reconciler and of the workers ends everything."""
        self.broker.clear()
        for search_id in self.paused:
            searches.resume_search(self.database, search_id)
        self.paused.clear()
        self.tick(60_000)
        self.look_for_expired()
        self.reap()
        self.tick(60_000)
        self.publish(noted=True)
        for trial_id in self.broker:
            self.claim(trial_id)
        for held in self.zombies:
            transitions.record(self.database, held, result_of(float(self.rows()[held.trial_id].attempt)))
        self.trials_are_sound()
        self.searches_are_sound()
        left = [row for row in self.rows().values() if row.state not in FINAL_STATES]
        hold(not left, "I12: trials without end", left)

    # the model's own view

    def is_due(self, trial_id: int) -> bool:
        return self.not_before.get(trial_id, 0) <= self.now_s

    def is_over(self, token: str) -> bool:
        return min(self.lease_until.get(token, math.inf), self.deadline.get(token, math.inf)) < self.now_s

    def back_off(self, trial_id: int) -> None:
        failures = self.rows()[trial_id].failures
        self.not_before[trial_id] = self.now_s + BACKOFF_S * (2 ** (failures - 1) - 1)

    def reap_as(self, held: Any, outcome: Outcome, **options: Any) -> bool:
        return transitions.reap(
            self.database, held, outcome=outcome, error="the test says so", max_failures=MAX_FAILURES, **options
        )

    def holders(self) -> list[Any]:
        rows = self.rows()
        return [held for held in self.zombies if rows[held.trial_id].token == held.token]

    def rows(self) -> dict[int, Row[Any]]:
        with self.database.read() as connection:
            query = select(*TRIAL_WITH_LEASE).outerjoin(Lease, Lease.trial_id == Trial.id).order_by(Trial.id)
            rows = connection.execute(query)
            return {row.id: row for row in rows}


_OPEN_TIMES = (
    (
        "trials",
        ("deadline_at", "not_before", "published_at", "started_at"),
        "state IN ('queued', 'running')",
    ),
    ("leases", ("expires_at",), "true"),
    ("attempts", ("started_at",), "ended_at IS NULL"),
)


def _without(rows: dict[int, Row[Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row._mapping.items() if name not in columns} for row in rows.values()]


def explore(opened: Database, *, examples: int, **options: Any) -> None:
    machine = type("Trials", (Trials,), {"database": opened})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=checks, **options
        ),
    )
