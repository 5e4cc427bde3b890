"""Which trials are held, and by whom."""

from __future__ import annotations

from gridfleet.storage.trials.held import held_by
from tests.storage.conftest import StoredSearch


def test_the_trials_of_a_node_are_its_own(search: StoredSearch) -> None:
    mine = search.held(0, worker_id="node_1/10")
    other = search.held(1, worker_id="nodeX1/10")
    longer = search.held(2, worker_id="node_11/10")

    assert held_by(search.database, "node_1") == [mine]
    assert set(held_by(search.database, None)) == {mine, other, longer}
