"""The states of trials under any order of events."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gridfleet.storage.database.connection import Database
from gridfleet.storage.trials import transitions
from tests.properties.machine import BACKOFF_S, explore


@pytest.mark.parametrize(
    ("backend_name", "examples"),
    [
        ("sqlite", 12),
        pytest.param("postgresql", 4, marks=pytest.mark.complete),
        pytest.param("sqlite", 300, marks=pytest.mark.complete),
        pytest.param("postgresql", 60, marks=pytest.mark.complete),
    ],
)
def test_no_order_of_events_breaks_an_invariant(
    backend_name: str, examples: int, open_database: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_S", BACKOFF_S)
    explore(open_database(backend_name), examples=examples, print_blob=True)
