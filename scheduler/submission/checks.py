"""What a search must be like before anything of it is stored; one sentence for what is wrong."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

from gridfleet.scheduler.proposals.pruners import check_pruned
from gridfleet.scheduler.submission.keras_models import check_keras_models
from gridfleet.scheduler.submission.request import SearchRequest, halves, proposes
from gridfleet.scheduler.submission.users_line import users_stacklevel
from gridfleet.storage.errors import InvalidSearchError, first_line
from gridfleet.storage.payloads.culprit import check_can_be_copied
from gridfleet.storage.schema import VIEWS, Base
from gridfleet.storage.suggestion import did_you_mean

#: What a search may be called: its name is also a view's.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,62}")
#: Characters of a hyperparameter's name.
MAX_PARAM_NAME = 1_000
#: Names that searches without one get.
AUTOMATIC_NAME = re.compile(r"search-\d+", re.IGNORECASE)
#: Names that are tables and views already.
RESERVED_NAMES = {*Base.metadata.tables, *VIEWS, "alembic_version"}
#: Arguments that scikeras itself passes to a model function.
PASSED_BY_WRAPPER = ("meta", "compile_kwargs", "params")
#: Kinds of arguments without a name of their own.
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: What is never read as a number: "nan" is a class like any other.
TEXT = (str, bytes)


def check_name(name: object) -> None:
    """Make sure that a search can have this name.

    Raises
    ------
    InvalidSearchError
        If it is no name for a view, or one of gridfleet's own.
    """
    if name is None:
        return
    if not isinstance(name, str) or not NAME.fullmatch(name) or name != name.strip():
        raise InvalidSearchError(
            f"name={name!r} can't be a search's name, for a view in SQL is called so; begin with a letter of A-Z or "
            "a-z, and use at most 63 of these, digits, '_', '-', '.' and spaces; other letters can stand in tags"
        )
    lower = name.lower()
    if lower in RESERVED_NAMES or lower.startswith(("sqlite_", "pg_")) or AUTOMATIC_NAME.fullmatch(name):
        raise InvalidSearchError(f"name={name!r} is a name of gridfleet's own; choose another")


def check_can_travel(estimator: Any) -> None:
    """Make sure that an estimator can be cloned, which scikit-learn does before anything of it is pickled.

    Raises
    ------
    NotPicklableError
        Naming the attribute that can't be copied.
    """
    try:
        clone(estimator)
    except Exception:  # noqa: BLE001 - what has another reason, scikit-learn's own fit says
        check_keras_models(estimator, [])
        check_can_be_copied(estimator, what=f"the estimator {_name(estimator)}")


def check_params(estimator: Any, candidates: Sequence[dict[str, Any]]) -> None:
    """Make sure that the estimator knows every hyperparameter, and that SQL can show its name.

    Each set of names is tried once, on a clone, with the first combination that has it.

    Raises
    ------
    InvalidSearchError
        Naming the hyperparameter, the estimator and the nearest name that it knows.
    """
    for _, changed in _changed(estimator, candidates):
        _check_model_arguments(changed)


def _changed(estimator: Any, candidates: Sequence[dict[str, Any]]) -> Iterator[tuple[frozenset[str], Any]]:
    """Yield each set of names that combinations have, and a clone of the estimator with the first one of them."""
    seen: set[frozenset[str]] = set()
    for params in candidates:
        names = frozenset(params)
        if names in seen:
            continue
        seen.add(names)
        _check_param_names(names)
        try:
            changed = clone(estimator).set_params(**clone(params, safe=False))
        except (ValueError, TypeError, AttributeError) as error:
            check_can_be_copied(params, what="a hyperparameter's value")
            raise InvalidSearchError(_unknown_param(estimator, names, error)) from error
        yield names, changed


def _check_param_names(names: Iterable[str]) -> None:
    for name in names:
        # PostgreSQL's JSON takes no NUL and no half character, and people no text that is turned round
        if not name or len(name) > MAX_PARAM_NAME or not name.isprintable():
            shown = ascii(name if len(name) <= 80 else name[:80] + "…")
            raise InvalidSearchError(
                f"{shown} can't be a hyperparameter's name; use 1 to {MAX_PARAM_NAME} characters that can be printed"
            )


def unknown_argument(name: str, build: Callable[..., Any]) -> str | None:
    """Say what a hyperparameter ``model__x`` of scikeras' wrappers names that the function for the model has not.

    Parameters
    ----------
    name : str
        The hyperparameter.
    build : callable
        The function that scikeras calls with it.

    Returns
    -------
    str or None
        The end of a sentence about the function; None if it takes the argument, or if the name is no ``model__x``.
    """
    prefix, _, argument = name.partition("__")
    arguments = inspect.signature(build).parameters
    takes_all = any(known.kind is known.VAR_KEYWORD for known in arguments.values())
    if prefix != "model" or not argument or argument in arguments or takes_all:
        return None
    return f"has no argument {argument!r}; {did_you_mean(argument, sorted(arguments))}"


def known_names(estimator: Any) -> list[str]:
    """Return the names of all hyperparameters of an estimator, with the arguments of the functions for Keras models.

    Parameters
    ----------
    estimator : estimator object
        At any depth of whose pipelines and meta-estimators scikeras' wrappers may be.

    Returns
    -------
    list of str
        Sorted; arguments as ``model__x``, below the names of what the wrapper is in.
    """
    names = set(estimator.get_params(deep=True))
    for place, _, build in _wrappers(estimator):
        arguments = inspect.signature(build).parameters.values()
        named = [argument.name for argument in arguments if argument.kind not in VARIADIC]
        names.update(_below(place, f"model__{name}") for name in named if name not in PASSED_BY_WRAPPER)
    return sorted(names)


def _check_model_arguments(estimator: Any) -> None:
    """Refuse ``model__x`` where scikeras, which takes all names, would find out in the first fit."""
    for place, wrapper, build in _wrappers(estimator):
        for name in wrapper.get_params(deep=False):
            if (unknown := unknown_argument(name, build)) is not None:
                raise InvalidSearchError(f"{_below(place, name)!r}: {_name_of_function(build)} {unknown}")


def _wrappers(estimator: Any) -> list[tuple[str, Any, Callable[..., Any]]]:
    """List scikeras' wrappers in an estimator: the name of the place, the wrapper, the function for its model."""
    parts = {"": estimator, **estimator.get_params(deep=True)}
    built = [(place, part, _build_function(part)) for place, part in parts.items()]
    return [(place, part, build) for place, part, build in built if build is not None]


def _below(place: str, name: str) -> str:
    return f"{place}__{name}" if place else name


def _build_function(estimator: Any) -> Callable[..., Any] | None:
    """Return the function that builds the model of a scikeras wrapper; None for all else, such as a model."""
    if not any(kind.__module__.startswith("scikeras.") for kind in type(estimator).__mro__):
        return None
    build = getattr(estimator, "model", None)
    if build is None:
        build = getattr(estimator, "build_fn", None)
    # no other callable is taken by scikeras
    return build if inspect.isfunction(build) or isinstance(build, functools.partial) else None


def _name_of_function(build: Callable[..., Any]) -> str:
    while isinstance(build, functools.partial):
        build = build.func
    return getattr(build, "__name__", type(build).__name__)


def warn_unused_params(estimator: Any, candidates: Sequence[dict[str, Any]]) -> None:
    """Warn of hyperparameters that scikeras keeps though the function that builds the model has them too.

    ``KerasClassifier(model=create_model)`` passes on only ``model__optimizer`` to ``create_model(optimizer=…)``;
    a search over ``optimizer`` would train the same model again and again.
    """
    warned: set[str] = set()
    for names, changed in _changed(estimator, candidates):
        for place, wrapper, build in _wrappers(changed):
            kept = set(inspect.signature(type(wrapper).__init__).parameters) & set(inspect.signature(build).parameters)
            for name in sorted(kept):
                key = _below(place, name)
                if key in warned or key not in names:
                    continue
                warned.add(key)
                function = _name_of_function(build)
                warnings.warn(
                    f"{key!r} does not reach {function}({name}=…), as {_name(wrapper)} keeps it for itself: unless "
                    f"{function} leaves compiling to it, all its values train the same model; search over "
                    f"{_below(place, f'model__{name}')!r} instead",
                    UserWarning,
                    stacklevel=users_stacklevel(),
                )


def check_pruning(request: SearchRequest) -> None:
    """Make sure that a search with a pruner has something that it can compare.

    Raises
    ------
    InvalidSearchError
        As `check_pruned`.
    """
    proposals = request.proposals
    if proposals is None or proposals.pruner is None:
        return
    names = [name for branch in proposals.given.space.branches for name in branch]
    check_pruned(
        proposals.pruner,
        proposals.monitor,
        estimator=request.estimator,
        names=names,
        n_splits=len(request.splits),
    )


def check_finite(request: SearchRequest) -> None:
    """Make sure that no row that is fitted or scored has NaN in X or y where the estimator says that it takes none.

    Rows that are in no split are looked at only if the best combination is fitted on all of them.

    Raises
    ------
    InvalidSearchError
        With the number of NaN values and what to do.
    """
    estimator = request.estimator
    for argument, values, takes, remedy in (
        ("X", request.X, _takes_nan, "drop these rows, or put a SimpleImputer before it in a Pipeline"),
        ("y", request.y, _takes_nan_target, "drop these rows of X and y"),
    ):
        # asked first: the data may be large; X by reference is for the workers to read
        if takes(estimator) or (argument == "X" and request.sent(values) is not values):
            continue
        missing = _count_nan(values, request)
        if missing and not _any_takes(takes, estimator, request.candidates):
            raise InvalidSearchError(
                f"{argument} has {missing} NaN values, which {_name(estimator)} does not take; {remedy}"
            )


def _count_nan(values: Any, request: SearchRequest) -> int:
    """Count NaN, None and NA in the used rows of what scikit-learn would make numbers of; 0 for all else."""
    by_row = _nan_by_row(values)
    if by_row is None:
        return 0
    if request.refit:
        return int(by_row.sum())
    used = np.zeros(len(by_row), dtype=bool)
    for split in request.splits:
        for rows in split:
            used[rows] = True
    return int(by_row[used].sum())


def _nan_by_row(values: Any) -> np.ndarray[Any, Any] | None:
    """Count missing values row by row; None if there are none."""
    if scipy.sparse.issparse(values):
        if values.ndim != 2 or not np.isnan(values.data).any():
            return None
        entries = values.tocoo()
        counts: np.ndarray[Any, Any] = np.bincount(entries.row[np.isnan(entries.data)], minlength=values.shape[0])
        return counts
    if hasattr(values, "isna"):  # pandas, whose nullable types are no floats
        missing = np.asarray(values.isna())
    else:
        floats = _as_floats(values)
        # the minimum of an array with NaN is NaN, found without an array of its size
        if floats is None or not floats.size or not np.isnan(floats.min()):
            return None
        missing = np.isnan(floats)
    by_row: np.ndarray[Any, Any] = missing.reshape(len(missing), -1).sum(axis=1)
    return by_row


def _as_floats(values: Any) -> np.ndarray[Any, Any] | None:
    """Return numbers as floats; None for all else, and for texts that read as numbers or as NaN."""
    if values is None:
        return None
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fO" or (array.dtype.kind == "O" and any(isinstance(v, TEXT) for v in array.flat)):
            return None
        return array if array.dtype.kind == "f" else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # objects, rows of different length
        return None


def _any_takes(takes: Callable[[Any], bool], estimator: Any, candidates: Sequence[dict[str, Any]]) -> bool:
    """Whether a combination makes the estimator one that takes NaN, by another step or another metric."""
    return any(takes(clone(estimator).set_params(**clone(params, safe=False))) for params in candidates)


def _takes_nan(estimator: Any) -> bool:
    """Whether the estimator may take NaN in X."""
    if getattr(estimator, "steps", None):
        return _takes_nan(estimator.steps[0][1])
    if not _fills_in_tags(estimator):
        return True
    tags = estimator.__sklearn_tags__()
    takes_no_numbers = tags.input_tags.string or tags.input_tags.dict
    return bool(tags.no_validation or tags.input_tags.allow_nan or takes_no_numbers) or _is_composite(estimator)


def _takes_nan_target(estimator: Any) -> bool:
    """Whether the estimator may take NaN in y, for which there is no tag: no classifier or regressor does."""
    if getattr(estimator, "steps", None):
        return _takes_nan_target(estimator.steps[-1][1])
    # scikeras' classes have the mixins, but not the tags that is_classifier and is_regressor read
    if not _fills_in_tags(estimator) or not isinstance(estimator, (ClassifierMixin, RegressorMixin)):
        return True
    return bool(estimator.__sklearn_tags__().no_validation) or _is_composite(estimator)


def _fills_in_tags(estimator: Any) -> bool:
    """Whether it is of a library that is believed when its tags say no."""
    return isinstance(estimator, BaseEstimator) and type(estimator).__module__.split(".")[0] in ("sklearn", "scikeras")


def _is_composite(estimator: Any) -> bool:
    # what such an estimator takes depends on the ones inside it
    return any(hasattr(value, "fit") for value in estimator.get_params(deep=False).values()) or any(
        hasattr(estimator, parts) for parts in ("transformers", "transformer_list", "estimators")
    )


def _unknown_param(estimator: Any, names: frozenset[str], error: Exception) -> str:
    own = set(estimator.get_params(deep=True))
    unknown = sorted(name for name in names if name not in own)
    if not unknown:
        return f"{_name(estimator)} refuses hyperparameters {sorted(names)}: {first_line(error)}"
    hint = did_you_mean(unknown[0], known_names(estimator))
    return f"{unknown[0]!r} is not a parameter of {_name(estimator)}; {hint}"


def _name(estimator: Any) -> str:
    return type(estimator).__name__


def check_can_be_submitted(search: Any) -> None:
    """Make sure that all combinations of a search are known from the beginning.

    Raises
    ------
    InvalidSearchError
        For searches that choose candidates by earlier results, such as halving ones, and for what is no search.
    """
    known = isinstance(search, (GridSearchCV, RandomizedSearchCV)) or proposes(search) or halves(search)
    if not known:
        raise InvalidSearchError(
            f"search is a {_name(search)}, whose combinations are not all known when it is submitted; submit takes "
            "GridSearchCV and RandomizedSearchCV, and OptunaSearchCV, HalvingGridSearchCV and HalvingRandomSearchCV "
            'of gridfleet; others run by `fit` inside joblib.parallel_config(backend="gridfleet")'
        )


def check_has_rows(X: Any) -> None:
    """Make sure that X is no dict of arrays, whose length scikit-learn takes for the number of samples.

    Raises
    ------
    InvalidSearchError
        With the keys and what to do.
    """
    if isinstance(X, Mapping):
        raise InvalidSearchError(
            f"X is a dict of {', '.join(map(repr, X))}, of which scikit-learn can't take rows; put the arrays side by "
            "side into one, and make the dict in the wrapper's feature_encoder (docs/scikit-learn.md shows how)"
        )
