"""Proves from a database that no trial was lost and none counted twice: a checker over its history.

It reads what the fleet left in the tables after all faults, and knows nothing of how it came to be but what people
asked for: which searches they submitted, went on with, renamed and deleted. Of the invariants I1 to I14 it sees those
that leave a trace: a message that was sent before its commit (I9) or a broker that was erased (I14) shows in nothing
but time, which is the point. Failed trials that somebody queued once more (``gridfleet retry-failed``) are beyond it:
only what was cancelled runs once more, where its search was gone on with.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Row, func, inspect, select

from gridfleet.scheduler.reports import trial_reader
from gridfleet.storage.database.connection import Database
from gridfleet.storage.deletions import NAMING_PAYLOADS
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import (
    FINAL_STATES,
    VIEWS,
    Attempt,
    Base,
    BestModel,
    BestModelChunk,
    Lease,
    Payload,
    PayloadChunk,
    Search,
    SearchState,
    Source,
    SplitScore,
    StoredText,
    Tag,
    Trial,
    TrialState,
)
from gridfleet.storage.search_views import shown_search

#: Outcomes of attempts that come with a result.
RESULTS = (TrialState.COMPLETED, TrialState.FAILED, TrialState.PRUNED)
#: Outcomes that do not use up the budget of failures; all others do.
NOT_COUNTED = (*RESULTS, "released", "cancelled", "handed_back")
#: How much later than it says a trial's end may be seen.
LATE_COMMIT = timedelta(seconds=10)
#: How far a mean may be from that of its splits, which are added up in another order here.
ROUNDING = 1e-12
#: Columns by which a row is a trial's, and a search's.
OF_TRIALS = ("trials.id", "trial_id")
OF_SEARCHES = ("searches.id", "search_id", "refit_of")
#: What of a score has to be that of the trial it was taken from.
SCORED = ("split", "metric", "test_score", "test_score_reason", "train_score", "fit_time", "score_time", "n_test")


@dataclass(frozen=True, slots=True)
class Expected:
    """A search that was accepted, and what its trials must give.

    Parameters
    ----------
    search_id : int
        Its id.
    params : sequence of mapping
        The hyperparameters as JSON, by the number of the trial.
    scores : sequence of sequence of float
        The test score of each split, by the number of the trial; NaN where the fit raises or the score is NaN.
    tolerance : float, default=0.0
        How far a stored score may be from it.
    n_resumes : int, default=0
        How often somebody went on with it, at most.
    told : mapping of str to object, default={}
        What it is to be by now: values for ``name``, ``priority`` and ``tags``, of which the latter are some.
    """

    search_id: int
    params: Sequence[Mapping[str, Any]]
    scores: Sequence[Sequence[float]]
    tolerance: float = 0.0
    n_resumes: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gone:
    """What was deleted, as it was found before.

    Parameters
    ----------
    search_ids, trial_ids : set of int
        The searches with their refits, and the trials of both.
    payloads : mapping of str to datetime, default={}
        When the last search was deleted that named them, by their digests. One that was stored later is another one's.
    """

    search_ids: set[int] = field(default_factory=set)
    trial_ids: set[int] = field(default_factory=set)
    payloads: dict[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a history comes to, as numbers."""

    searches: int
    trials: Mapping[str, int]
    attempts: Mapping[str, int]
    lost: int
    doubled: int
    reused: int
    models: int


class Witness:
    """Remembers every final trial that it sees, to tell whether one changed afterwards (I1)."""

    def __init__(self) -> None:
        # in each of its final states: a cancelled one may be evaluated later
        self._seen: dict[tuple[int, str], Row[Any]] = {}

    def look(self, database: Database) -> None:
        """Remember the trials that have ended since the last look."""
        query = select(*Trial.__table__.columns).where(Trial.state.in_(FINAL_STATES))
        newest = max((row.finished_at for row in self._seen.values()), default=None)
        if newest is not None:  # some of before, too: they may have been committed later
            query = query.where(Trial.finished_at > newest - LATE_COMMIT)
        with database.read() as connection:
            for row in connection.execute(query):
                self._seen.setdefault((row.id, row.state), row)

    def changes(self, database: Database, resumed: Collection[int] = (), deleted: Collection[int] = ()) -> list[str]:
        """Tell which trials are not any more what they were when they had ended.

        Parameters
        ----------
        database : Database
            The fleet's.
        resumed : collection of int, default=()
            Searches that somebody went on with: what was cancelled may have run, and their refits once more.
        deleted : collection of int, default=()
            Searches of which nothing is to be there.
        """
        with database.read() as connection:
            rows = {row.id: row for row in connection.execute(select(*Trial.__table__.columns))}
            refits = select(Search.id).where(Search.refit_of.in_(resumed))
            of_resumed = {*connection.execute(refits).scalars()}
        return [
            f"trial {seen.number} of search {seen.search_id} changed after its end: {_difference(seen, rows.get(id_))}"
            for (id_, state), seen in self._seen.items()
            if rows.get(id_) != seen
            and seen.search_id not in deleted
            and not (state == TrialState.CANCELLED and seen.search_id in resumed)
            and seen.search_id not in of_resumed
        ]


def check(database: Database, expected: Sequence[Expected] = (), *, max_failures: int = 3) -> list[str]:
    """Look for violations of the invariants in the history of a fleet that has come to rest.

    Parameters
    ----------
    database : Database
        Whose searches have all ended.
    expected : sequence of Expected, default=()
        Every search that was accepted; empty: only what needs no knowledge of the searches is checked.
    max_failures : int, default=3
        The budget of each trial.

    Returns
    -------
    list of str
        A sentence for each violation; empty if all invariants hold.
    """
    history = _History(database)
    n_resumes = {search.search_id: search.n_resumes for search in expected}
    found = [*_of_leases(history)]
    for search in history.searches:
        trials = history.trials[search.id]
        # its refit is done once more when somebody goes on with a search
        n_anew = 0 if search.refit_of is None else n_resumes.get(search.refit_of, 0)
        found += [f"search {search.name!r} {sentence}" for sentence in _of_search(database, search, trials)]
        if search.refit_of is not None:
            found += [f"search {search.name!r} {sentence}" for sentence in _of_refit(history, search, trials)]
        for trial in trials:
            attempts, splits = history.attempts[trial.id], history.splits[trial.id]
            sentences = [
                *_of_state(trial),
                *_of_attempts(trial, attempts, n_anew),
                *_of_times(trial, attempts),
                *_of_budget(search, trial, attempts, max_failures, n_resumes.get(search.id, 0) + n_anew),
                *(
                    _of_result(search, trial, attempts, splits, n_anew)
                    if trial.reused_from is None
                    else _of_taken_result(history, search, trial)
                ),
            ]
            found += [f"trial {trial.number} of search {search.name!r} {sentence}" for sentence in sentences]
    if expected:
        found += _of_expectations(history, expected)
    return found


def totals(database: Database, expected: Sequence[Expected]) -> Totals:
    """Count searches, trials by state, attempts by outcome, and what was lost or doubled.

    Lost is a trial that was accepted and is not there or did not end; doubled is one with more than one result.
    """
    history = _History(database)
    trials = [trial for of_search in history.trials.values() for trial in of_search]
    ended = Counter(trial.search_id for trial in trials if trial.state in FINAL_STATES)
    missing = sum(max(0, len(search.params) - ended[search.search_id]) for search in expected)
    accepted = {search.search_id for search in expected}
    unended = sum(trial.state not in FINAL_STATES for trial in trials if trial.search_id not in accepted)
    n_splits = {search.id: search.n_splits for search in history.searches}
    n_resumes = {search.search_id: search.n_resumes for search in expected}
    n_anew = {search.id: n_resumes.get(search.refit_of, 0) for search in history.searches}
    return Totals(
        searches=len(history.searches),
        trials=Counter(str(trial.state) for trial in trials),
        attempts=Counter(str(row.outcome) for rows in history.attempts.values() for row in rows),
        lost=missing + unended,
        doubled=sum(
            _n_results(history.attempts[trial.id]) > 1 + n_anew[trial.search_id]
            or max(Counter(row.metric for row in history.splits[trial.id]).values(), default=0)
            > n_splits[trial.search_id]
            for trial in trials
        ),
        reused=sum(trial.reused_from is not None for trial in trials),
        models=len(history.models),
    )


def leftovers(database: Database, gone: Gone) -> list[str]:
    """Look for what is left of deleted searches, and for what is missing of others because of that.

    Parameters
    ----------
    database : Database
        Whose searches have all ended.
    gone : Gone
        What was deleted.

    Returns
    -------
    list of str
        A sentence for each thing that should not be there, or should.
    """
    with database.read() as connection:
        return [
            *_rows_left(connection, gone),
            *_payloads_left(connection, gone),
            *_missing_content(connection),
            *_of_views(connection),
        ]


def _rows_left(connection: Connection, gone: Gone) -> Iterator[str]:
    """Look into every table for rows of what was deleted, and for rows whose trial or search is not there."""
    there = {"trial": {*connection.execute(select(Trial.id)).scalars()}}
    there["search"] = {*connection.execute(select(Search.id)).scalars()}
    deleted = {"trial": gone.trial_ids, "search": gone.search_ids}
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            of = next((of for of, names in _OWNERS.items() if {column.name, str(column)} & {*names}), None)
            if of is None:
                continue
            owners = {*connection.execute(select(column).where(column.is_not(None))).scalars()}
            if left := owners & deleted[of]:
                yield f"of the deleted {of} {_shown(sorted(left))} there are rows in {table.name}"
            if orphans := owners - there[of] - deleted[of]:
                yield f"{table.name} has rows of the {of} {_shown(sorted(orphans))}, which is not there"
    if begun := connection.execute(select(Search.id).where(Search.deleted_at.is_not(None))).scalars().all():
        yield f"the deletion of search {_shown(begun)} was begun and is not done"


_OWNERS = {"trial": OF_TRIALS, "search": OF_SEARCHES}


def _payloads_left(connection: Connection, gone: Gone) -> Iterator[str]:
    """Look for payloads that only deleted searches named."""
    named = _named_payloads(connection)
    for row in connection.execute(select(Payload.digest, Payload.kind, Payload.created_at)):
        deleted_at = gone.payloads.get(row.digest)
        if deleted_at is not None and row.digest not in named and row.created_at < deleted_at:
            yield f"the payload {row.digest[:8]} ({row.kind}) of a deleted search is there, and nothing names it"


def _missing_content(connection: Connection) -> Iterator[str]:
    """Look for payloads and texts that something names and that are not there, or not all of them."""
    sizes = {row.digest: row.size for row in connection.execute(select(Payload.digest, Payload.size))}
    of_chunks = select(PayloadChunk.digest, func.sum(func.length(PayloadChunk.content))).group_by(PayloadChunk.digest)
    stored = {digest: int(n_bytes) for digest, n_bytes in connection.execute(of_chunks)}
    for digest in sorted(_named_payloads(connection)):
        if digest not in sizes:
            yield f"the payload {digest[:8]} is named and not there"
        elif stored.get(digest, 0) != sizes[digest]:
            yield f"the payload {digest[:8]} has {stored.get(digest, 0)} of its {sizes[digest]} bytes"
    texts = {*connection.execute(select(StoredText.digest)).scalars()}
    for column in (Search.packages_digest, Trial.environment_digest, Source.digest):
        named = {*connection.execute(select(column).where(column.is_not(None))).scalars()}
        for digest in sorted(named - texts):
            yield f"the text {digest[:8]} is named by {column} and not there"


def _of_views(connection: Connection) -> Iterator[str]:
    """Look whether each search has its view, and whether there are others."""
    searches = {
        row.name: row.id
        for row in connection.execute(
            select(Search.id, Search.name).where(Search.refit_of.is_(None), Search.deleted_at.is_(None))
        )
    }
    views = {*inspect(connection).get_view_names()} - {*VIEWS}
    for name in sorted(views - searches.keys()):
        yield f"there is the view {name!r} and no such search"
    for name in sorted(searches.keys() - views):
        yield f"search {name!r} has no view"
    for name in sorted(searches.keys() & views):
        if (shown := shown_search(connection, name)) != searches[name]:
            yield f"the view of search {name!r} shows search {shown}, and not {searches[name]}"


def _named_payloads(connection: Connection) -> set[str]:
    return {
        digest
        for column in NAMING_PAYLOADS
        for digest in connection.execute(select(column).where(column.is_not(None))).scalars()
    }


class _History:
    """All rows, in memory: a query for each table, however many trials there are."""

    def __init__(self, database: Database) -> None:
        self.trials: dict[int, list[Row[Any]]] = defaultdict(list)
        self.attempts: dict[int, list[Row[Any]]] = defaultdict(list)
        self.splits: dict[int, list[Row[Any]]] = defaultdict(list)
        with database.read() as connection:
            self.searches = connection.execute(select(*Search.__table__.columns).order_by(Search.id)).all()
            for row in connection.execute(select(*Trial.__table__.columns).order_by(Trial.search_id, Trial.number)):
                self.trials[row.search_id].append(row)
            for row in connection.execute(
                select(*Attempt.__table__.columns).order_by(Attempt.trial_id, Attempt.attempt)
            ):
                self.attempts[row.trial_id].append(row)
            scores = select(SplitScore.trial_id, *(getattr(SplitScore, name) for name in SCORED))
            for row in connection.execute(scores.order_by(SplitScore.trial_id, SplitScore.split, SplitScore.metric)):
                self.splits[row.trial_id].append(row)
            self.by_id = {trial.id: trial for trials in self.trials.values() for trial in trials}
            self.leases = {*connection.execute(select(Lease.trial_id)).scalars()}
            self.tags: dict[int, dict[str, str]] = defaultdict(dict)
            for row in connection.execute(select(Tag.search_id, Tag.key, Tag.value)):
                self.tags[row.search_id][row.key] = row.value
            models = select(BestModel.trial_id, BestModel.number, BestModel.size)
            self.models = {row.trial_id: row for row in connection.execute(models)}
            self.sizes: Counter[int] = Counter()
            for row in connection.execute(select(BestModelChunk.trial_id, func.length(BestModelChunk.content))):
                self.sizes[row[0]] += row[1]


def _of_leases(history: _History) -> Iterator[str]:
    for trial_id in sorted(history.leases):
        trial = history.by_id.get(trial_id)
        if trial is None or trial.state != TrialState.RUNNING:
            why = "is not there" if trial is None else f"is {trial.state}"
            yield f"there is a lease of trial {trial_id}, which {why} (I3)"
    for trial in history.by_id.values():
        if trial.state == TrialState.RUNNING and trial.id not in history.leases:
            yield f"trial {trial.id} runs without a lease (I3)"


def _of_search(database: Database, search: Row[Any], trials: Sequence[Row[Any]]) -> Iterator[str]:
    numbers = [trial.number for trial in trials]
    if numbers != list(range(search.n_trials)):
        yield f"has the trials {_shown(numbers)}, not the {search.n_trials} that were accepted (I7)"
    open_trials = [trial.number for trial in trials if trial.state not in FINAL_STATES]
    if search.finished_at is None:
        yield f"has not ended, it is {search.state} (I12)"
    elif open_trials:
        yield f"has ended though its trials {_shown(open_trials)} have not"
    elif any(trial.finished_at is not None and trial.finished_at > search.finished_at for trial in trials):
        yield "ended before its last trial"
    elif search.state not in (SearchState.COMPLETED, SearchState.CANCELLED):
        yield f"has ended, but is {search.state}"
    scored = [trial for trial in trials if trial.mean_test_score is not None]
    best = max(scored, key=lambda trial: (trial.mean_test_score, -trial.number), default=None)
    reported = trial_reader.best_trial(database, search.id)
    if (best and (best.number, best.mean_test_score)) != (reported and (reported.number, reported.mean_test_score)):
        yield f"has the best trial {best and best.number}, the reporter says {reported and reported.number} (I13)"


def _of_refit(history: _History, search: Row[Any], trials: Sequence[Row[Any]]) -> Iterator[str]:
    """Look at a refit: it began after its search, has a model exactly if it completed, and of the best trial."""
    refitted = next((one for one in history.searches if one.id == search.refit_of), None)
    if refitted is None:
        yield f"is the refit of search {search.refit_of}, which is not there"
        return
    of_refitted = history.trials[refitted.id]
    completed = [trial for trial in of_refitted if trial.state == TrialState.COMPLETED]
    for trial in trials:
        model = history.models.get(trial.id)
        if (model is not None) != (trial.state == TrialState.COMPLETED):
            yield f"is {trial.state} and has {'a' if model else 'no'} model"
        if trial.started_at is not None and (refitted.finished_at is None or trial.started_at < refitted.finished_at):
            yield "began before its search had ended"
        if trial.state != TrialState.CANCELLED and (not completed or refitted.state == SearchState.CANCELLED):
            yield f"is {trial.state}, though its search has nothing to fit"
        best = max(completed, key=lambda trial: (trial.mean_test_score, -trial.number), default=None)
        if model is not None and best is not None and model.number != best.number:
            yield f"has the model of trial {model.number}, the best one is {best.number}"
        if model is not None and model.size != history.sizes[trial.id]:
            yield f"has a model of {model.size} bytes, and {history.sizes[trial.id]} of it"


def _of_state(trial: Row[Any]) -> Iterator[str]:
    if trial.state not in FINAL_STATES:
        yield f"is {trial.state} and not final (I12)"
    if (trial.token is not None) != (trial.state == TrialState.RUNNING):
        yield f"is {trial.state} and {'has' if trial.token else 'has no'} token (I3)"
    if (trial.finished_at is not None) != (trial.state in FINAL_STATES):
        yield f"is {trial.state} and finished_at is {trial.finished_at}"
    if trial.state == TrialState.CANCELLED and not trial.cancel_requested:
        yield "is cancelled, which nobody asked for"


def _of_attempts(trial: Row[Any], attempts: Sequence[Row[Any]], n_anew: int) -> Iterator[str]:
    numbers = [row.attempt for row in attempts]
    if numbers != list(range(1, len(attempts) + 1)):
        yield f"has attempts numbered {_shown(numbers)}, with gaps (I4)"
    if trial.attempt != max(numbers, default=0):
        yield f"says that it was tried {trial.attempt} times, its attempts say {max(numbers, default=0)} (I4)"
    if len({row.token for row in attempts}) < len(attempts):
        yield "has two attempts with the same token (I8)"
    for earlier in attempts[:-1]:
        if earlier.outcome in RESULTS and not n_anew:
            yield f"was tried again after attempt {earlier.attempt}, which had ended with a result (I1)"


def _of_times(trial: Row[Any], attempts: Sequence[Row[Any]]) -> Iterator[str]:
    unclosed = [row.attempt for row in attempts if row.ended_at is None]
    if len(unclosed) > (trial.state == TrialState.RUNNING):
        yield f"is {trial.state} with the attempts {_shown(unclosed)} open (I6, I11)"
    for row in attempts:
        if row.ended_at is not None and row.ended_at < row.started_at:
            yield f"has attempt {row.attempt}, which ended before it began (I11)"
        if trial.finished_at is not None and row.started_at > trial.finished_at:
            yield f"has attempt {row.attempt}, which began after the trial had ended as {trial.state} (I1, I10)"
    for earlier, later in pairwise(attempts):
        if earlier.ended_at is not None and later.started_at < earlier.ended_at:
            yield f"has attempts {earlier.attempt} and {later.attempt} at the same time (I6)"


def _of_budget(
    search: Row[Any], trial: Row[Any], attempts: Sequence[Row[Any]], max_failures: int, n_resumes: int
) -> Iterator[str]:
    counted = [row for row in attempts if row.outcome is not None and row.outcome not in NOT_COUNTED]
    # a refit begins anew with its search
    n_forgotten = max(0, len(counted) - trial.failures) if search.refit_of and n_resumes else 0
    if trial.failures != len(counted) - n_forgotten:
        yield f"counts {trial.failures} failures, its attempts {len(counted)} (I5)"
    # one more each time that its search was gone on with: it may have been cancelled as its budget was used up
    if len(counted) - n_forgotten > max_failures + n_resumes:
        yield f"failed {len(counted)} times, the budget is {max_failures} (I5)"
    may_end_early = search.trial_timeout is not None and bool(counted) and counted[-1].outcome == Outcome.TIMEOUT
    is_spent = len(counted) >= max_failures or may_end_early
    if trial.state == TrialState.FAILED and not _n_results(attempts) and not is_spent:
        yield f"is failed after {len(counted)} of {max_failures} failures and without an error of its model (I5)"


def _of_result(
    search: Row[Any], trial: Row[Any], attempts: Sequence[Row[Any]], splits: Sequence[Row[Any]], n_anew: int
) -> Iterator[str]:
    n_results = _n_results(attempts)
    if n_results > 1 + n_anew:
        yield f"has {n_results} attempts that recorded a result"
    if not n_results:
        if trial.state == TrialState.COMPLETED:
            yield "is completed, but no attempt recorded a result (I4)"
        if splits or trial.mean_test_score is not None:
            yield f"is {trial.state} and has scores that no attempt recorded (I2)"
        return
    if n_anew and trial.state != TrialState.COMPLETED:  # what an earlier attempt recorded went when it began anew
        return
    last = attempts[-1]
    if last.outcome != trial.state:
        yield f"is {trial.state}, its last attempt ended as {last.outcome} (I4)"
    if last.worker_id != trial.worker_id:
        yield f"was recorded by {trial.worker_id}, its last attempt was that of {last.worker_id} (I4)"
    times = (trial.started_at, last.started_at, trial.finished_at, last.ended_at)
    if None not in times and not (times[0] <= times[1] <= times[2] <= times[3]):
        yield f"has other times than its last attempt: {trial.started_at} to {trial.finished_at} (I4)"
    if trial.state == TrialState.COMPLETED and search.refit_of is None:
        yield from _of_scores(search, trial, splits)


def _of_taken_result(history: _History, search: Row[Any], trial: Row[Any]) -> Iterator[str]:
    splits = history.splits[trial.id]
    if history.attempts[trial.id] or trial.worker_id is not None:
        yield "took another one's result and was evaluated all the same (I4)"
    if trial.state != TrialState.COMPLETED:
        yield f"took another one's result and is {trial.state} (I2)"
    yield from _of_scores(search, trial, splits)
    source = history.by_id.get(trial.reused_from)
    if source is None:  # it was deleted
        return
    if source.state != TrialState.COMPLETED or source.reuse_key != trial.reuse_key:
        yield f"took the result of trial {source.id}, which is {source.state}, or another computation"
    taken, given = (
        [tuple(getattr(row, name) for name in SCORED) for row in rows] for rows in (splits, history.splits[source.id])
    )
    if taken != given or trial.mean_test_score != source.mean_test_score:
        yield f"has other scores than trial {source.id}, whose result it took"


def _of_scores(search: Row[Any], trial: Row[Any], splits: Sequence[Row[Any]]) -> Iterator[str]:
    by_metric: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in splits:
        by_metric[row.metric].append(row)
    if not splits:
        yield "is completed without a score of its splits (I2)"
    for metric, rows in by_metric.items():
        if sorted(row.split for row in rows) != list(range(search.n_splits)):
            yield f"has {metric} of the splits {_shown(sorted(row.split for row in rows))}, not of {search.n_splits}"
    refit = [row.test_score for row in by_metric.get(search.refit_metric, [])]
    if trial.mean_test_score is None or not math.isfinite(trial.mean_test_score):
        yield f"is completed with the mean score {trial.mean_test_score} (I2)"
    elif refit and None not in refit and not _close(trial.mean_test_score, math.fsum(refit) / len(refit), ROUNDING):
        yield f"has the mean score {trial.mean_test_score}, its splits' is {math.fsum(refit) / len(refit)}"


def _of_expectations(history: _History, expected: Sequence[Expected]) -> Iterator[str]:
    names = {search.id: search.name for search in history.searches if search.refit_of is None}
    accepted = {search.search_id for search in expected}
    for search_id in names.keys() - accepted:
        yield f"search {names[search_id]!r} was never submitted (I7)"
    for search in expected:
        if search.search_id not in names:
            yield f"search {search.search_id} was accepted and is not there (I7)"
            continue
        yield from _of_what_was_told(history, search, names[search.search_id])
        trials = {trial.number: trial for trial in history.trials[search.search_id]}
        if trials.keys() != set(range(len(search.params))):
            yield f"search {names[search.search_id]!r} has {len(trials)} trials of {len(search.params)} accepted (I7)"
        for number in trials.keys() & set(range(len(search.params))):
            for sentence in _of_expected_trial(search, trials[number], history.splits[trials[number].id]):
                yield f"trial {number} of search {names[search.search_id]!r} {sentence}"


def _of_what_was_told(history: _History, search: Expected, name: str) -> Iterator[str]:
    """Look whether a search has the name, priority and tags that somebody gave it."""
    row = next(row for row in history.searches if row.id == search.search_id)
    is_told = {"name": row.name, "priority": row.priority, "tags": history.tags[row.id]}
    for what, wanted in search.told.items():
        found = is_told[what]
        if what == "tags":  # None: it has no such tag
            found = {key: found.get(key) for key in wanted}
        if found != wanted:
            yield f"search {name!r} has the {what} {found!r}, it was given {wanted!r}"


def _of_expected_trial(search: Expected, trial: Row[Any], splits: Sequence[Row[Any]]) -> Iterator[str]:
    if trial.params != search.params[trial.number]:
        yield f"has the params {trial.params}, accepted were {search.params[trial.number]} (I7)"
    if not splits:  # never evaluated to the end, which other checks explain or blame
        return
    wanted = search.scores[trial.number]
    if trial.state == TrialState.COMPLETED and any(math.isnan(score) for score in wanted):
        yield "is completed, though its fit or its score can't be"
    if trial.state == TrialState.FAILED and not any(math.isnan(score) for score in wanted):
        yield f"is failed, though its model gives {list(wanted)}"
    for row in splits:
        score = math.nan if row.test_score is None else row.test_score
        if not _close(score, wanted[row.split], search.tolerance):
            yield f"has {score} on split {row.split}, its model gives {wanted[row.split]}"


def _n_results(attempts: Sequence[Row[Any]]) -> int:
    return sum(row.outcome in RESULTS for row in attempts)


def _close(one: float, other: float, tolerance: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance * max(1.0, abs(other))


def _difference(before: Row[Any], after: Row[Any] | None) -> str:
    if after is None:
        return "it is gone"
    changed = [name for name, value in before._mapping.items() if after._mapping[name] != value]
    return ", ".join(f"{name} was {before._mapping[name]!r}, is {after._mapping[name]!r}" for name in changed)


def _shown(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{shown} … ({len(numbers)})" if len(numbers) > 10 else shown or "none"
