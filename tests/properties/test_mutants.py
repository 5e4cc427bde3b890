"""The state machine would notice if a guard of the trials' transitions were missing: each is taken out once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase
from sqlalchemy.exc import IntegrityError

from gridfleet.storage import searches, statements
from gridfleet.storage.database.connection import Database
from gridfleet.storage.trials import claims, held, queue, transitions
from tests.mutants import mutated
from tests.properties.invariants import InvariantError
from tests.properties.machine import BACKOFF_S, explore

#: Module, old text, new text.
MUTATIONS = {
    "writes without a token": (held, ", Trial.token == token)", ")"),
    "claims whatever the state": (
        claims,
        '.where(Trial.id == bindparam("wanted_id"), WAITS)',
        '.where(Trial.id == bindparam("wanted_id"), or_(Trial.not_before.is_(None), Trial.not_before <= now()))',
    ),
    "takes at a message whatever the state": (
        queue,
        '.where(Trial.id == bindparam("hinted_id"), WAITS)',
        '.where(Trial.id == bindparam("hinted_id"))',
    ),
    "takes the next one though the result is refused": (transitions, "return False, None", "pass"),
    "claims before the backoff is over": (
        claims,
        '.where(Trial.id == bindparam("wanted_id"), WAITS)',
        '.where(Trial.id == bindparam("wanted_id"), Trial.state == TrialState.QUEUED)',
    ),
    "failures not counted": (transitions, "failures=Trial.failures + 1", "failures=Trial.failures"),
    "a budget without end": (transitions, "spent = Trial.failures + 1 >= max_failures", "spent = Trial.failures < 0"),
    "a reaper that trusts what it read": (held, "return bool(is_over) or lost is not None", "return True"),
    "deadlines not watched": (
        held,
        "or_(Lease.expires_at < now(), Trial.deadline_at < now())",
        "Lease.expires_at < now()",
    ),
    "leases prolonged without a token": (
        transitions,
        'Lease.token == bindparam("holder_token"))\n    .values(',
        "Lease.token.is_not(None))\n    .values(",
    ),
    "leases left behind": (
        transitions,
        "        end_lease(connection, held)\n        insert_all",
        "        insert_all",
    ),
    "attempts not numbered": (claims, "attempt=Trial.attempt + 1", "attempt=Trial.attempt"),
    "cancelled trials queued again": (
        transitions,
        (
            "update_held(held.trial_id, held.token).values(\n                state="
            "case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED)"
        ),
        "update_held(held.trial_id, held.token).values(\n                state=TrialState.QUEUED",
    ),
    "starts trials of paused searches": (
        statements,
        "MAY_START = and_(or_(Trial.not_before.is_(None), Trial.not_before <= now()), ~IS_PAUSED)",
        "MAY_START = or_(Trial.not_before.is_(None), Trial.not_before <= now())",
    ),
    "attempts left open": (transitions, "_close_attempt(connection, held, Outcome.RELEASED, error)", "pass"),
    "what workers hand back circles for ever": (transitions, "else_=TrialState.FAILED if refused else", "else_="),
    "claims for any Python": (claims, ".where(queue.IS_FOR_PYTHON)", ""),
    "searches finished early": (
        searches,
        'Trial.search_id == bindparam("wanted_id"), Trial.state.between(min(OPEN_STATES), max(OPEN_STATES))',
        "Trial.id < 0",
    ),
}


@pytest.mark.complete
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_machine_finds_a_guard_that_is_missing(mutation: str, open_database: Callable[[str], Database]) -> None:
    with mutated(*MUTATIONS[mutation]):
        transitions.BACKOFF_S = BACKOFF_S
        with pytest.raises((InvariantError, IntegrityError)):
            explore(
                open_database("sqlite"),
                examples=300,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            )
