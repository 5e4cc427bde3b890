"""What takes the room in the database: of each search its payloads, learning curves, scores and attempts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Integer, LargeBinary, String, cast, func, literal_column, select, text, union

from gridfleet.storage.database.connection import Database
from gridfleet.storage.deletions import NAMING_PAYLOADS
from gridfleet.storage.schema import Attempt, BestModel, Curve, Payload, Report, Search, SplitScore, Trial, TrialWarning
from gridfleet.storage.search_states import STATE, with_fleet

#: Bytes that a row takes beside its values.
ROW_BYTES = {"sqlite": 8, "postgresql": 24}
#: Trials of one search whose rows are read; the others of a larger one are taken to be as large.
READ = 200
#: The tables whose rows are counted, by what they are called.
PARTS: Mapping[str, Any] = {
    "curves": Curve,
    "scores": SplitScore,
    "attempts": Attempt,
    "trials": Trial,
    "warnings": TrialWarning,
    "reports": Report,
}


#: The search that a row of searches belongs to: a refit to the one that it is of.
_IS_OF = func.coalesce(Search.refit_of, Search.id)
#: Each how manieth trial is read: from the first to the last of a search, for the last ones may not be evaluated yet.
_EACH = (Search.n_trials + literal_column(str(READ - 1), Integer)) // literal_column(str(READ), Integer)


@dataclass(frozen=True, slots=True)
class SearchRoom:
    """The bytes that a search takes.

    Parameters
    ----------
    search_id, name, state
        Which search; without a name if it is being deleted.
    payloads : int
        Of all payloads that it names.
    own_payloads : int
        Of those that no other search names.
    curves, scores, attempts, trials, warnings, reports : int
        Of the rows of these tables, without their indexes; its refit's are among them. Of more than `READ` trials an
        estimate.
    model : int
        Of its best model.
    """

    search_id: int
    name: str
    state: str
    payloads: int
    own_payloads: int
    curves: int = 0
    scores: int = 0
    attempts: int = 0
    trials: int = 0
    warnings: int = 0
    reports: int = 0
    model: int = 0

    @property
    def freed(self) -> int:
        """What its deletion makes room of."""
        rows = (self.curves, self.scores, self.attempts, self.trials, self.warnings, self.reports)
        parts = (*rows, self.model)
        return self.own_payloads + sum(parts)


@dataclass(frozen=True, slots=True)
class DatabaseRoom:
    """The bytes of the database, and in SQLite those of them that nothing is in."""

    total: int
    free: int | None
    payloads: int
    unnamed_payloads: int


def room_of_searches(database: Database, search_ids: Sequence[int] | None = None) -> list[SearchRoom]:
    """Return what searches take, the largest first.

    Parameters
    ----------
    database : Database
        The fleet's; of payloads, whoever may not read them gets 0.
    search_ids : sequence of int, default=None
        Of which; None: of all.
    """
    with database.read() as connection:
        wanted = select(Search.id, Search.name, STATE.label("state")).where(Search.refit_of.is_(None))
        if search_ids is not None:
            wanted = wanted.where(Search.id.in_(search_ids))
        searches = connection.execute(wanted).all()
        states = with_fleet(connection, [row.state for row in searches])
        payloads, own = _of_payloads(connection)
        parts = _of_rows(connection, search_ids)
        models = _of_models(connection)
    rooms = [
        SearchRoom(
            row.id,
            row.name,
            state,
            payloads.get(row.id, 0),
            own.get(row.id, 0),
            **{part: parts[row.id][part] for part in PARTS},
            model=models.get(row.id, 0),
        )
        for row, state in zip(searches, states, strict=True)
    ]
    return sorted(rooms, key=lambda room: (-room.freed, -room.payloads, room.search_id))


def room_of_database(database: Database) -> DatabaseRoom:
    """Return what the whole database takes."""
    with database.read() as connection:
        free = None
        if database.dialect == "sqlite":
            pages, free_pages, page_size = (
                connection.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
            total, free = pages * page_size, free_pages * page_size
        else:
            total = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        sizes = _sizes(connection)
        named = {digest for digest, _ in _names(connection)}
    unnamed = sum(size for digest, size in sizes.items() if digest not in named)
    return DatabaseRoom(int(total), free, sum(sizes.values()), unnamed)


def _of_payloads(connection: Connection) -> tuple[dict[int, int], dict[int, int]]:
    """Return the bytes of the payloads that each search names, and of those that it names alone."""
    sizes = _sizes(connection)
    by_digest: dict[str, set[int]] = defaultdict(set)
    for digest, search_id in _names(connection):
        by_digest[digest].add(search_id)
    of_all: dict[int, int] = defaultdict(int)
    of_one: dict[int, int] = defaultdict(int)
    for digest, search_ids in by_digest.items():
        for search_id in search_ids:
            of_all[search_id] += sizes.get(digest, 0)
            if len(search_ids) == 1:
                of_one[search_id] += sizes.get(digest, 0)
    return of_all, of_one


def _sizes(connection: Connection) -> dict[str, int]:
    if connection.dialect.name == "postgresql":
        may_read = connection.execute(text("SELECT has_table_privilege('payloads', 'SELECT')")).scalar()
        if not may_read:
            return {}
    return {row.digest: row.size for row in connection.execute(select(Payload.digest, Payload.size))}


def _names(connection: Connection) -> Iterable[tuple[str, int]]:
    """Return which search names which payload."""
    named = []
    for column in NAMING_PAYLOADS:
        owner = column.table.c.id if column.table is Search.__table__ else column.table.c.get("search_id")
        if owner is not None:
            of_search = select(column.label("digest"), _IS_OF.label("search_id")).where(column.is_not(None))
            named.append(of_search if column.table is Search.__table__ else of_search.join(Search, Search.id == owner))
    return [(row.digest, row.search_id) for row in connection.execute(union(*named))]


def _of_rows(connection: Connection, search_ids: Sequence[int] | None) -> dict[int, Counter[str]]:
    """Return the bytes of the rows of trials and of what is theirs, by search and part."""
    columns = [
        func.coalesce(func.sum(_row_bytes(connection, Trial) if table is Trial else _of_trial(connection, table)), 0)
        for table in PARTS.values()
    ]
    named = [column.label(part) for part, column in zip(PARTS, columns, strict=True)]
    query = select(_IS_OF.label("search_id"), Search.n_trials, _EACH.label("each"), *named)
    query = query.select_from(Trial).join(Search, Search.id == Trial.search_id).where(Trial.number % _EACH == 0)
    if search_ids is not None:
        query = query.where(_IS_OF.in_(search_ids))
    room: dict[int, Counter[str]] = defaultdict(Counter)
    for row in connection.execute(query.group_by(Search.id)):
        n_read = -(-row.n_trials // row.each)
        room[row.search_id].update({part: int(row._mapping[part]) * row.n_trials // n_read for part in PARTS})
    return room


def _of_trial(connection: Connection, table: Any) -> Any:
    """Return the bytes of a trial's rows in a table: one trial after the other is asked for, and not all rows."""
    n_bytes = select(func.sum(_row_bytes(connection, table))).where(table.trial_id == Trial.id)
    return n_bytes.correlate(Trial).scalar_subquery()


def _of_models(connection: Connection) -> dict[int, int]:
    """Return the bytes of best models, by search."""
    query = select(Search.refit_of, BestModel.size).join(Trial, Trial.search_id == Search.id)
    return {row.refit_of: row.size for row in connection.execute(query.join(BestModel, BestModel.trial_id == Trial.id))}


def _row_bytes(connection: Connection, table: Any) -> Any:
    dialect = connection.dialect.name
    # each value by itself: of a whole row PostgreSQL would first fetch what it keeps elsewhere, as long curves
    size = func.pg_column_size if dialect == "postgresql" else _size_in_sqlite
    values = [func.coalesce(size(column), 0) for column in table.__table__.columns]
    return sum(values, start=literal_column(str(ROW_BYTES[dialect])))


def _size_in_sqlite(column: Any) -> Any:
    return func.length(cast(cast(column, String), LargeBinary))
