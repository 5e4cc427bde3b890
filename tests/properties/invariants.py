"""What must hold of every trial after each step of the state machine, whatever happened before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, select

from gridfleet.storage.database.connection import Database
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import FINAL_STATES, Attempt, SplitScore
from tests.storage.conftest import N_SPLITS

#: Failures after which a trial has failed for good.
MAX_FAILURES = 3
#: Outcomes that count against the budget.
COUNTED = (Outcome.WORKER_LOST, Outcome.LEASE_EXPIRED, Outcome.TIMEOUT)


class InvariantError(AssertionError):
    """An invariant does not hold."""


def hold(condition: bool, invariant_name: str, *details: object) -> None:
    if not condition:
        raise InvariantError(f"{invariant_name}: {details}")


class Memory:
    """What trials and attempts were after the steps before; some of it may never change again."""

    def __init__(self) -> None:
        self.final: dict[int, tuple[Row[Any], int]] = {}
        self.closed: dict[tuple[int, int], Row[Any]] = {}
        self.attempts: dict[int, int] = {}

    def check(self, database: Database, rows: Mapping[int, Row[Any]], *, forgiven: Mapping[int, int]) -> None:
        """Check trials and their attempts; ``forgiven`` attempts, the first ones of a trial, count no more."""
        attempts, results = attempt_rows(database), result_counts(database)
        for row in rows.values():
            tries = attempts.get(row.id, [])
            self._check_final(row, results.get(row.id, 0))
            self._check_attempts(row, tries)
            hold((row.token is not None) == (row.state == "running"), "I3", row)
            hold((row.lease_expires_at is not None) == (row.state == "running"), "I3: lease", row)
            hold(row.attempt >= self.attempts.get(row.id, 0), "I4: attempt fell", row)
            self.attempts[row.id] = row.attempt
            counted = [one for one in tries[forgiven.get(row.id, 0) :] if one.outcome in COUNTED]
            hold(row.failures == len(counted), "I5: miscounted", row, tries)
            hold(row.failures < MAX_FAILURES or row.state in FINAL_STATES, "I5: beyond the budget", row)

    def _check_final(self, row: Row[Any], n_results: int) -> None:
        if row.id in self.final:
            hold((row, n_results) == self.final[row.id], "I1: a final trial changed", row, self.final[row.id])
        if row.state in FINAL_STATES:
            self.final[row.id] = (row, n_results)
        hold((row.finished_at is not None) == (row.state in FINAL_STATES), "I1: finished_at", row)
        if row.state == "completed":
            hold(row.mean_test_score == row.attempt, "I2, I4: not the score of the last attempt", row)
            hold(n_results == N_SPLITS, "I2: not exactly one result", row, n_results)
        elif row.state != "failed":
            hold(row.mean_test_score is None and n_results == 0, "I2: a score without a result", row)

    def _check_attempts(self, row: Row[Any], tries: list[Row[Any]]) -> None:
        hold([one.attempt for one in tries] == list(range(1, row.attempt + 1)), "I6: attempts not noted", row, tries)
        open_tries = [one for one in tries if one.ended_at is None]
        hold(len(open_tries) == (row.state == "running"), "I6: open attempts", row, tries)
        hold(all(one.token == row.token == tries[-1].token for one in open_tries), "I4: another's attempt", row)
        for one in tries:
            key = (row.id, one.attempt)
            hold(self.closed.get(key, one) == one, "I11: a closed attempt changed", one)
            if one.ended_at is not None:
                hold(one.ended_at >= one.started_at, "I11: ended before it began", one)
                self.closed[key] = one


def attempt_rows(database: Database) -> dict[int, list[Row[Any]]]:
    """Return the attempts of each trial, the first one first."""
    tries: dict[int, list[Row[Any]]] = {}
    with database.read() as connection:
        statement = select(*Attempt.__table__.columns).order_by(Attempt.trial_id, Attempt.attempt)
        for row in connection.execute(statement):
            tries.setdefault(row.trial_id, []).append(row)
    return tries


def result_counts(database: Database) -> dict[int, int]:
    """Count the scores of splits of each trial that has some."""
    counts: dict[int, int] = {}
    with database.read() as connection:
        for trial_id in connection.execute(select(SplitScore.trial_id)).scalars():
            counts[trial_id] = counts.get(trial_id, 0) + 1
    return counts
