"""Reads of searches: which one is meant, their lists, progress and counts. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Select, bindparam, column, func, or_, quoted_name, select, table
from sqlalchemy.exc import DBAPIError

from gridfleet.scheduler.reports.figures import metric
from gridfleet.scheduler.reports.trial_reader import best_first
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.errors import SearchNotFoundError
from gridfleet.storage.schema import (
    OPEN_STATES,
    Base,
    Search,
    Trial,
    TrialState,
    Worker,
)
from gridfleet.storage.search_states import IS_PAUSED, SEEN_S, STATE, ShownState, described, is_in, with_fleet
from gridfleet.storage.searches import may_be_numbered
from gridfleet.storage.statements import N_STORED, N_TO_EVALUATE
from gridfleet.storage.suggestion import nearest
from gridfleet.storage.tags import has_tag
from gridfleet.storage.versions import minor_version
from gridfleet.storage.workers import was_seen


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """A search as the table ``searches`` has it; its state is the one that people see (`search_states`)."""

    id: int
    name: str
    strategy: str
    state: ShownState
    scoring: str | None
    refit_metric: str
    n_trials: int
    n_splits: int
    estimator: str
    evaluation_digest: str
    candidates_digest: str
    sources_digest: str | None
    x_digest: str
    y_digest: str
    submitted_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    reuse: bool
    no_reuse: str | None
    sampler: str | None

    @property
    def shown_state(self) -> str:
        """Its state as a terminal shows it."""
        return described(self.state)

    @property
    def is_finished(self) -> bool:
        """Whether all its trials are final."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is."""

    total: int
    queued: int
    running: int
    completed: int
    failed: int
    pruned: int
    cancelled: int
    seconds_running: float | None
    best_score: float | None
    is_finished: bool  # whether the search has ended
    #: the minor version of Python that its queued trials wait for, while workers are there and none has it
    waits_for_python: str | None = None
    is_paused: bool = False
    #: of the search, as people see it
    state: ShownState = ShownState.RUNNING
    #: what ranks the trials, as its user gave it, and how far the splits of the best one are from each other
    metric: str = "score"
    std_test_score: float | None = None

    @property
    def done(self) -> int:
        """Trials in a final state."""
        return self.completed + self.failed + self.pruned + self.cancelled

    @property
    def scored(self) -> int:
        """Trials that have a score."""
        return self.completed

    @property
    def counts(self) -> str:
        """What was scored, and beside it what was not: ``8/30 scored, 22 failed``."""
        return counted(self.total, {state: getattr(self, state) for state in TrialState})

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the pace so far; None while nothing runs, and before two rounds of what runs have ended."""
        stands = self.is_paused or self.state == ShownState.WAITING
        if self.seconds_running is None or not self.running or stands or self.done < 2 * self.running:
            return None
        return self.seconds_running / self.done * (self.total - self.done)


@dataclass(frozen=True, slots=True)
class SeenWorkers:
    """How many worker processes were seen, of how many workers, and the releases that they run, by column."""

    n_processes: int
    n_workers: int
    versions: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class StoppedWorker:
    """A worker process at which it is noted that its worker took itself out, or did not start, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WaitingForPython:
    """Queued trials that no worker takes, for none has their minor version of Python."""

    python: str
    n_trials: int

    def __str__(self) -> str:
        noun, verb = ("trial", "waits") if self.n_trials == 1 else ("trials", "wait")
        return f"{self.n_trials} {noun} {verb} for a worker with Python {self.python}"


@dataclass(frozen=True, slots=True)
class TrialCounts:
    """How many trials of a search are in a final state, were scored, failed or were pruned, and the best score."""

    done: int = 0
    scored: int = 0
    failed: int = 0
    best_score: float | None = None
    pruned: int = 0


#: Ids are integers of 64 bits in SQL.
MAX_ID = 2**63 - 1
#: What stands for the newest search.
LATEST = "@latest"
#: Names among which the one is looked for that was meant.
COMPARED_NAMES = 200
#: What a list of searches may begin with.
NEWEST = "newest"
SORTS = (NEWEST, "oldest", "name", "user", "trials", "best")
#: Characters of a name that is not found, in the sentence about it.
MAX_SHOWN = 200
#: The states of trials beside those that were scored, in the order in which they are counted.
COUNTED_BESIDE = (TrialState.FAILED, TrialState.PRUNED, TrialState.CANCELLED, TrialState.RUNNING, TrialState.QUEUED)

_SUMMARY = (
    Search.id,
    Search.name,
    Search.strategy,
    STATE.label("state"),
    Search.scoring,
    Search.refit_metric,
    N_TO_EVALUATE.label("n_trials"),
    Search.n_splits,
    Search.estimator,
    Search.evaluation_digest,
    Search.candidates_digest,
    Search.sources_digest,
    Search.x_digest,
    Search.y_digest,
    Search.submitted_by,
    Search.created_at,
    Search.started_at,
    Search.finished_at,
    Search.error,
    Search.reuse,
    Search.no_reuse,
    Search.sampler,
)


def counted(total: int, trials: Mapping[TrialState, int]) -> str:
    """Say how many trials of a search were scored, and beside it what else became of them."""
    beside = (f"{n:,} {state}" for state in COUNTED_BESIDE if (n := trials.get(state, 0)))
    return ", ".join([f"{trials.get(TrialState.COMPLETED, 0):,}/{total:,} scored", *beside])


def find_search(database: Database, name_or_id: str | int) -> SearchSummary:
    """Find a search by its name or its id; by the name of one that was run again, the newest, as its view shows it.

    Parameters
    ----------
    database : Database
        Where to look.
    name_or_id : str or int
        The name, without regard to case, or the id.

    Returns
    -------
    SearchSummary

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    # the databases refuse ids of more than 64 bits and texts with NUL or half a character, which no search has
    if isinstance(name_or_id, int):
        can_be, condition = abs(name_or_id) <= MAX_ID, Search.id == name_or_id
        asked = f"id {name_or_id}" if can_be else "id of more than 64 bits"
    else:
        name = str(name_or_id)
        can_be, condition = name.isprintable(), func.lower(Search.name) == name.lower()
        asked = f"name {name[:MAX_SHOWN]!r}"
    with database.read() as connection:
        # the refit of a search is shown with it
        found = select(*_SUMMARY).where(condition, Search.refit_of.is_(None), Search.deleted_at.is_(None))
        row = connection.execute(found).one_or_none() if can_be else None
        run_again = row is not None and not isinstance(name_or_id, int) and _is_run_again(connection, row.name)
        if row is None:
            newest = connection.execute(_newest(Search.name).limit(COMPARED_NAMES)).scalars().all()
            raise SearchNotFoundError(f"no search has the {asked}; {_others(name_or_id, newest)}")
        (summary,) = _summaries(connection, [row])
    if run_again and (newest_id := _shown_by_view(database, row.name)) not in (None, row.id):
        return find_search(database, newest_id)
    return summary


def _others(asked: str | int, newest: Sequence[str]) -> str:
    """Say which search may have been meant, or which there are."""
    if not newest:
        return "there are none yet"
    found = None if isinstance(asked, int) else nearest(asked.lower()[:MAX_SHOWN], [name.lower() for name in newest])
    if found is not None:
        return f"did you mean {next(name for name in newest if name.lower() == found)!r}?"
    return f"the newest are {', '.join(map(repr, newest[:5]))}"


def choose_search(database: Database, asked: str | None, *, whole: bool = False) -> SearchSummary:
    """Find the search that somebody means at a command line.

    Parameters
    ----------
    database : Database
        Where to look.
    asked : str or None
        A name, an id, ``@latest``, or the beginning of one name. None: the latest.
    whole : bool, default=False
        Whether the beginning of a name is not enough.

    Raises
    ------
    SearchNotFoundError
        If there is none, or several names begin so.
    """
    if asked is None or asked == LATEST:
        newest = list_searches(database, limit=1)
        if not newest:
            raise SearchNotFoundError("there are no searches yet; `gridfleet submit FILE` queues one")
        return newest[0]
    if asked.isascii() and asked.isdecimal() and len(asked) < MAX_SHOWN:  # a name begins with a letter
        return find_search(database, int(asked))
    try:
        return find_search(database, asked)
    except SearchNotFoundError:
        begun = [] if whole or not asked.isprintable() else _begun_so(database, asked)
        if not begun:
            raise
    if len(begun) > 1:
        raise SearchNotFoundError(
            f"{len(begun)} searches begin with {asked!r}: {', '.join(repr(row.name) for row in begun[:5])}"
            f"{' …' if len(begun) > 5 else ''}; write more of the name"
        )
    return find_search(database, begun[0].id)


def _begun_so(database: Database, asked: str) -> Sequence[Any]:
    begins = func.substr(func.lower(Search.name), 1, len(asked)) == func.lower(asked)
    with database.read() as connection:
        return connection.execute(_newest(Search.id, Search.name).where(begins)).all()


def _summaries(connection: Connection, rows: Sequence[Any]) -> list[SearchSummary]:
    states = with_fleet(connection, [row.state for row in rows])
    return [SearchSummary(**{**row._mapping, "state": state}) for row, state in zip(rows, states, strict=True)]


def _newest(*columns: Any) -> Select[Any]:
    """Return the query for what users see of searches, the newest first: without refits, and what is being deleted."""
    return select(*columns).where(Search.refit_of.is_(None), Search.deleted_at.is_(None)).order_by(Search.id.desc())


def _is_run_again(connection: Connection, name: str) -> bool:
    """Whether there may be searches of this name with a number; only then the view is asked, which ranks all trials."""
    others = select(Search.id).where(Search.name != name, may_be_numbered(name), Search.deleted_at.is_(None))
    return connection.execute(others.limit(1)).first() is not None


def _shown_by_view(database: Database, name: str) -> int | None:
    """Return the id of the search whose trials a search's view shows; None if it can't be read."""
    if name.lower() in Base.metadata.tables:  # of before there was a table of that name
        return None
    view = table(quoted_name(name, quote=True), column("trial_id"))
    shown = select(view.c.trial_id).limit(1).scalar_subquery()
    try:
        with database.read() as connection:
            return connection.execute(select(Trial.search_id).where(Trial.id == shown)).scalar()
    except DBAPIError:  # somebody removed it
        return None


def list_searches(
    database: Database,
    *,
    limit: int | None = 50,
    tags: Mapping[str, str | None] = MappingProxyType({}),
    state: str | None = None,
    by: str | None = None,
    ended_for_s: float | None = None,
    name_has: str | None = None,
    sort: str = NEWEST,
    offset: int = 0,
) -> list[SearchSummary]:
    """List searches, the newest first.

    Parameters
    ----------
    database : Database
        The fleet's.
    limit : int, default=50
        How many at most; None: all.
    tags : mapping of str to str or None
        Only those with these tags; None: with any value.
    state : str, default=None
        Only those in this state.
    by : str, default=None
        Only those of this user, as ``user`` or ``user@host``.
    ended_for_s : float, default=None
        Only those that ended so many seconds ago, or earlier.
    name_has : str, default=None
        Only those with this in their name, without regard to case.
    sort : str, default="newest"
        One of `SORTS`: what comes first.
    offset : int, default=0
        How many are left out before the first.
    """
    query = _newest(*_SUMMARY).where(*(has_tag(key, tags[key]) for key in tags))
    if sort != NEWEST:
        query = query.order_by(None).order_by(*_sorted_by(sort), Search.id.desc())
    if name_has:
        query = query.where(func.lower(Search.name).contains(name_has.lower(), autoescape=True))
    if by is not None:
        query = query.where(or_(Search.submitted_by == by, Search.submitted_by.startswith(f"{by}@", autoescape=True)))
    if ended_for_s is not None:
        query = query.where(Search.finished_at <= now(-ended_for_s))
    with database.read() as connection:
        if state is not None:
            query = query.where(is_in(connection, state))
        return _summaries(connection, connection.execute(query.limit(limit).offset(offset)).all())


def _sorted_by(sort: str) -> list[Any]:
    best = best_first(Search.id).with_only_columns(Trial.mean_test_score).limit(1).scalar_subquery()
    columns: dict[str, list[Any]] = {
        "oldest": [Search.id],
        "name": [func.lower(Search.name)],
        "user": [Search.submitted_by],
        "trials": [Search.n_trials.desc()],
        "best": [best.desc().nulls_last()],
    }
    return columns[sort]


def count_trials(database: Database, search_ids: Sequence[int]) -> dict[int, TrialCounts]:
    """Count the trials of several searches, by their ids, in one query."""
    # not those that were scored, which are the most: each is one of `n_trials`
    is_open, failed, pruned = (
        _count_of(states) for states in (OPEN_STATES, (TrialState.FAILED,), (TrialState.PRUNED,))
    )
    query = select(
        Search.id,
        (N_STORED - is_open).label("done"),
        (N_STORED - is_open - failed - pruned - _count_of((TrialState.CANCELLED,))).label("scored"),
        failed.label("failed"),
        pruned.label("pruned"),
        best_first(Search.id).with_only_columns(Trial.mean_test_score).limit(1).scalar_subquery().label("best_score"),
    ).where(Search.id.in_(search_ids))
    with database.read() as connection:
        rows = connection.execute(query).all()
    return {row.id: TrialCounts(row.done, row.scored, row.failed, row.best_score, row.pruned) for row in rows}


def _count_of(states: Sequence[TrialState]) -> Any:
    counted = select(func.count()).where(Trial.search_id == Search.id, Trial.state.in_(states))
    return counted.correlate(Search).scalar_subquery()


# built once, for whoever waits for a search looks again and again: 0.9 ms of this process a look instead of 2.7
@cache
def _search_times(dialect: str) -> Select[Any]:
    seconds_running = seconds_between(dialect, Search.started_at, func.coalesce(Search.finished_at, now()))
    return select(
        seconds_running.label("seconds_running"),
        Search.finished_at,
        Search.needs_python,
        N_TO_EVALUATE.label("n_trials"),
        N_STORED.label("n_stored"),
        IS_PAUSED.label("is_paused"),
        STATE.label("state"),
        Search.refit_metric,
        Search.scoring,
    ).where(Search.id == bindparam("wanted_id"), Search.deleted_at.is_(None))


# not those that were scored, which are the most: all others are
_COUNTS = (
    select(Trial.state, func.count().label("n"))
    .where(
        Trial.search_id == bindparam("wanted_id"),
        Trial.state.in_([state for state in TrialState if state != TrialState.COMPLETED]),
    )
    .group_by(Trial.state)
)
_BEST = best_first(bindparam("wanted_id")).limit(1)


def progress(database: Database, search_id: int) -> Progress:
    """Count the trials of a search by state."""
    with database.read() as connection:
        # first the search: one that has ended has no open trials, whatever is committed in between
        of_search = {"wanted_id": search_id}
        search = connection.execute(_search_times(database.dialect), of_search).one_or_none()
        if search is None:
            raise SearchNotFoundError(f"search {search_id} is not there any more: it was deleted")
        counts = {str(row.state): int(row.n) for row in connection.execute(_COUNTS, of_search)}
        counts[TrialState.COMPLETED] = search.n_stored - sum(counts.values())
        best = connection.execute(_BEST, of_search).first()
        # of one that is being evaluated, there are workers
        may_wait = counts.get(TrialState.QUEUED, 0) and not counts.get(TrialState.RUNNING, 0)
        pythons = _pythons_of_workers(connection) if may_wait else set()
        (state,) = with_fleet(connection, [search.state])
    python = search.needs_python
    return Progress(
        total=search.n_trials,
        **{str(state): counts.get(state, 0) for state in TrialState},
        seconds_running=None if search.seconds_running is None else float(search.seconds_running),
        best_score=None if best is None else best.mean_test_score,
        is_finished=search.finished_at is not None,
        waits_for_python=python if python and pythons and python not in pythons else None,
        is_paused=bool(search.is_paused),
        state=state,
        metric=metric(search.refit_metric, search.scoring),
        std_test_score=None if best is None else best.std_test_score,
    )


def _pythons_of_workers(connection: Connection) -> set[str]:
    """Return the minor versions of Python of the workers that are there."""
    seen = select(Worker.python_version).where(Worker.last_seen_at > now(-SEEN_S), Worker.stopped_reason.is_(None))
    return set(map(minor_version, connection.execute(seen.distinct()).scalars()))


def waiting_for_python(database: Database) -> list[WaitingForPython]:
    """Count the queued trials that no worker takes for want of their Python; none if no worker is there at all."""
    waiting = (
        select(Search.needs_python, func.count().label("n_trials"))
        .join(Trial, Trial.search_id == Search.id)
        .where(Trial.state == TrialState.QUEUED, Search.paused_at.is_(None), Search.needs_python.is_not(None))
        .group_by(Search.needs_python)
        .order_by(Search.needs_python)
    )
    with database.read() as connection:
        pythons = _pythons_of_workers(connection)
        rows = connection.execute(waiting).all() if pythons else []
    return [WaitingForPython(row.needs_python, row.n_trials) for row in rows if row.needs_python not in pythons]


def workers_seen(database: Database, *, within_s: float) -> SeenWorkers:
    """Count the worker processes that were seen in the last seconds, without those that took themselves out."""
    versions = [column for column in Worker.__table__.columns if column.name.endswith("_version")]
    # `node/process id` without the number: what is counted in SQL need not be told of 10,000 processes one by one
    n_workers = func.count(func.rtrim(Worker.id, "0123456789").distinct())
    seen = (was_seen(within_s), Worker.stopped_reason.is_(None))
    with database.read() as connection:
        counted = connection.execute(select(func.count().label("n"), n_workers.label("n_workers")).where(*seen)).one()
        releases = connection.execute(select(*versions).where(*seen).distinct()).all()
    return SeenWorkers(
        counted.n,
        counted.n_workers,
        {
            column.name: frozenset(str(found) for row in releases if (found := row._mapping[column.name]) is not None)
            for column in versions
        },
    )


def workers_stopped(database: Database, *, within_s: float) -> list[StoppedWorker]:
    """List the worker processes that took themselves out in the last seconds, or did not start."""
    # they have ended, and are to be seen all the same
    is_known = Worker.stopped_reason.is_not(None) & (Worker.last_seen_at > now(-within_s))
    query = select(Worker.id, Worker.stopped_reason.label("reason")).where(is_known).order_by(Worker.id)
    with database.read() as connection:
        return [StoppedWorker(**row._mapping) for row in connection.execute(query)]
