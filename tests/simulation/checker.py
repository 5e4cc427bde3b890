"""The invariants I1 to I14, looked at after every turn: what may be in the tables, and who may change it to what."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from gridfleet.storage.schema import Trial
from gridfleet.storage.trials.lost_together import CLEARLY, FREE_LOSSES
from tests.simulation.faulty_database import EPOCH, FaultyDatabase, shown_time
from tests.simulation.turns import Actor, hold

FINAL = ("completed", "failed", "cancelled")
#: What the name of a worker begins with that has another Python than all searches.
OF_ANOTHER_PYTHON = "another python's"
#: Outcomes of attempts that do not count against the budget.
HARMLESS = ("completed", "failed", "released", "cancelled", "handed_back")


_OTHERS = ", ".join(column.name for column in Trial.__table__.columns if column.name != "lease_expires_at")
#: Trials, each with the end of its lease.
TRIALS = f"(SELECT {_OTHERS}, (SELECT expires_at FROM leases WHERE trial_id = id) AS lease_expires_at FROM trials)"


class TrialRow(NamedTuple):
    """A row of ``trials``, with the end of its lease."""

    id: int
    search_id: int
    number: int
    params: str
    state: str
    attempt: int
    worker_id: str | None
    token: str | None
    failures: int
    lease_expires_at: str | None
    deadline_at: str | None
    not_before: str | None
    cancel_requested: int
    published_at: str | None
    publish_count: int
    started_at: str | None
    finished_at: str | None
    mean_test_score: float | None
    error_type: str | None
    error: str | None


class AttemptRow(NamedTuple):
    """A row of ``attempts``."""

    trial_id: int
    attempt: int
    token: str
    worker_id: str
    started_at: str
    ended_at: str | None
    outcome: str | None
    error: str | None
    peak_memory_mb: int | None


class SearchRow(NamedTuple):
    """A row of ``searches``."""

    id: int
    state: str
    n_trials: int
    n_splits: int
    trial_timeout: float | None
    search_timeout: float | None
    started_at: str | None
    finished_at: str | None
    paused_at: str | None
    error: str | None


def score_of(trial_id: int, attempt: int) -> float:
    """Return the score that an attempt of a trial finds: no other's."""
    return trial_id * 1000.0 + attempt


class Checker:
    """What was seen after the last turn, to compare with what is there now.

    Parameters
    ----------
    database : FaultyDatabase
        Between transactions.
    max_failures : int
        The budget.
    lease_s : float
        Seconds of a lease.
    say : callable
        Writes the log.
    """

    def __init__(
        self, database: FaultyDatabase, *, max_failures: int, lease_s: float, say: Callable[[str], None]
    ) -> None:
        self.trials: dict[int, TrialRow] = {}
        self.searches: dict[int, SearchRow] = {}
        self.attempts: dict[tuple[int, int], AttemptRow] = {}
        self._database = database
        self._max_failures = max_failures
        self._lease_s = lease_s
        self._say = say
        self._seen_changes = -1
        self._scores: dict[int, tuple[int, float, float]] = {}
        #: the attempts of each trial that count no more, for somebody asked to try it again
        self._forgiven: dict[int, int] = {}

    def look(self, actor: Actor) -> None:
        """Look at what an actor's turn has changed.

        Raises
        ------
        InvariantError
            If that must not be.
        """
        raw = self._database.raw
        hold(not raw.in_transaction, "a turn ends within a transaction")
        hold(self._database.defect is None, str(self._database.defect))
        if raw.total_changes == self._seen_changes:
            return
        self._seen_changes = raw.total_changes
        attempts = {(row.trial_id, row.attempt): row for row in self._rows(AttemptRow, "attempts")}
        searches = {row.id: row for row in self._rows(SearchRow, "searches")}
        trials = {row.id: row for row in self._rows(TrialRow, TRIALS)}
        leases = set(raw.execute("SELECT trial_id, token, worker_id FROM leases"))
        running = {(row.id, row.token, row.worker_id) for row in trials.values() if row.state == "running"}
        hold(leases == running, "I3: a lease of each running trial, and no other", leases, running)
        scores = "SELECT trial_id, COUNT(*), MIN(test_score), MAX(test_score) FROM split_scores GROUP BY trial_id"
        self._scores = {trial_id: rest for trial_id, *rest in raw.execute(scores)}
        before, self.trials = self.trials, trials
        searches_before, self.searches = self.searches, searches
        attempts_before, self.attempts = self.attempts, attempts
        self._check_numbers(before, actor)
        self._check_attempts(attempts_before)
        for row in trials.values():
            if row.id in before and row != before[row.id]:
                self._check_change(before[row.id], row, actor)
            self._check_trial(row)
        for search in searches.values():
            self._check_search(searches_before.get(search.id), search, actor)

    def require_stored(self, trial_id: int) -> None:
        """Make sure that a trial is committed, as its message is sent."""
        hold(not self._database.raw.in_transaction, "I9: messages are sent within a transaction")
        found = self._database.raw.execute("SELECT 1 FROM trials WHERE id = ?", (trial_id,)).fetchone()
        hold(found, "I9: a message for a trial that is not committed", trial_id)

    def is_quiet(self) -> bool:
        """Whether all searches are finished, and so all trials."""
        return all(search.finished_at is not None for search in self.searches.values())

    def open_rows(self) -> list[Any]:
        """Return what is not at its end."""
        searches = [search for search in self.searches.values() if search.finished_at is None]
        return [*searches, *(trial for trial in self.trials.values() if trial.state not in FINAL)]

    def _rows(self, kind: Any, table: str) -> Any:
        return map(kind._make, self._database.raw.execute(f"SELECT {', '.join(kind._fields)} FROM {table} ORDER BY 1"))

    def _now(self) -> str:
        assert self._database.turns is not None
        return shown_time(self._database.turns.now_s)

    def _check_numbers(self, before: dict[int, TrialRow], actor: Actor) -> None:
        hold(before.keys() <= self.trials.keys(), "I7: trials vanished", before.keys() - self.trials.keys())
        new = [self.trials[trial_id] for trial_id in self.trials.keys() - before.keys()]
        hold(not new or actor.role == "submit", "I7: trials appeared", new)
        for search in self.searches.values():
            numbers = [row.number for row in self.trials.values() if row.search_id == search.id]
            hold(sorted(numbers) == list(range(search.n_trials)), "I7: not the trials of the search", search, numbers)

    def _check_change(self, before: TrialRow, after: TrialRow, actor: Actor) -> None:
        if before.state != after.state:
            self._say(f"trial {after.id}: {before.state} -> {after.state}, attempt {after.attempt}")
        evidence = (f"{before.state} -> {after.state} by {actor.name}", before, after)
        hold(
            (before.number, before.params, before.search_id) == (after.number, after.params, after.search_id), *evidence
        )
        check = _CHANGES.get((before.state, after.state))
        hold(check is not None, "I1: no such change" if before.state in FINAL else "no such change", *evidence)
        assert check is not None
        reason = check(self, before, after, actor)
        hold(reason is None, str(reason), *evidence)

    # each of these says why a change must not be, or None

    def _published(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        if actor.role == "resume":
            return _differ(before, after, "published_at", "publish_count")
        if after.publish_count != before.publish_count + 1 or after.id not in actor.sent:
            return "I9: noted as published, but no message was sent"
        actor.sent.remove(after.id)
        return _differ(before, after, "published_at", "publish_count")

    def _claimed(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        search = self.searches[after.search_id]
        if before.cancel_requested or search.state == "cancelled":
            return "I10: a cancelled trial starts"
        if search.paused_at is not None:
            return "a trial of a paused search starts"
        if before.not_before is not None and before.not_before > self._now():
            return "tried again before its time"
        if str(after.worker_id).startswith(OF_ANOTHER_PYTHON):
            return "claimed by another Python"
        if actor.role != "worker" or after.worker_id is None or not actor.speaks_for(after.worker_id):
            return "claimed by somebody else"
        return None if after.attempt == before.attempt + 1 else "I4: not the next attempt"

    def _kept(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        if after.cancel_requested != before.cancel_requested:
            return self._told_to_stop(before, after, actor) or _differ(before, after, "cancel_requested")
        if actor.role == "reconciler" and str(after.deadline_at) > str(before.deadline_at):  # it was away
            return _differ(before, after, "deadline_at")
        if not actor.speaks_for(str(before.worker_id)):
            return "I8: not its holder"
        if str(after.lease_expires_at) < str(before.lease_expires_at):
            return "the lease got shorter"
        return _differ(before, after, "lease_expires_at")

    def _told_to_stop(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        search = self.searches[after.search_id]
        if actor.role == "cancel" and search.state == "cancelled":
            return None
        return None if actor.role == "reconciler" and self._is_over_time(search) else "I1: nobody cancelled it"

    def _ended(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        now = self._now()
        is_expired = str(before.lease_expires_at) < now or str(before.deadline_at) < now
        if not actor.speaks_for(str(before.worker_id)) and not (actor.role == "reconciler" and is_expired):
            return "I8: neither its holder nor expired"
        if after.attempt != before.attempt:
            return "I4: another attempt"
        was_over = str(min(before.lease_expires_at, before.deadline_at)) < shown_time(actor.life.fell_asleep_s)
        if actor.role == "reconciler" and self._is_just_awake(actor) and not was_over:
            return "I5: judged before those that slept with it had time for a heartbeat"
        if before.cancel_requested and after.state == "queued":
            return "I10: a cancelled trial is queued again"
        if after.state == "cancelled" and not before.cancel_requested:
            return "nobody cancelled it"
        return None

    def _is_just_awake(self, actor: Actor) -> bool:
        assert self._database.turns is not None
        return self._database.turns.now_s < actor.life.slept_until_s + self._lease_s

    def _retried(self, before: TrialRow, after: TrialRow, actor: Actor) -> str | None:
        self._forgiven[after.id] = after.attempt
        if actor.role != "retry":
            return "I1: nobody asked to try it again"
        if after.cancel_requested or after.failures or after.attempt != before.attempt:
            return "not with its whole budget"
        return None

    def _check_trial(self, row: TrialRow) -> None:
        n_results, least, most = self._scores.get(row.id, (0, None, None))
        is_running, is_final = row.state == "running", row.state in FINAL
        hold((row.token is not None) == is_running, "I3: a token iff running", row)
        hold((row.lease_expires_at is not None) == (row.deadline_at is not None) == is_running, "I3: lease", row)
        hold((row.finished_at is not None) == is_final, "I1: finished_at iff final", row)
        hold(row.state != "queued" or not row.cancel_requested, "I10: queued, though cancelled", row)
        if row.state == "completed":
            score = score_of(row.id, row.attempt)
            hold(row.mean_test_score == least == most == score, "I2, I4: not the last attempt's score", row)
            hold(n_results == self.searches[row.search_id].n_splits, "I2: not one result", row, n_results)
        elif row.state == "failed":
            hold(row.error_type and row.error, "failed without a cause", row)
        else:
            hold(row.mean_test_score is None and n_results == 0, "I2: a score of a trial that has none", row)
        self._check_story(row)

    def _check_story(self, row: TrialRow) -> None:
        tries = [one for one in self.attempts.values() if one.trial_id == row.id]
        hold([one.attempt for one in tries] == list(range(1, row.attempt + 1)), "I6: attempts not noted", row, tries)
        still_open = [one for one in tries if one.ended_at is None]
        hold(len(still_open) == (row.state == "running"), "I6, I11: open attempts", row, tries)
        hold(all(one.token == row.token for one in still_open), "I4: another's attempt is open", row, tries)
        counted = [one for one in tries[self._forgiven.get(row.id, 0) :] if one.outcome not in (None, *HARMLESS)]
        hold(row.failures == len(counted), "I5: failures miscounted", row, tries)
        hold(row.failures < self._max_failures or row.state in FINAL, "I5: tried beyond the budget", row, tries)
        is_spent = row.failures >= self._max_failures or (row.error_type == "timeout" and self._has_own_limit(row))
        is_spent = is_spent or _is_refused(tries)
        hold(row.state != "failed" or is_spent or tries[-1].outcome == "failed", "I5: failed too soon", row, tries)
        hold(sum(map(_is_free_loss, tries)) <= FREE_LOSSES, "I12: lost for free again and again", row, tries)
        won = [one.attempt for one in tries if one.outcome == "completed"]
        hold(won == [row.attempt] * (row.state == "completed"), "I2: results of attempts", row, tries)

    def _check_attempts(self, before: dict[tuple[int, int], AttemptRow]) -> None:
        hold(before.keys() <= self.attempts.keys(), "I11: attempts vanished")
        for key, row in self.attempts.items():
            old = before.get(key)
            if old == row:
                continue
            hold(old is None or old.ended_at is None, "I11: a closed attempt changed", old, row)
            hold(row.ended_at is None or row.started_at <= row.ended_at <= self._now(), "I11: ended when?", row)
            hold(row.outcome != "lease_expired" or not self._went_with_others(row), "I5: charged with its worker", row)
            told = ("OperationalError", "No space left", "a defect of ours")
            is_ours = row.outcome != "handed_back" or any(one in str(row.error) for one in told)
            hold(is_ours, "a defect of the worker's own", row.error)

    def _went_with_others(self, row: AttemptRow) -> bool:
        """Whether another trial of the same worker was charged for its end, and nothing says that it was this one."""
        node = row.worker_id.rpartition("/")[0]
        charged = [
            other
            for other in self.attempts.values()
            if other.outcome == "lease_expired"
            and other.worker_id != row.worker_id
            and other.worker_id.startswith(f"{node}/")
            and str(other.ended_at) >= row.started_at
            and (row.peak_memory_mb or 0) < CLEARLY * (other.peak_memory_mb or math.inf)
        ]
        mine = [one for one in self.attempts.values() if one.trial_id == row.trial_id]
        return bool(charged) and len([one for one in mine if _is_free_loss(one)]) < FREE_LOSSES

    def _check_search(self, before: SearchRow | None, after: SearchRow, actor: Actor) -> None:
        mine = [row for row in self.trials.values() if row.search_id == after.id]
        is_finished = after.finished_at is not None
        hold(not is_finished or all(row.state in FINAL for row in mine), "finished before its trials", after, mine)
        hold(after.state != "completed" or is_finished, "completed, but not finished", after)
        hold(after.state != "queued" or not any(row.attempt for row in mine), "still queued", after)
        if before is None or before == after:
            return
        evidence = (f"by {actor.name}", before, after)
        if before.state != after.state or before.finished_at != after.finished_at:
            self._say(f"search {after.id}: {before.state} -> {after.state}{', finished' * is_finished}")
        hold(before.finished_at is None or actor.role == "retry", "I1: a finished search changed", *evidence)
        hold(before.state != "cancelled" or after.state == "cancelled", "I1: a cancelled search goes on", *evidence)
        hold(
            before.state == after.state or after.state != "cancelled" or actor.role == "cancel", "cancelled", *evidence
        )
        hold(before.paused_at == after.paused_at or actor.role in ("pause", "resume"), "paused or resumed", *evidence)
        stopped = after.error is not None and before.error is None
        hold(not stopped or self._is_over_time(after), "stopped before its time", *evidence)

    def _has_own_limit(self, row: TrialRow) -> bool:
        return self.searches[row.search_id].trial_timeout is not None

    def _is_over_time(self, search: SearchRow) -> bool:
        if search.search_timeout is None or search.started_at is None:
            return False
        assert self._database.turns is not None
        started_s = (datetime.fromisoformat(search.started_at).replace(tzinfo=None) - EPOCH).total_seconds()
        return self._database.turns.now_s - started_s >= search.search_timeout - 0.001


def _is_refused(tries: list[AttemptRow]) -> bool:
    """Whether three workers handed a trial back for one reason, or many times for several."""
    handed_back = [one for one in tries if one.outcome == "handed_back"]
    if not tries or tries[-1].outcome != "handed_back":
        return False
    same = [one for one in handed_back if str(one.error).splitlines()[-1] == str(tries[-1].error).splitlines()[-1]]
    return len(same) >= 3 or len(handed_back) >= 9


def _is_free_loss(attempt: AttemptRow) -> bool:
    return attempt.outcome == "released" and attempt.error is not None


def _differ(before: TrialRow, after: TrialRow, *may: str) -> str | None:
    changed = {name for name, a, b in zip(TrialRow._fields, before, after, strict=True) if a != b}
    return f"changes more: {sorted(changed)}" if changed - {*may} else None


#: The ways that docs/design.md draws; who may take them, and how.
_CHANGES: dict[tuple[str, str], Callable[[Checker, TrialRow, TrialRow, Actor], str | None]] = {
    ("queued", "queued"): Checker._published,
    ("queued", "running"): Checker._claimed,
    ("queued", "cancelled"): Checker._told_to_stop,
    ("running", "running"): Checker._kept,
    ("running", "queued"): Checker._ended,
    ("running", "completed"): Checker._ended,
    ("running", "failed"): Checker._ended,
    ("running", "cancelled"): Checker._ended,
    ("failed", "queued"): Checker._retried,
}
