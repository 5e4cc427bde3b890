"""Validate a search, and store it with all its trials in one transaction."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy.exc import IntegrityError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission import checks
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.storage import searches
from gridfleet.storage.errors import NameTakenError, SearchNotFoundError
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.payloads.format import size_of
from gridfleet.storage.payloads.store import PreparedPayload
from gridfleet.storage.search_views import create_search_view
from gridfleet.storage.signer import Signer
from gridfleet.storage.sources.archive import pack
from gridfleet.storage.sources.collect import collect_sources
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation
from gridfleet.worker.trial.sources import KIND as SOURCES

#: Characters of an estimator's repr that are stored.
MAX_REPR = 1_000
#: Bytes of a packed archive of sources above which it is worth a line.
MUCH_CODE = 1_000_000
#: Types of values that are equal wherever they are unpickled.
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def store(fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions) -> SearchHandle:
    """Validate a search and store it with all its trials in one transaction; `publish` sends the messages.

    Raises
    ------
    InvalidSearchError, NotPicklableError, NameTakenError
        Before anything of the search is stored; also where all payloads together would take too much room.
    """
    checks.check_name(name)
    checks.check_params(request.estimator, request.candidates)
    checks.check_finite(request.estimator, request.X, request.y, request.candidates)
    checks.warn_unused_params(request.estimator, request.candidates)
    _check_name_is_free(fleet, name)
    candidates = Candidates(
        params=list(request.candidates),
        refit=request.refit,
        refit_metric=request.refit_metric,
        return_train_score=bool(request.arguments.get("return_train_score")),
        error_score=request.arguments.get("error_score"),
        metrics=request.metrics,
    )
    evaluation = Evaluation(
        request.estimator,
        request.arguments,
        request.config,
        params=candidates.params if any(map(_may_share_objects, candidates.params)) else None,
    )
    digests = _store_payloads(
        fleet,
        candidates=(candidates, "a hyperparameter's value"),
        evaluation=(evaluation, f"the estimator {type(request.estimator).__name__}"),
        X=(request.X, "X"),
        y=(request.y, "y"),
        splits=(list(request.splits), "a split"),
    )
    with _name_taken_as_sentence(fleet, name), fleet.database.write() as connection:
        search_id, name = searches.create_search(
            connection, name, _columns(request, candidates, options, digests), Signer(fleet.settings.key())
        )
        queue.create_trials(connection, search_id, candidates.params)
        create_search_view(connection, search_id, name, column_kinds(map(params_to_json, candidates.params)))
    return SearchHandle(fleet, search_id, name)


def _store_payloads(fleet: Fleet, **objects: tuple[Any, str]) -> dict[str, str | None]:
    """Store what a search needs, each with what an error calls it, and return the digests by column."""
    payloads = fleet.payloads
    sources = collect_sources()
    # all are pickled before the first is stored: one that can't be must not leave the others behind
    prepared = [
        payloads.prepare(kind, obj, what=what, modules=sources.mentions if kind == "evaluation" else ())
        for kind, (obj, what) in objects.items()
    ]
    if sources.files:
        prepared.append(
            payloads.prepare(
                SOURCES, (pack(sources.files), sources.folders), what="the archive of the script's modules"
            )
        )
        _say_size(prepared[-1], len(sources.files))
    payloads.require_room(prepared)
    return {"sources_digest": None} | {
        f"{payload.kind.lower()}_digest": payloads.insert(payload) for payload in prepared
    }


def _say_size(sources: PreparedPayload, n_files: int) -> None:
    """Say once how much code travels, where that is more than code usually is."""
    size = size_of(sources.content)
    if size > MUCH_CODE and not sources.is_stored:
        print(  # noqa: T201 - for whoever waits at the terminal
            f"gridfleet: the script's own modules and packages travel to the workers once, {size / 1e6:,.1f} MB in "
            f"{n_files:,} files; a .gitignore keeps out what the models do not need",
            file=sys.stderr,
        )


def _may_share_objects(params: dict[str, Any]) -> bool:
    """Whether a combination has values that are more than their value: functions, classes, instances."""
    return not all(map(_is_plain, params.values()))


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return type(value) in PLAIN or isinstance(value, np.generic)


def _columns(
    request: SearchRequest, candidates: Candidates, options: SearchOptions, digests: dict[str, str | None]
) -> dict[str, Any]:
    """Return what the table ``searches`` says of a search."""
    scoring = getattr(request.caller, "scoring", None)
    random_state = request.estimator.get_params(deep=False).get("random_state")
    return {
        "strategy": type(request.caller).__name__,
        "scoring": None if scoring is None else _shown(scoring),
        "refit_metric": candidates.refit_metric,
        "n_trials": len(candidates.params),
        "n_splits": len(request.splits),
        "random_state": None if random_state is None else _shown(random_state),
        **asdict(options),
        "estimator": _shown(request.estimator),
        "submitted_by": f"{_user()}@{socket.gethostname()}",
        **digests,
        **installed_versions(),
    }


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
    try:
        text = " ".join(repr(obj).replace("\x00", "\\x00").split())
    except ValueError:  # an integer of more than 4,300 digits among its parameters
        text = type(obj).__name__
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
