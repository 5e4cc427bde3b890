"""Validate a search, store it with all its trials in one transaction, publish the messages."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission import checks
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.storage.errors import NameTakenError, SearchNotFoundError
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation

#: Characters of an estimator's repr that are stored.
MAX_REPR = 1_000


def store(fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions) -> SearchHandle:
    """Validate a search, store it with all its trials in one transaction, and publish the messages.

    Raises
    ------
    InvalidSearchError, NotPicklableError, NameTakenError
        Before anything of the search is stored.
    """
    checks.check_name(name)
    checks.check_params(request.estimator, request.candidates)
    checks.check_finite(request.estimator, request.X, request.y, request.candidates)
    checks.warn_of_params_that_do_not_arrive(request.estimator, request.candidates)
    _check_name_is_free(fleet, name)
    candidates = Candidates(
        params=list(request.candidates),
        refit=request.refit,
        refit_metric=request.refit_metric,
        return_train_score=bool(request.arguments.get("return_train_score")),
        error_score=request.arguments.get("error_score"),
        metrics=request.metrics,
    )
    evaluation = Evaluation(request.estimator, request.arguments, request.config)
    digests = _store_payloads(
        fleet,
        evaluation=(evaluation, f"the estimator {type(request.estimator).__name__}"),
        candidates=(candidates, "a hyperparameter's value"),
        X=(request.X, "X"),
        y=(request.y, "y"),
        splits=(list(request.splits), "a split"),
    )
    with _name_taken_as_sentence(fleet, name), fleet.database.write() as connection:
        search_id, name = _insert_search(connection, request, candidates, name, options, digests)
        queue.create_trials(connection, search_id, candidates.params)
        create_search_view(connection, search_id, name, column_kinds(map(params_to_json, candidates.params)))
    _publish(fleet, search_id)
    return SearchHandle(fleet, search_id, name)


def _store_payloads(fleet: Fleet, **objects: tuple[Any, str]) -> dict[str, str]:
    """Store what a search needs, each with what an error calls it, and return the digests by column."""
    payloads = fleet.payloads
    # all are pickled before the first is stored: one that can't be must not leave the others behind
    prepared = [payloads.prepare(kind, obj, what=what) for kind, (obj, what) in objects.items()]
    return {f"{payload.kind.lower()}_digest": payloads.insert(payload) for payload in prepared}


def _insert_search(
    connection: Connection,
    request: SearchRequest,
    candidates: Candidates,
    name: str | None,
    options: SearchOptions,
    digests: dict[str, str],
) -> tuple[int, str]:
    scoring = getattr(request.caller, "scoring", None)
    random_state = request.estimator.get_params(deep=False).get("random_state")
    search_id: int = connection.execute(
        insert(Search)
        .values(
            # until its id is known, something that no other search has
            name=name if name is not None else f"search-{secrets.token_hex(8)}",
            strategy=type(request.caller).__name__,
            scoring=None if scoring is None else _shown(scoring),
            refit_metric=candidates.refit_metric,
            n_trials=len(candidates.params),
            n_splits=len(request.splits),
            random_state=None if random_state is None else _shown(random_state),
            **asdict(options),
            estimator=_shown(request.estimator),
            submitted_by=f"{_user()}@{socket.gethostname()}",
            **digests,
            **installed_versions(),
        )
        .returning(Search.id)
    ).scalar_one()
    if name is None:
        name = f"search-{search_id}"
        connection.execute(update(Search).where(Search.id == search_id).values(name=name))
    return search_id, name


def _publish(fleet: Fleet, search_id: int) -> None:
    # after the commit: a message about a trial that is not there yet would be lost
    with fleet.database.read() as connection:
        trials_of_search = connection.execute(
            select(Trial.id, Trial.structure_digest).where(Trial.search_id == search_id).order_by(Trial.number)
        )
        ids = _structures_in_turn([(row.id, row.structure_digest) for row in trials_of_search])
    if not fleet.publish(ids):
        print(  # noqa: T201 - for whoever waits at the terminal
            "gridfleet: the broker does not answer; the search is stored and starts as soon as it does",
            file=sys.stderr,
        )


def _structures_in_turn(trials_of_search: list[tuple[int, str | None]]) -> list[int]:
    """Order trials so that workers begin with different structures; each then stays with its own (`trials.choose`)."""
    seen: Counter[str | None] = Counter()
    turns = []
    for trial_id, structure in trials_of_search:
        turns.append((seen[structure], trial_id))
        seen[structure] += 1
    return [trial_id for _, trial_id in sorted(turns)]


def _check_name_is_free(fleet: Fleet, name: str | None) -> None:
    if name is None:
        return
    try:
        other = reader.find_search(fleet.database, name)
    except SearchNotFoundError:
        return
    raise NameTakenError(
        f"name={name!r} is taken by search {other.id} ({other.state}, {other.created_at:%Y-%m-%d %H:%M} UTC); "
        f"choose another, or read that one with open_search({other.name!r})"
    )


@contextmanager
def _name_taken_as_sentence(fleet: Fleet, name: str | None) -> Iterator[None]:
    """Say it in a sentence if another process took the name since we looked."""
    try:
        yield
    except IntegrityError:
        _check_name_is_free(fleet, name)
        raise


def _shown(obj: Any) -> str:
    text = " ".join(repr(obj).replace("\x00", "\\x00").split())
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
