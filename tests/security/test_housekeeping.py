"""Deleting, renaming, tagging: the owner's business, on a real PostgreSQL with deploy/database/roles.sh."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError

from gridfleet.storage import deletions, searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.rekeying import rekey
from gridfleet.storage.renaming import rename_search
from gridfleet.storage.schema import Search
from gridfleet.storage.signer import Signer
from gridfleet.storage.tags import change_tags
from tests.security.conftest import ROLES, DeployedFleet, RoledDatabase
from tests.storage.conftest import StoredSearch
from tests.storage.conftest import store_search as store_signed_search
from tests.stored_searches import WORKERS, claim, record, store_search

pytestmark = pytest.mark.postgresql


def ended(deployed: DeployedFleet, owner: Database, worker: Database, name: str) -> int:
    search_id = store_search(deployed.owner, owner, name, [{"C": 1}])
    record(worker, claim(worker, search_id, 0, WORKERS[0]), (0.5, 0.5))
    return search_id


def test_a_worker_s_role_deletes_renames_tags_and_signs_nothing(deployed: DeployedFleet) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = ended(deployed, owner, worker, "goes")
        key = Signer(deployed.owner.key())
        signed: StoredSearch = store_signed_search(owner, 1, name="stays", signer=key)
        for attempt in (
            lambda: deletions.delete_search(worker, search_id),
            lambda: rename_search(worker, signed.id, "mine", signer=key),
            lambda: change_tags(worker, search_id, {"dataset": "mine"}),
            lambda: rekey(worker, key, Signer(b"a key of the worker's own")),
        ):
            with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
                attempt()
        with owner.read() as connection:
            names = connection.execute(select(Search.name).where(Search.id.in_((search_id, signed.id))))
            assert set(names.scalars()) == {"goes", "stays"}
            assert connection.execute(select(Search.deleted_at).where(Search.id == search_id)).scalar() is None

        rename_search(owner, signed.id, "renamed", signer=key)
        change_tags(owner, search_id, {"dataset": "ours"})
        assert deletions.delete_search(owner, search_id).n_trials == 1
        searches.cancel_search(owner, signed.id)
        assert deletions.delete_search(owner, signed.id).n_trials == 1


def test_a_search_that_is_being_deleted_changes_for_nobody(
    deployed: DeployedFleet, roled_database: RoledDatabase
) -> None:
    with closing(Database(deployed.owner)) as owner, closing(Database(deployed.worker)) as worker:
        search_id = ended(deployed, owner, worker, "half gone")
        deletions._begin(owner, search_id)
        for role in ("owner", "worker"):
            with (
                roled_database.connect(ROLES[role]) as connection,
                pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="is being deleted"),
            ):
                connection.execute(
                    "UPDATE searches SET state = 'running', finished_at = NULL WHERE id = %s", [search_id]
                )
        assert deletions.remove_what_was_left(owner) >= 0
        with owner.read() as connection:
            assert connection.execute(select(Search.id).where(Search.id == search_id)).first() is None


def test_a_search_that_runs_is_not_marked_as_deleted_by_its_owner_either(
    deployed: DeployedFleet, roled_database: RoledDatabase
) -> None:
    with closing(Database(deployed.owner)) as owner:
        search_id = store_search(deployed.owner, owner, "runs", [{"C": 1}])
    with (
        roled_database.connect(ROLES["owner"]) as connection,
        pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="never changes"),
    ):
        connection.execute("UPDATE searches SET deleted_at = now() WHERE id = %s", [search_id])
