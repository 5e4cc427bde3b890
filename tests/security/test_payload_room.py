"""What all searches together store is bounded, and what no search names can be removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.svm import SVC
from sqlalchemy import select, text, update

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.deletions import remove_what_was_left
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.payloads.store import KEY_CHECK, PayloadStore
from gridfleet.storage.schema import Payload, PayloadChunk, Search
from gridfleet.storage.settings import Settings
from tests.storage.conftest import count
from tests.stored_searches import store_pima

SMALL, Y = np.zeros((12, 2)), np.arange(12) % 2
LARGE = np.random.default_rng(0).normal(size=(12, 12_000))


def test_a_search_whose_data_take_too_much_room_is_refused_and_leaves_nothing(
    fleet: Fleet, configured: Settings, use_fleet: Callable[[Settings], None]
) -> None:
    search = GridSearchCV(SVC(), {"C": [1]}, refit=False)
    use_fleet(configured.replace(payloads_size_mb=1))
    submit(search, SMALL, Y)
    before = count(fleet.database, Payload)

    with pytest.raises(InvalidSearchError, match=r"take 1\.2 MB more, .*above GRIDFLEET_PAYLOADS_SIZE_MB=1; raise it"):
        submit(search, LARGE, Y)

    assert (count(fleet.database, Search), count(fleet.database, Payload)) == (1, before)
    submit(search, SMALL, Y)  # what is stored already takes no more room
    use_fleet(configured.replace(payloads_size_mb=2))
    submit(search, LARGE, Y)
    assert count(fleet.database, Search) == 3


def test_a_search_whose_data_are_larger_than_the_workers_cache_is_refused(
    fleet: Fleet, configured: Settings, use_fleet: Callable[[Settings], None]
) -> None:
    use_fleet(configured.replace(cache_size_mb=1))

    with pytest.raises(InvalidSearchError, match=r"data take 1\.. MB, above GRIDFLEET_CACHE_SIZE_MB=1, .*; raise it"):
        submit(GridSearchCV(SVC(), {"C": [1]}, refit=False), LARGE, Y)

    assert count(fleet.database, Payload) == 0


@pytest.mark.parametrize("backend", ["postgresql"])
def test_what_no_search_names_is_removed_with_the_next_deletion(fleet: Fleet, configured: Settings) -> None:
    store_pima(configured, fleet.database)
    used = count(fleet.database, Payload)
    store = PayloadStore(fleet.database, configured)
    left, young = store.put("X", LARGE, what="X"), store.put("X", SMALL, what="X")
    with fleet.database.write() as connection:
        long_ago = text("now() - interval '2 days'")
        connection.execute(update(Payload).where(Payload.digest != young).values(created_at=long_ago))

    remove_what_was_left(fleet.database)

    with fleet.database.read() as connection:
        digests = set(connection.execute(select(Payload.digest)).scalars())
        chunks = set(connection.execute(select(PayloadChunk.digest)).scalars())
    assert {young, KEY_CHECK} <= digests
    assert left not in digests
    assert chunks == digests - {KEY_CHECK}
    assert len(chunks) == used + 1
    store.check_key()
