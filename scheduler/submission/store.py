"""Validate a search, and store it with all its trials in one transaction."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission import checks
from gridfleet.scheduler.submission.keras_models import check_keras_models
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.repository import Commit, commit_of_script
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.scheduler.submission.this_process import warn_of_other_variables, warn_of_seed
from gridfleet.scheduler.submission.users_line import users_stacklevel
from gridfleet.storage import searches
from gridfleet.storage.errors import NameTakenError, PayloadGoneError
from gridfleet.storage.params import column_kinds, params_to_json
from gridfleet.storage.payloads.format import size_of
from gridfleet.storage.payloads.source_texts import source_texts
from gridfleet.storage.payloads.store import PreparedPayload
from gridfleet.storage.schema import Payload, Search
from gridfleet.storage.search_views import create_search_view, point_view
from gridfleet.storage.session import this_session
from gridfleet.storage.sources.archive import pack
from gridfleet.storage.sources.collect import collect_sources
from gridfleet.storage.tags import add_tags
from gridfleet.storage.texts import add_sources, name_packages
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_packages, installed_versions
from gridfleet.worker.trial.cross_validation import PARAMS_OF_ROWS, Candidates, Evaluation
from gridfleet.worker.trial.fit_warnings import WarningFilters
from gridfleet.worker.trial.keras_objects import keras_objects_of_the_script
from gridfleet.worker.trial.keras_state import keras_config
from gridfleet.worker.trial.sources import KIND as SOURCES

#: Characters of an estimator's repr that are stored.
MAX_REPR = 1_000
#: How often another process may take the next free name before this one has stored its search.
MAX_RACES_LOST = 20
#: Bytes of a packed archive of sources above which it is worth a line.
MUCH_CODE = 1_000_000
#: Types of values that are equal wherever they are unpickled.
PLAIN = (type(None), bool, int, float, complex, str, bytes)
#: What makes two searches the same one, and what an error calls it.
COMPARED = {
    "evaluation_digest": "estimator, scoring or fit parameters",
    "sources_digest": "the script's own modules",
    "candidates_digest": "combinations or refit",
    "x_digest": "X",
    "y_digest": "y",
    "splits_digest": "splits",
    "strategy": "kind of search",
    "fit_mode": "fit_mode",
    "trial_timeout": "trial_timeout",
    "search_timeout": "search_timeout",
}


@dataclass(frozen=True)
class _WhatRan:
    """What is stored of a search for people only: its code as text, where that is from, its tags."""

    sources: Mapping[str, str | None]
    commit: Commit | None
    tags: Mapping[str, str]

    def columns(self, connection: Connection) -> dict[str, Any]:
        """Return what the table ``searches`` says of it; the list of packages is stored for that."""
        return {
            "git_commit": None if self.commit is None else self.commit.commit,
            "git_dirty": None if self.commit is None else self.commit.is_dirty,
            "packages_digest": name_packages(connection, installed_packages()),
        }


#: The columns of a search that name payloads.
PAYLOADS = {key.parent.name for key in Search.__table__.foreign_keys if key.column.table is Payload.__table__}


def store(
    fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions, numbered: bool = False
) -> SearchHandle:
    """Validate a search and store it with all its trials in one transaction; `publish` sends the messages.

    Parameters
    ----------
    fleet : Fleet
        Where.
    request : SearchRequest
        What scikit-learn wants evaluated.
    name : str or None
        The search's name.
    options : SearchOptions
        How trials are trained, and how long they may take.
    numbered : bool, default=False
        Whether a name that is taken gets a number behind it, and its view shows this search from now on.

    Raises
    ------
    InvalidSearchError, NotPicklableError, NameTakenError
        Before anything of the search is stored; also where all payloads together would take too much room.
    """
    checks.check_name(name)
    check_keras_models(request.estimator, request.candidates)
    checks.check_params(request.estimator, request.candidates)
    checks.check_finite(request)
    checks.warn_unused_params(request.estimator, request.candidates)
    warn_of_seed(request.estimator, request.candidates)
    warn_of_other_variables(fleet)
    if not numbered:
        _check_name_is_free(fleet, name)
    candidates, payloads, sources = _prepare(fleet, request)
    fleet.payloads.require_room(payloads)
    columns = _columns(request, candidates, options, _digests(payloads, fleet.payloads.insert))
    columns["needs_python"] = _needs_python(payloads)
    what_ran = _WhatRan(sources, commit_of_script(), options.tags)
    insert = functools.partial(_insert_with_payloads, fleet, payloads, columns, candidates, what_ran, numbered=numbered)
    if numbered:
        return _again_if_name_was_taken(insert, name)
    with _name_taken_as_sentence(fleet, name):
        return insert(name)


def find_equal(
    fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions
) -> SearchHandle | None:
    """Find the search of this name, if there is one, and make sure that it evaluates the same.

    Raises
    ------
    NameTakenError
        If another search has the name, with what differs.
    """
    if name is None or (stored := _of_name(fleet, name)) is None:
        return None
    candidates, payloads, _ = _prepare(fleet, request)
    now = _columns(request, candidates, options, _digests(payloads, lambda payload: payload.digest))
    differing = [said for column, said in COMPARED.items() if getattr(stored, column) != now[column]]
    if differing:
        raise NameTakenError(
            f"name={name!r} is taken by search {stored.id}, which differs in {', '.join(differing)}; choose another"
        )
    return SearchHandle(fleet, stored.id, stored.name)


def candidates_of(request: SearchRequest) -> Candidates:
    """Return the combinations of a request, and how the best is chosen, as they are stored."""
    return Candidates(
        params=list(request.candidates),
        refit=request.refit,
        refit_metric=request.refit_metric,
        return_train_score=bool(request.arguments.get("return_train_score")),
        error_score=request.arguments.get("error_score"),
        metrics=request.metrics,
    )


def _prepare(fleet: Fleet, request: SearchRequest) -> tuple[Candidates, list[PreparedPayload], dict[str, str | None]]:
    """Pickle what a search needs, each with what an error calls it; returns the script's own sources as well."""
    sources = collect_sources()
    candidates = candidates_of(request)
    evaluation = Evaluation(
        request.estimator,
        _sent_arguments(request),
        request.config,
        keras_config(),
        warning_filters=WarningFilters(request.warning_filters) if request.warning_filters else None,
        keras_objects=keras_objects_of_the_script(),
        params=candidates.params if any(map(_may_share_objects, candidates.params)) else None,
    )
    objects = {
        "candidates": (candidates, "a hyperparameter's value"),
        "evaluation": (evaluation, f"the estimator {type(request.estimator).__name__}"),
        "X": (request.sent(request.X), "X"),
        "y": (request.sent(request.y), "y"),
        "splits": (list(request.splits), "a split"),
    }
    # all are pickled before the first is stored: one that can't be must not leave the others behind
    payloads = [
        fleet.payloads.prepare(kind, obj, what=what, modules=sources.mentions if kind == "evaluation" else ())
        for kind, (obj, what) in objects.items()
    ]
    if sources.files:
        archive = (pack(sources.files), sources.folders)
        payloads.append(fleet.payloads.prepare(SOURCES, archive, what="the archive of the script's modules"))
        _say_size(payloads[-1], len(sources.files))
    return candidates, payloads, source_texts(evaluation)


def _sent_arguments(request: SearchRequest) -> dict[str, Any]:
    """Return the arguments as they travel: of sample weights and the like by reference, only that."""
    return {
        name: {key: request.sent(value) for key, value in argument.items()}
        if name in PARAMS_OF_ROWS and isinstance(argument, dict)
        else argument
        for name, argument in request.arguments.items()
    }


def _digests(payloads: Sequence[PreparedPayload], digest: Callable[[PreparedPayload], str]) -> dict[str, str | None]:
    """Return the digests of payloads, by column."""
    return {"sources_digest": None} | {f"{payload.kind.lower()}_digest": digest(payload) for payload in payloads}


def _needs_python(payloads: Sequence[PreparedPayload]) -> str | None:
    """Return the minor version of Python whose workers alone can evaluate a search; None: all can."""
    return next((payload.needs_python for payload in payloads if payload.needs_python), None)


def _insert_with_payloads(
    fleet: Fleet,
    payloads: Sequence[PreparedPayload],
    columns: dict[str, Any],
    candidates: Candidates,
    what_ran: _WhatRan,
    name: str | None,
    *,
    numbered: bool,
) -> SearchHandle:
    """Insert a search; payloads that somebody's deletion removed, for nothing named them yet, are stored again."""
    gone: Sequence[PreparedPayload] = ()
    for _ in range(MAX_RACES_LOST):
        try:
            return _insert(fleet, gone, columns, candidates, what_ran, name, numbered=numbered)
        except PayloadGoneError as error:
            lost, gone = error, payloads
    raise lost


def _insert(
    fleet: Fleet,
    gone: Sequence[PreparedPayload],
    columns: dict[str, Any],
    candidates: Candidates,
    what_ran: _WhatRan,
    name: str | None,
    *,
    numbered: bool,
) -> SearchHandle:
    """Insert a search with its trials and its view, in one transaction."""
    kinds = column_kinds(map(params_to_json, candidates.params))
    first, pointed = None, True
    with fleet.database.write() as connection:
        fleet.payloads.insert_again(connection, gone)
        fleet.payloads.require_stored(connection, [columns[column] for column in columns if column in PAYLOADS])
        if numbered and name is not None:
            name, first = searches.next_free_name(connection, name)
        columns = {**columns, **what_ran.columns(connection)}
        search_id, name = searches.create_search(connection, name, columns, fleet.settings.signer())
        add_tags(connection, search_id, what_ran.tags)
        add_sources(connection, search_id, what_ran.sources)
        queue.create_trials(connection, search_id, candidates.params)
        create_search_view(connection, search_id, name, kinds)
        if first is not None:
            pointed = point_view(connection, search_id, first, kinds)
    if not pointed:
        warnings.warn(
            f"the view {first!r} goes on to show an earlier search, as PostgreSQL does not let it be replaced; "
            f"this one is in the view {name!r}",
            UserWarning,
            stacklevel=users_stacklevel(),
        )
    return SearchHandle(fleet, search_id, name)


def _again_if_name_was_taken(insert: Callable[[str | None], SearchHandle], name: str | None) -> SearchHandle:
    """Insert a search under the next free name; another process may take that one in between."""
    for _ in range(MAX_RACES_LOST):
        try:
            return insert(name)
        except IntegrityError as error:
            lost = error
    raise lost


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
        **{name: value for name, value in asdict(options).items() if name != "tags"},
        "estimator": _shown(request.estimator),
        "submitted_by": f"{_user()}@{socket.gethostname()}",
        "session": this_session(),
        **digests,
        **installed_versions(),
    }


def _check_name_is_free(fleet: Fleet, name: str | None) -> None:
    if name is None:
        return
    if (other := _of_name(fleet, name)) is not None:
        raise NameTakenError(
            f"name={name!r} is taken by search {other.id} ({other.state}, {other.created_at:%Y-%m-%d %H:%M} UTC); "
            f"choose another, read that one with open_search({other.name!r}), or give load_if_exists=True to get its "
            "handle if it evaluates the same"
        )


def _of_name(fleet: Fleet, name: str) -> Any:
    """Return the row of the search that has exactly this name, without regard to case."""
    with fleet.database.read() as connection:
        columns = Search.__table__.columns
        return connection.execute(select(*columns).where(func.lower(Search.name) == name.lower())).one_or_none()


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
