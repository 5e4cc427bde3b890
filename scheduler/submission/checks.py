"""What a search must be like before anything of it is stored; one sentence for what is wrong."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

from gridfleet.scheduler.submission.keras_models import check_keras_models
from gridfleet.scheduler.submission.suggestion import did_you_mean
from gridfleet.storage.errors import InvalidSearchError, first_line
from gridfleet.storage.payloads.culprit import check_can_be_copied
from gridfleet.storage.schema import Base

#: What a search may be called: its name is also a view's.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,62}")
#: Characters of a hyperparameter's name.
MAX_PARAM_NAME = 1_000
#: Names that searches without one get.
AUTOMATIC_NAME = re.compile(r"search-\d+", re.IGNORECASE)
#: Names that are tables and views already.
RESERVED_NAMES = {*Base.metadata.tables, "leaderboard", "best_trials", "search_progress", "alembic_version"}


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
            f"name={name!r} can't be a search's name; begin with a letter and use at most 63 letters, digits, "
            "'_', '-', '.' and spaces"
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
        _check_model_arguments(changed)


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


def _check_model_arguments(estimator: Any) -> None:
    """Refuse ``model__x`` where scikeras, which takes all names, would find out in the first fit."""
    parts = {"": estimator, **estimator.get_params(deep=True)}
    for place, wrapper in parts.items():
        build = _build_function(wrapper)
        if build is None:
            continue
        for name in wrapper.get_params(deep=False):
            if (unknown := unknown_argument(name, build)) is not None:
                key = f"{place}__{name}" if place else name
                raise InvalidSearchError(f"{key!r}: {build.__name__} {unknown}")


def _build_function(estimator: Any) -> Any:
    """Return the function that builds the model of a scikeras wrapper; None for all else, such as a model."""
    is_wrapper = any(kind.__module__.startswith("scikeras.") for kind in type(estimator).__mro__)
    build = getattr(estimator, "model", None) if is_wrapper else None
    return build if inspect.isfunction(build) else None


def warn_unused_params(estimator: Any, candidates: Sequence[dict[str, Any]]) -> None:
    """Warn of hyperparameters that scikeras keeps though the function that builds the model has them too.

    ``KerasClassifier(model=create_model)`` passes on only ``model__optimizer`` to ``create_model(optimizer=…)``;
    a search over ``optimizer`` would train the same model again and again.
    """
    build = _build_function(estimator)
    if build is None:
        return
    kept = set(inspect.signature(type(estimator).__init__).parameters) & set(inspect.signature(build).parameters)
    for name in sorted(kept.intersection(set().union(*candidates))):
        warnings.warn(
            f"{name!r} does not reach {build.__name__}({name}=…), as {_name(estimator)} keeps it for itself: unless "
            f"{build.__name__} leaves compiling to it, all its values train the same model; search over "
            f"'model__{name}' instead",
            UserWarning,
            stacklevel=2,
        )


def check_finite(estimator: Any, X: Any, y: Any, candidates: Sequence[dict[str, Any]]) -> None:
    """Make sure that X and y have no NaN where the estimator says that it takes none.

    Raises
    ------
    InvalidSearchError
        With the number of NaN values and what to do.
    """
    for argument, values, takes, remedy in (
        ("X", X, _takes_nan, "drop these rows, or put a SimpleImputer before it in a Pipeline"),
        ("y", y, _takes_nan_target, "drop these rows of X and y"),
    ):
        if takes(estimator):  # asked first: the data may be large
            continue
        missing = _count_nan(values)
        if missing and not _any_takes(takes, estimator, candidates):
            raise InvalidSearchError(
                f"{argument} has {missing} NaN values, which {_name(estimator)} does not take; {remedy}"
            )


def _count_nan(values: Any) -> int:
    """Count NaN, None and NA in what scikit-learn would make numbers of; 0 for all else."""
    if scipy.sparse.issparse(values):
        values = values.data
    if hasattr(values, "isna"):  # pandas, whose nullable types are no floats
        return int(np.asarray(values.isna()).sum())
    floats = _as_floats(values)
    # the minimum of an array with NaN is NaN, found without an array of its size
    if floats is None or not floats.size or not np.isnan(floats.min()):
        return 0
    return int(np.isnan(floats).sum())


def _as_floats(values: Any) -> np.ndarray[Any, Any] | None:
    if values is None or (isinstance(values, np.ndarray) and values.dtype.kind not in "fO"):
        return None
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return values
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # texts, rows of different length
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
    known = list(estimator.get_params(deep=True))
    unknown = sorted(name for name in names if name not in known)
    if not unknown:
        return f"{_name(estimator)} refuses hyperparameters {sorted(names)}: {first_line(error)}"
    return f"{unknown[0]!r} is not a parameter of {_name(estimator)}; {did_you_mean(unknown[0], sorted(known))}"


def _name(estimator: Any) -> str:
    return type(estimator).__name__


def check_can_be_submitted(search: Any) -> None:
    """Make sure that all combinations of a search are known from the beginning.

    Raises
    ------
    InvalidSearchError
        For searches that choose candidates by earlier results, such as halving ones, and for what is no search.
    """
    if not isinstance(search, (GridSearchCV, RandomizedSearchCV)):
        raise InvalidSearchError(
            f"search is a {_name(search)}, whose combinations are not all known when it is submitted; submit takes "
            "GridSearchCV and RandomizedSearchCV, others run by `fit` inside "
            'joblib.parallel_config(backend="gridfleet")'
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
