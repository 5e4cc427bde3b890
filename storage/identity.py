"""Which fleet a database is the truth of: fleets that share a broker are told apart by it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.postgresql import INSUFFICIENT_PRIVILEGE
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.schema import FleetIdentity
from gridfleet.storage.settings import PREFIX


def fleet_id(database: Database) -> str:
    """Return the random name that a fleet got when its tables were made.

    Parameters
    ----------
    database : Database
        With the tables of this release.

    Raises
    ------
    SettingsError
        If this role may not read it, or it was removed.
    """
    try:
        with database.read() as connection:
            found: str | None = connection.execute(select(FleetIdentity.id)).scalar()
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        raise SettingsError(
            f'{PREFIX}DATABASE_URL: the role "{database.url.username}" may not read the table fleet_identity, which '
            "names the fleet's keys on the broker; run deploy/database/roles.sh again, or as the tables' owner "
            f'`GRANT SELECT ON fleet_identity TO "{database.url.username}"`'
        ) from error
    if found is None:
        raise SettingsError(
            f"{PREFIX}DATABASE_URL: the table fleet_identity is empty, which names the fleet's keys on the broker; as "
            "the tables' owner, give it one row, an id that no other fleet of the broker has"
        )
    return found
