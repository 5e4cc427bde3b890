"""The state machine would notice if a guard of storage/trials/transitions.py were missing: each is taken out once."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase
from sqlalchemy.exc import IntegrityError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.trials import transitions
from tests.properties.machine import BACKOFF_S, InvariantError, explore

#: What storage/trials/transitions.py would be without one of its guards: old text, new text.
MUTATIONS = {
    "writes without a token": (", Trial.token == token)", ")"),
    "claims whatever the state": (
        '.where(Trial.id == bindparam("wanted_id"), _WAITS)',
        '.where(Trial.id == bindparam("wanted_id"), or_(Trial.not_before.is_(None), Trial.not_before <= now()))',
    ),
    "claims before the backoff is over": (
        '.where(Trial.id == bindparam("wanted_id"), _WAITS)',
        '.where(Trial.id == bindparam("wanted_id"), Trial.state == TrialState.QUEUED)',
    ),
    "failures not counted": ("failures=Trial.failures + 1", "failures=Trial.failures"),
    "a budget without end": ("spent = Trial.failures + 1 >= max_failures", "spent = Trial.failures < 0"),
    "a reaper that trusts what it read": ("statement = statement.where(_expired())", "pass"),
    "deadlines not watched": (", Trial.deadline_at < now())", ")"),
    "attempts not numbered": ("attempt=Trial.attempt + 1", "attempt=Trial.attempt"),
    "cancelled trials queued again": (
        "state=case((Trial.cancel_requested, TrialState.CANCELLED), else_=TrialState.QUEUED)",
        "state=TrialState.QUEUED",
    ),
    "starts trials of paused searches": (
        "_MAY_START = and_(or_(Trial.not_before.is_(None), Trial.not_before <= now()), ~IS_PAUSED)",
        "_MAY_START = or_(Trial.not_before.is_(None), Trial.not_before <= now())",
    ),
    "attempts left open": ('_close_attempt(connection, held, "released", None)', "pass"),
    "searches finished early": (
        'Trial.search_id == bindparam("wanted_id"), Trial.state.in_(OPEN_STATES)',
        "Trial.id < 0",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_machine_finds_a_guard_that_is_missing(mutation: str, open_database: Callable[[str], Database]) -> None:
    old, new = MUTATIONS[mutation]
    source = Path(transitions.__file__).read_text()
    assert source.count(old) == 1, f"storage/trials/transitions.py does not contain once: {old}"
    mutant = types.ModuleType("mutant")
    mutant.__dict__["__name__"] = "gridfleet.storage.trials.transitions"  # its dataclasses look their module up
    exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
    mutant.BACKOFF_S = BACKOFF_S
    with pytest.raises((InvariantError, IntegrityError)):
        explore(
            open_database("sqlite"),
            mutant,
            examples=300,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
