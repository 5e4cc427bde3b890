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
from gridfleet.scheduler.submission.drawn import shown, space_digest, splitter_of
from gridfleet.scheduler.submission.estimator_text import estimator_text
from gridfleet.scheduler.submission.keras_models import check_keras_models
from gridfleet.scheduler.submission.names import check_name_is_free
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.repository import Commit, commit_of_script
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.scheduler.submission.reuse import ReuseKeys, reuse_keys
from gridfleet.scheduler.submission.same_search import Asked, Same, require_same
from gridfleet.scheduler.submission.this_process import warn_of_other_variables, warn_of_seed
from gridfleet.scheduler.submission.users_line import users_stacklevel
from gridfleet.storage import refits as refit_searches
from gridfleet.storage import searches
from gridfleet.storage.errors import PayloadGoneError
from gridfleet.storage.params import Kind, column_kinds
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
from gridfleet.storage.trials.reuse import find_results, take_results
from gridfleet.storage.versions import installed_packages, installed_versions
from gridfleet.worker.trial.cross_validation import PARAMS_OF_ROWS, Candidates, Evaluation
from gridfleet.worker.trial.fit_warnings import WarningFilters
from gridfleet.worker.trial.keras_objects import keras_objects_of_the_script
from gridfleet.worker.trial.keras_state import keras_config
from gridfleet.worker.trial.sources import KIND as SOURCES

#: How often another process may take the next free name before this one has stored its search.
MAX_RACES_LOST = 20
#: Bytes of a packed archive of sources above which it is worth a line.
MUCH_CODE = 1_000_000
#: Columns of a search that its refit has its own of.
OF_ONE_SEARCH = {
    *("id", "name", "state", "created_at", "started_at", "finished_at", "paused_at", "error"),
    *("signature", "refit_of", "model_key"),
}
#: Why trials that are proposed have no key by which their results are found again.
NOT_REUSED = "trials that are added while their search goes on: who adds them does not see into their values"
#: Types of values that are equal wherever they are unpickled.
PLAIN = (type(None), bool, int, float, complex, str, bytes)


@dataclass(frozen=True)
class _Prepared:
    """A search that is not stored yet: what travels, pickled, and the same as objects."""

    evaluation: Evaluation
    candidates: Candidates
    archive: bytes | None
    payloads: list[PreparedPayload]
    kinds: dict[str, Kind]


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
    fleet: Fleet,
    request: SearchRequest,
    *,
    name: str | None,
    options: SearchOptions,
    numbered: bool = False,
    reuse: bool = False,
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
    reuse : bool, default=False
        Whether trials whose computation was done before take the results of then.

    Raises
    ------
    InvalidSearchError, NotPicklableError, NameTakenError
        Before anything of the search is stored; also where all payloads together would take too much room.
    """
    checks.check_name(name)
    check_keras_models(request.estimator, request.candidates)
    checks.check_params(request.estimator, request.candidates)
    checks.check_pruning(request)
    checks.check_finite(request)
    checks.warn_unused_params(request.estimator, request.candidates)
    warn_of_seed(request.estimator, request.candidates)
    warn_of_other_variables(fleet)
    if not numbered:
        check_name_is_free(fleet.database, name)
    prepared = _prepare(fleet, request)
    candidates = prepared.candidates
    fleet.payloads.require_room(prepared.payloads)
    columns = _columns(request, candidates, options, _digests(prepared.payloads, fleet.payloads.insert))
    columns["needs_python"] = _needs_python(prepared.payloads)
    keys = reuse_keys(prepared.evaluation, candidates, columns, prepared.archive)
    if candidates.are_proposed:
        keys = ReuseKeys([None] * len(candidates.params), NOT_REUSED)
    columns |= {"reuse": reuse, "no_reuse": keys.no_reuse}
    what_ran = _WhatRan(source_texts(prepared.evaluation), commit_of_script(), options.tags)
    insert = functools.partial(
        _insert_with_payloads,
        fleet,
        prepared,
        columns,
        what_ran,
        keys.keys,
        numbered=numbered,
        reuse=reuse,
        refits=request.refits_on_fleet,
    )
    if numbered:
        handle, n_taken = _again_if_name_was_taken(insert, name)
    else:
        with _name_taken_as_sentence(fleet, name):
            handle, n_taken = insert(name)
    if reuse:
        _say_what_is_reused(n_taken, len(candidates.params), keys.no_reuse)
    if n_taken and n_taken == len(candidates.params):
        searches.finish_search(fleet.database, handle.id)
    return handle


def find_same(
    fleet: Fleet, request: SearchRequest, *, name: str, options: SearchOptions
) -> tuple[SearchHandle, Same] | None:
    """Find the search of this name, if there is one, and make sure that it evaluates the same.

    Raises
    ------
    NameTakenError
        If another search has the name, with the first part that differs.
    """
    checks.check_name(name)
    if (stored := _of_name(fleet, name)) is None:
        return None
    prepared = _prepare(fleet, request)
    digests = _digests(prepared.payloads, lambda payload: payload.digest)
    columns = _columns(request, prepared.candidates, options, digests)
    asked = Asked(request, columns, prepared.evaluation, prepared.candidates, prepared.archive)
    return SearchHandle(fleet, stored.id, stored.name), require_same(fleet, stored, asked)


def candidates_of(request: SearchRequest) -> Candidates:
    """Return the combinations of a request, and how the best is chosen, as they are stored."""
    return Candidates(
        params=list(request.candidates) if request.proposals is None else [],
        refit=request.refit,
        refit_metric=request.refit_metric,
        return_train_score=bool(request.arguments.get("return_train_score")),
        error_score=request.arguments.get("error_score"),
        metrics=request.metrics,
        space=None if request.proposals is None else request.proposals.given,
        halving=None if request.rounds is None else request.rounds.halving,
    )


def _prepare(fleet: Fleet, request: SearchRequest) -> _Prepared:
    """Pickle what a search needs, each with what an error calls it."""
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
    archive = pack(sources.files) if sources.files else None
    if archive is not None:
        what = "the archive of the script's modules"
        payloads.append(fleet.payloads.prepare(SOURCES, (archive, sources.folders), what=what))
        _say_size(payloads[-1], len(sources.files))
    return _Prepared(evaluation, candidates, archive, payloads, column_kinds(request.shown))


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
    prepared: _Prepared,
    columns: dict[str, Any],
    what_ran: _WhatRan,
    keys: Sequence[str | None],
    name: str | None,
    *,
    numbered: bool,
    reuse: bool,
    refits: bool,
) -> tuple[SearchHandle, int]:
    """Insert a search; payloads that somebody's deletion removed, for nothing named them yet, are stored again."""
    gone: Sequence[PreparedPayload] = ()
    for _ in range(MAX_RACES_LOST):
        try:
            return _insert(
                fleet,
                gone,
                columns,
                prepared,
                what_ran,
                keys,
                name,
                numbered=numbered,
                reuse=reuse,
                refits=refits,
            )
        except PayloadGoneError as error:
            lost, gone = error, prepared.payloads
    raise lost


def _insert(
    fleet: Fleet,
    gone: Sequence[PreparedPayload],
    columns: dict[str, Any],
    prepared: _Prepared,
    what_ran: _WhatRan,
    keys: Sequence[str | None],
    name: str | None,
    *,
    numbered: bool,
    reuse: bool,
    refits: bool,
) -> tuple[SearchHandle, int]:
    """Insert a search with its trials, its view and its refit, in one transaction; return how many took a result."""
    kinds = prepared.kinds
    first, pointed, n_taken = None, True, 0
    with fleet.database.write() as connection:
        fleet.payloads.insert_again(connection, gone)
        fleet.payloads.require_stored(connection, [columns[column] for column in columns if column in PAYLOADS])
        if numbered and name is not None:
            name, first = searches.next_free_name(connection, name)
        columns = {**columns, **what_ran.columns(connection)}
        search_id, name = searches.create_search(connection, name, columns, fleet.settings.signer())
        add_tags(connection, search_id, what_ran.tags)
        add_sources(connection, search_id, what_ran.sources)
        taken = find_results(connection, {key for key in keys if key is not None}) if reuse else {}
        halving = prepared.candidates.halving
        queue.create_trials(
            connection,
            search_id,
            prepared.candidates.params,
            queue.Reuse(keys, taken) if halving is None else None,
            n_resources=None if halving is None else halving.n_resources[0],
        )
        if taken:
            n_taken = take_results(connection, search_id)
        create_search_view(connection, search_id, name, kinds)
        if refits:
            _insert_refit(connection, fleet, search_id, columns)
        if first is not None:
            pointed = point_view(connection, search_id, first, kinds)
    if not pointed:
        warnings.warn(
            f"the view {first!r} goes on to show an earlier search, as PostgreSQL does not let it be replaced; "
            f"this one is in the view {name!r}",
            UserWarning,
            stacklevel=users_stacklevel(),
        )
    return SearchHandle(fleet, search_id, name), n_taken


def add_refit(fleet: Fleet, search_id: int) -> None:
    """Store the refit of a search that was stored without one; does nothing where it has one."""
    with fleet.database.write() as connection:
        columns = [column for column in Search.__table__.columns if column.name not in OF_ONE_SEARCH]
        row = connection.execute(
            select(Search.state, Search.finished_at, *columns).where(Search.id == search_id).with_for_update()
        ).one()
        if connection.execute(select(Search.id).where(Search.refit_of == search_id)).first() is not None:
            return
        _insert_refit(connection, fleet, search_id, {column.name: row._mapping[column] for column in columns})
        if row.finished_at is not None:
            refit_searches.begin_or_end(connection, search_id, row.state)


def _insert_refit(connection: Connection, fleet: Fleet, search_id: int, columns: dict[str, Any]) -> None:
    settings = fleet.settings
    of_refit = refit_searches.columns_of(columns, search_id, settings.model_signer().public_key)
    name = refit_searches.name_of(search_id)
    refit_id, _ = searches.create_search(connection, name, of_refit, settings.signer())
    queue.create_trials(connection, refit_id, [{}])


def _say_what_is_reused(n_taken: int, n_trials: int, no_reuse: str | None) -> None:
    """Say how many trials are not evaluated, and why others can't be found again."""
    print(f"gridfleet: {n_taken} of {n_trials} trials take results that are there", file=sys.stderr)  # noqa: T201 - as progress
    if no_reuse is not None:
        warnings.warn(f"reuse=True finds no results for {no_reuse}", UserWarning, stacklevel=users_stacklevel())


def _again_if_name_was_taken(
    insert: Callable[[str | None], tuple[SearchHandle, int]], name: str | None
) -> tuple[SearchHandle, int]:
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
        "scoring": None if scoring is None else shown(scoring),
        "refit_metric": candidates.refit_metric,
        "splitter": splitter_of(request.caller),
        "space_digest": space_digest(request.caller),
        "n_trials": len(candidates.params),
        "n_splits": request.n_splits,
        "random_state": None if random_state is None else shown(random_state),
        **{name: value for name, value in asdict(options).items() if name != "tags"},
        "estimator": estimator_text(request.estimator),
        "submitted_by": f"{_user()}@{socket.gethostname()}",
        "session": this_session(),
        **digests,
        **installed_versions(),
        **request.columns_of_proposals,
    }


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
        check_name_is_free(fleet.database, name)
        raise


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
