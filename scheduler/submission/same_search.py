"""Whether a search that is stored is the one that is asked for, and in what it differs first if it is not."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Row

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.submission.drawn import candidates_are_drawn, shown, splits_are_drawn
from gridfleet.scheduler.submission.fingerprint import NotSeenError, fingerprint
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.storage.errors import NameTakenError, PayloadError
from gridfleet.storage.plain import plain
from gridfleet.storage.versions import THIS_PYTHON
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation
from gridfleet.worker.trial.keras_objects import registered_for_a_trial
from gridfleet.worker.trial.sources import KIND as SOURCES

#: Characters up to which a value stands in the sentence about what differs.
SHORT = 60
#: Parts that differ from fold to fold of a cross-validation around a search.
DATA = ("X", "y", "splits", "fit_params", "score_params")
#: Releases that decide what a trial computes, and what a sentence calls them.
RELEASES = {"tensorflow_version": "TensorFlow", "keras_version": "Keras", "scikit_learn_version": "scikit-learn"}


@dataclass(frozen=True)
class Asked:
    """A search as it would be stored now."""

    request: SearchRequest
    columns: Mapping[str, Any]
    evaluation: Evaluation
    candidates: Candidates
    archive: bytes | None


@dataclass(frozen=True)
class Same:
    """A stored search that is the one that is asked for.

    Parameters
    ----------
    splits_are_stored : bool
        Whether those of now were drawn anew, so that the stored ones are used.
    params : list of dict or None
        The stored combinations, if those of now were drawn anew.
    """

    splits_are_stored: bool = False
    params: list[dict[str, Any]] | None = None


class OtherDataError(NameTakenError):
    """A search of that name evaluates the same on other data, or on other rows of them."""

    def __init__(self, sentence: str, search_id: int) -> None:
        super().__init__(sentence)
        self.search_id = search_id


class _DifferenceError(Exception):
    """The first part in which two searches differ, with both values, if they are of use to a reader."""

    def __init__(self, part: str, *values: Any) -> None:
        super().__init__(part)
        self.part = part
        self.values = values

    def __str__(self) -> str:
        texts = [text for value in self.values if len(text := plain(_text(value))) <= SHORT]
        if len(set(texts)) < 2:  # too long, or shown alike
            return self.part
        return f"{self.part}: {texts[0]} there, {texts[1]} here"


def require_same(fleet: Fleet, stored: Row[Any], asked: Asked) -> Same:
    """Make sure that a stored search evaluates what is asked for.

    Parameters
    ----------
    fleet : Fleet
        Where it is stored.
    stored : Row
        Its row of ``searches``.
    asked : Asked
        What is asked for.

    Returns
    -------
    Same
        With what of it is used in the place of what was drawn anew.

    Raises
    ------
    NameTakenError, OtherDataError
        One sentence with the first part in which they differ, and both values where they are short.
    """
    try:
        return _Comparison(fleet, stored, asked).same()
    except _DifferenceError as difference:
        sentence = f"name={stored.name!r} is taken by search {stored.id}, which differs in {difference}; choose another"
        raise (OtherDataError(sentence, stored.id) if difference.part in DATA else NameTakenError(sentence)) from None
    except NotSeenError as error:
        raise NameTakenError(
            f"name={stored.name!r} is taken by search {stored.id}, and whether that is the same one can't be told, "
            f"for {error}; choose another"
        ) from error


class _Comparison:
    """One stored search and one that is asked for."""

    def __init__(self, fleet: Fleet, stored: Row[Any], asked: Asked) -> None:
        self._fleet = fleet
        self._stored = stored
        self._asked = asked
        self._search = asked.request.caller

    def same(self) -> Same:
        self._compare_column("strategy", "kind of search")
        for column, package in RELEASES.items():
            self._compare_column(column, f"release of {package}")
        if self._stored.needs_python not in (None, THIS_PYTHON):
            raise _DifferenceError("minor version of Python", self._stored.needs_python, THIS_PYTHON)
        self._compare_evaluations()
        self._compare_sources()
        for kind in ("X", "y"):
            self._compare_data(kind)
        if self._asked.request.rounds is not None:  # which depend on the rows, and decide the splits
            self._compare_column("sampler", "rounds")
        splits_are_stored = self._compare_splits()
        self._compare_proposals()
        params = self._compare_candidates()
        for column in ("fit_mode", "trial_timeout", "search_timeout"):
            self._compare_column(column, column)
        return Same(splits_are_stored, params)

    def _compare_column(self, column: str, part: str) -> None:
        there, here = getattr(self._stored, column), self._asked.columns[column]
        if there != here:
            raise _DifferenceError(part, *(_Shown(value) for value in (there, here)))

    def _is_equal(self, kind: str) -> bool:
        column = f"{kind.lower()}_digest"
        return bool(getattr(self._stored, column) == self._asked.columns[column])

    def _load(self, kind: str, part: str) -> Any:
        try:
            with registered_for_a_trial():
                return self._fleet.payloads.get(kind, getattr(self._stored, f"{kind.lower()}_digest"))
        except PayloadError:  # of modules that this process does not have, or not as they were
            raise _DifferenceError(part) from None

    def _compare_evaluations(self) -> None:
        if self._is_equal("evaluation"):
            return
        there, here = self._load("evaluation", "estimator"), self._asked.evaluation
        _compare_estimators(there.estimator, here.estimator)
        scoring = [_Shown(text) for text in (self._stored.scoring, self._asked.columns["scoring"])]
        _compare("scoring", there.arguments.get("scorer"), here.arguments.get("scorer"), values=scoring)
        for name in sorted((there.arguments.keys() | here.arguments.keys()) - {"scorer", "verbose"}):
            _compare(name, there.arguments.get(name), here.arguments.get(name))
        _compare("scikit-learn's configuration", dict(there.config), dict(here.config))
        _compare("Keras' configuration", dict(there.keras_config), dict(here.keras_config))
        _compare("what is registered with Keras", _registered(there), _registered(here))

    def _compare_sources(self) -> None:
        if self._stored.sources_digest == self._asked.columns["sources_digest"]:
            return
        part = "the script's own modules"
        there = None if self._stored.sources_digest is None else self._load(SOURCES, part)[0]
        if there != self._asked.archive:
            files = sorted(_files(there) ^ _files(self._asked.archive))
            raise _DifferenceError(f"{part} ({files[0][0]})" if files else part)

    def _compare_data(self, kind: str) -> None:
        if not self._is_equal(kind):
            request = self._asked.request
            here = request.sent(request.X if kind == "X" else request.y)
            there = self._load(kind, kind)
            _compare(kind, there, here, values=(_size(there), _size(here)))

    def _compare_splits(self) -> bool:
        if self._is_equal("splits"):
            return False
        there, here = self._load("splits", "splits"), list(self._asked.request.splits)
        if fingerprint(there, "splits") == fingerprint(here, "splits"):
            return False
        splitters = (self._stored.splitter, self._asked.columns["splitter"])
        if len(set(splitters)) == 1 and splits_are_drawn(self._search) and _sizes(there) == _sizes(here):
            return True
        if len(set(splitters)) > 1:
            raise _DifferenceError("cv", *map(_Shown, splitters))
        raise _DifferenceError("splits")

    def _compare_proposals(self) -> None:
        if self._asked.columns.get("space") is None:
            return
        if not self._is_equal("candidates"):
            spaces = (found.space for found in (self._load("candidates", "combinations"), self._asked.candidates))
            there, here = ((one.space.to_json(), list(one.objects)) for one in spaces if one is not None)
            _compare("param_distributions", there, here, values=(_Shown("…"), _Shown("…")))
        for column in ("sampler", "n_trials", "lookahead", "pruner", "monitor"):
            self._compare_column(column, column)
        # without a seed one was drawn for it, and another one now
        if self._stored.asks_in_order or self._asked.columns["asks_in_order"]:
            self._compare_column("asks_in_order", "whether random_state is given")
            self._compare_column("seed", "random_state")

    def _compare_candidates(self) -> list[dict[str, Any]] | None:
        if self._is_equal("candidates"):
            return None
        there, here = self._load("candidates", "combinations"), self._asked.candidates
        drawn: list[dict[str, Any]] | None = None
        different = _first_different(there.params, here.params)
        if len(there.params) != len(here.params):
            raise _DifferenceError("number of combinations", len(there.params), len(here.params))
        if different is not None:
            digests = {self._stored.space_digest, self._asked.columns["space_digest"]}
            if not candidates_are_drawn(self._search) or len(digests) > 1 or None in digests:
                values = there.params[different], here.params[different]
                raise _DifferenceError(f"combination {different}", *values)
            drawn = there.params
        for name in ("refit", "refit_metric", "return_train_score", "error_score", "metrics"):
            _compare(name, getattr(there, name), getattr(here, name))
        return drawn


def _compare(part: str, there: Any, here: Any, *, values: Sequence[Any] | None = None) -> None:
    if fingerprint(there, part) != fingerprint(here, part):
        raise _DifferenceError(part, *(values or (there, here)))


def _compare_estimators(there: Any, here: Any) -> None:
    if fingerprint(there, "estimator") == fingerprint(here, "estimator"):
        return
    kinds = type(there).__name__, type(here).__name__
    if kinds[0] != kinds[1]:
        raise _DifferenceError("estimator", *map(_Shown, kinds))
    params, others = there.get_params(deep=True), here.get_params(deep=True)
    # the inner ones first, which say it shortest
    for name in sorted(params.keys() | others.keys(), key=lambda name: (-name.count("__"), name)):
        if name not in params or name not in others:
            raise _DifferenceError(f"estimator's {name}")
        _compare(f"estimator's {name}", params[name], others[name])
    raise _DifferenceError(f"code of {kinds[0]}")


def _first_different(some: Sequence[Any], others: Sequence[Any]) -> int | None:
    pairs = enumerate(zip(some, others, strict=False))
    return next((number for number, (one, other) in pairs if _params_of(one) != _params_of(other)), None)


def _params_of(params: Mapping[str, Any]) -> str:
    return fingerprint(dict(params), "combinations")


def _registered(evaluation: Evaluation) -> dict[str, Any]:
    objects = evaluation.keras_objects.objects if evaluation.keras_objects else {}
    return {name: objects[name] for name in sorted(objects)}


def _files(archive: bytes | None) -> set[tuple[str, int]]:
    if archive is None:
        return set()
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        return {(file.filename, file.CRC) for file in files.infolist()}


def _sizes(splits: Sequence[tuple[Any, Any]]) -> list[tuple[int, int]]:
    return [(len(train), len(test)) for train, test in splits]


class _Shown(str):
    """A text that stands in a sentence as it is."""

    __slots__ = ()


def _size(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return _Shown(f"shape {shape}")
    return _Shown(f"{len(value)} rows") if hasattr(value, "__len__") else value


def _text(value: Any) -> str:
    if isinstance(value, _Shown):
        return str(value)
    if isinstance(value, np.ndarray):
        return str(_size(value))
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else shown(value)
