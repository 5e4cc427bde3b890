"""Adds the next trials of searches that learn or halve, as results come in: by rows alone, so any process can go on."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.proposals import halving as rounds
from gridfleet.scheduler.proposals.ask import Proposer, Pruned, Row
from gridfleet.scheduler.proposals.samplers import Sampler
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, first_line
from gridfleet.storage.halving import Halving
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.schema import FINAL_STATES, TrialState
from gridfleet.storage.settings import Settings
from gridfleet.storage.spaces import Space
from gridfleet.storage.trials import proposed, queue
from gridfleet.storage.trials.proposed import Asking, Proposal
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.publisher import Publisher

logger = logging.getLogger(__name__)

#: Trials that are added in one transaction.
AT_ONCE = 500
#: Seconds until the next look after one that failed.
PAUSE_S = 2.0


class Asker:
    """Adds the trials that searches ask for, and sends their messages.

    Parameters
    ----------
    settings : Settings
        How often to look without being told.
    database : Database
        Where the searches are.
    publisher : Publisher
        The way to the broker.
    """

    def __init__(self, settings: Settings, database: Database, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._proposers: dict[int, Proposer] = {}
        #: the first trials of each search as far as all are completed: these rows never change
        self._completed: dict[int, list[Row]] = {}

    def ask_all(self) -> int:
        """Add what all searches ask for now; returns how many trials."""
        searches = proposed.asking(self._database)
        ids = {search.id for search in searches}
        self._proposers = {search_id: kept for search_id, kept in self._proposers.items() if search_id in ids}
        self._completed = {search_id: rows for search_id, rows in self._completed.items() if search_id in ids}
        return sum(map(self._try_ask, searches))

    def run_for_ever(self) -> None:
        """Ask whenever a worker tells that a trial has ended, and every ``reconcile_s`` seconds."""
        look_at = time.monotonic()
        while True:
            try:
                if self._publisher.wait_until_told() or time.monotonic() >= look_at:
                    look_at = time.monotonic() + self._settings.reconcile_s
                    while self.ask_all():
                        pass
            except (SQLAlchemyError, RedisError) as error:
                logger.warning("proposals: %s: %s", type(error).__name__, first_line(error))
                time.sleep(PAUSE_S)

    def _try_ask(self, search: Asking) -> int:
        try:
            return self._ask(search)
        except (SQLAlchemyError, RedisError):
            raise
        except Exception as error:  # noqa: BLE001 - of Optuna, and of one search: the others go on
            self._proposers.pop(search.id, None)
            kind = "" if isinstance(error, GridfleetError) else f"{type(error).__name__}: "
            logger.warning("search %s gets no more trials: %s%s", search.name, kind, first_line(error))
            said = f"no more trials could be proposed: {kind}{first_line(error)}"
            proposed.fail_proposals(self._database, search.id, said)
            return 0

    def _ask(self, search: Asking) -> int:
        return self._halve(search) if search.space is None else self._propose(search, search.space)

    def _halve(self, search: Asking) -> int:
        """Add the next round of a halving search when the one before it has ended."""
        halving = Halving.from_json(search.sampler)
        index = halving.round_of(search.n_asked)
        before = proposed.round_trials(self._database, search, index - 1)
        if not all(trial.is_final for trial in before):
            return 0
        if rounds.has_raised(before, halving):
            proposed.end_proposals(self._database, search.id, n_asked=search.n_asked)
            return 0
        chosen = rounds.next_round(before, halving, index, search.n_splits)[search.n_asked - halving.first_of(index) :]
        proposals = [
            Proposal({"candidate": candidate}, shown, [], index, halving.n_resources[index])
            for candidate, shown in chosen[:AT_ONCE]
        ]
        return len(proposals) if self._add(search, proposals) else 0

    def _propose(self, search: Asking, described: str) -> int:
        rows = self._rows(search.id)
        if len(rows) != search.n_asked:  # another process was faster
            return 0
        sampler = Sampler.from_json(search.sampler)
        space = Space.from_json(described)
        proposer = self._proposers.setdefault(search.id, Proposer(space, sampler, search.seed))
        proposals: list[Proposal] = []
        is_exhausted = False
        while len(proposals) < AT_ONCE and may_ask(search, sampler, rows):
            unknown = unknown_to(search, sampler, rows)
            sample = proposer.ask(rows, unknown)
            if sample is None:
                is_exhausted = True
                break
            rows.append(Row(sample, unknown=unknown))
            proposals.append(Proposal(sample, space.shown(sample), unknown))
        if proposals and not self._add(search, proposals):
            self._proposers.pop(search.id, None)
            return 0
        if is_exhausted:
            logger.debug("the space of search %s has nothing new after %d trials", search.name, len(rows))
            proposed.end_proposals(self._database, search.id, n_asked=len(rows))
        return len(proposals)

    def _rows(self, search_id: int) -> list[Row]:
        """Return all rows of a search; those are read that may have changed."""
        completed = self._completed.setdefault(search_id, [])
        others = [row_of(row) for row in proposed.proposed(self._database, search_id, first=len(completed))]
        rows = [*completed, *others]
        completed += itertools.takewhile(lambda row: row.score is not None, others)
        return rows

    def _add(self, search: Asking, proposals: Sequence[Proposal]) -> bool:
        trial_ids = proposed.add_proposals(self._database, search.id, proposals, n_asked=search.n_asked)
        if trial_ids is None:
            logger.debug("search %s was ended, or another process has proposed its trials", search.name)
            return False
        try:
            trial_ids = trial_ids[: self._publisher.room()]
            self._publisher.publish(trial_ids)
        except RedisError as error:  # the reconciler sends them
            logger.warning("proposals: %s: %s", type(error).__name__, first_line(error))
        else:
            queue.mark_published(self._database, trial_ids)
        return True


def may_ask(search: Asking, sampler: Sampler, rows: Sequence[Row]) -> bool:
    """Whether the next trial of a search may be proposed now."""
    number = len(rows)
    if number >= search.n_trials:
        return False
    # a pruner compares with the trials that a proposal may know of, so that they have ended
    if not sampler.learns and not (search.asks_in_order and search.pruner is not None):
        return True
    if search.asks_in_order:
        return all(row.is_final for row in rows[: max(0, number - search.lookahead + 1)])
    return sum(not row.is_final for row in rows) < search.lookahead


def unknown_to(search: Asking, sampler: Sampler, rows: Sequence[Row]) -> list[int]:
    """Return the numbers of the trials whose results the next proposal is not to know."""
    if not sampler.learns:
        return []
    number = len(rows)
    if search.asks_in_order:
        return list(range(max(0, number - search.lookahead + 1), number))
    return [number for number, row in enumerate(rows) if not row.is_final]


def start(settings: Settings) -> threading.Thread:
    """Ask in a thread of this process until that ends, over connections of its own."""
    thread = threading.Thread(target=_run, args=(settings,), name="proposals", daemon=True)
    thread.start()
    return thread


def _run(settings: Settings) -> None:
    while True:
        try:
            with ExitStack() as connections:
                database = connections.enter_context(closing(Database(settings)))
                publisher = connections.enter_context(closing(Publisher(settings, Keys(fleet_id(database)))))
                Asker(settings, database, publisher).run_for_ever()
        except (SQLAlchemyError, RedisError, GridfleetError) as error:
            logger.warning("proposals: %s: %s", type(error).__name__, first_line(error))
            time.sleep(PAUSE_S)


def row_of(row: Any) -> Row:
    """Return what a proposal may depend on of a row that `proposed.proposed` read."""
    return Row(
        row.sample,
        is_final=TrialState(row.state) in FINAL_STATES,
        # what failed may have a score too, error_score
        score=row.mean_test_score if row.state == TrialState.COMPLETED else None,
        unknown=row.asked_without or (),
        pruned=Pruned(row.pruned_split, row.pruned_epoch, row.pruned_value) if row.state == TrialState.PRUNED else None,
    )
