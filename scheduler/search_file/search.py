"""From a search file to a search: its estimator, its hyperparameters' names, its data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sklearn.base import is_regressor

from gridfleet.scheduler.halving_search_cv import HalvingGridSearchCV, HalvingRandomSearchCV
from gridfleet.scheduler.optuna_search_cv import OptunaSearchCV
from gridfleet.scheduler.search_cv import GridSearchCV, RandomizedSearchCV
from gridfleet.scheduler.search_file.data import DataFile, read_data
from gridfleet.scheduler.search_file.description import HALVING_KEYS, OF_PROPOSALS, SearchFile
from gridfleet.scheduler.search_file.model import import_model
from gridfleet.scheduler.submission.checks import PASSED_BY_WRAPPER, known_names, unknown_argument
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.suggestion import did_you_mean

#: What scikeras' wrappers do with a parameter ``<prefix>__<name>``.
WRAPPER_PREFIXES = ("model", "fit", "compile", "predict", "optimizer", "loss", "metrics", "callbacks")


AnySearch = GridSearchCV | RandomizedSearchCV | OptunaSearchCV | HalvingGridSearchCV | HalvingRandomSearchCV


@dataclass(frozen=True)
class FileSearch:
    """What a search file describes, ready for `submit`."""

    search: AnySearch
    X: Any
    y: Any
    params: dict[str, Any] = field(default_factory=dict)


def load_search(described: SearchFile, path: Path) -> FileSearch:
    """Read the data and the model that a search file names, and make its search.

    Parameters
    ----------
    described : SearchFile
        What the file says.
    path : Path
        The file. What it names is relative to it.

    Returns
    -------
    FileSearch

    Raises
    ------
    InvalidSearchError
        One sentence with the file and the key; nothing is stored then.
    """
    folder = path.resolve().parent
    try:
        X, y, params = _data(described.data, folder)
        model = import_model(described.model, folder)
        estimator = _estimator(described, model)
        _check_names(described, model, estimator)
        if not described.data.references:  # what is read by reference, scikit-learn's own checks see
            _check_target(estimator, y)
    except InvalidSearchError as error:
        raise InvalidSearchError(f"{path}: {error}") from error
    return FileSearch(search=_search(described, estimator), X=X, y=y, params=params)


def _data(data: DataFile, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return X, y, and what else `submit` takes, each by reference or read."""
    if not data.references:
        return *read_data(data, folder), {}
    referred = {}
    for name, reference in data.references.items():
        try:
            referred[name] = reference.data_ref(folder)
        except InvalidSearchError as error:
            raise InvalidSearchError(f"`data.{name}`: {error}") from error
    return referred.pop("X"), referred.pop("y"), referred


def _estimator(described: SearchFile, model: Any) -> Any:
    if described.wrapper is None:
        return _plain_estimator(described, model)
    if isinstance(model, type):
        raise InvalidSearchError(f"`wrapper` is for functions that return a Keras model; {described.model} is a class")
    try:
        from scikeras import wrappers
    except ImportError as error:
        raise InvalidSearchError(
            f"`wrapper` needs Keras with TensorFlow ({error}); run `pip install 'gridfleet[cpu]'`"
        ) from error
    kind = {"classifier": wrappers.KerasClassifier, "regressor": wrappers.KerasRegressor}[described.wrapper]
    settings = {"verbose": 0, **described.fit}
    if described.random_state is not None:
        settings["random_state"] = described.random_state
    return kind(model=model, **settings)


def _plain_estimator(described: SearchFile, model: Any) -> Any:
    if not (isinstance(model, type) and hasattr(model, "fit") and hasattr(model, "get_params")):
        raise InvalidSearchError(
            f"`wrapper` is missing: {described.model} is no estimator's class; write `wrapper: classifier` or "
            "`wrapper: regressor` for a function that returns a Keras model"
        )
    settings = dict(described.fit)
    known = list(inspect.signature(model).parameters)
    for setting in settings:
        if setting not in known:
            raise InvalidSearchError(
                f"`fit.{setting}` is not a parameter of {model.__name__}; {did_you_mean(setting, known)}"
            )
    if described.random_state is not None and "random_state" in known:
        settings["random_state"] = described.random_state
    elif described.random_state is not None and described.strategy == "grid":
        raise InvalidSearchError(f"`random_state` is not a parameter of {model.__name__}; leave it out")
    try:
        return model(**settings)
    except (TypeError, ValueError) as error:
        raise InvalidSearchError(f"`fit` does not make a {model.__name__}: {error}") from error


def _check_names(described: SearchFile, model: Any, estimator: Any) -> None:
    """Refuse hyperparameters that the estimator does not know or would not pass on."""
    names = {f"space.{name}": name for space in described.space for name in space}
    if described.wrapper is None:
        known = known_names(estimator)
        for key, name in names.items():
            if name not in known:
                raise InvalidSearchError(
                    f"`{key}` is not a parameter of {type(estimator).__name__}; {did_you_mean(name, known)}"
                )
        return
    for key, name in {**{f"fit.{name}": name for name in described.fit}, **names}.items():
        _check_wrapped_name(key, name, described, model)


def _check_wrapped_name(key: str, name: str, described: SearchFile, model: Callable[..., Any]) -> None:
    if (unknown := unknown_argument(name, model)) is not None:
        raise InvalidSearchError(f"`{key}`: {described.model} {unknown}")
    arguments = inspect.signature(model).parameters
    takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    own = _wrapper_parameters()
    prefix, separated, _ = name.partition("__")
    known = name in own or (bool(separated) and prefix in WRAPPER_PREFIXES)
    if not known and name in described.fit and (name in arguments or takes_all):
        return  # scikeras passes the constructor's further arguments to the model function
    if not known:
        candidates = [*own, *(f"model__{argument}" for argument in arguments if argument not in PASSED_BY_WRAPPER)]
        raise InvalidSearchError(
            f"`{key}` is no parameter of the {described.wrapper} wrapper; {did_you_mean(name, candidates)}"
            + (f" (an argument of {described.model} is written model__{name})" if name in arguments else "")
        )
    if name in own and name in arguments and not takes_all and not set(PASSED_BY_WRAPPER) & set(arguments):
        raise InvalidSearchError(
            f"`{key}` would have no effect: scikeras keeps {name!r} to itself and calls {described.model} without it; "
            f"write model__{name}"
        )


def _wrapper_parameters() -> list[str]:
    from scikeras.wrappers import BaseWrapper, KerasClassifier

    # random_state and class_weight are in one of the two signatures only
    return [
        name
        for kind in (BaseWrapper, KerasClassifier)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    ]


def _check_target(estimator: Any, y: Any) -> None:
    if is_regressor(estimator) and y.dtype.kind not in "fiub":
        raise InvalidSearchError(f"`data.target`: {type(estimator).__name__} needs numbers, y has {str(y.flat[0])!r}")


def _search(described: SearchFile, estimator: Any) -> AnySearch:
    several = isinstance(described.scoring, list)
    refit = described.refit if described.refit is not None else described.scoring[0] if several else True  # type: ignore[index]
    spaces = described.space if len(described.space) > 1 else described.space[0]
    common = {
        "scoring": described.scoring,
        "refit": refit,
        "cv": described.cv,
        "verbose": 0,
        "fit_mode": described.fit_mode,
        "trial_timeout": described.trial_timeout,
        "search_timeout": described.search_timeout,
        "load_if_exists": described.load_if_exists,
        "reuse": described.reuse,
        "priority": described.priority,
        "keep_curves": described.keep_curves,
        "tags": described.tags,
    }
    if described.strategy == "grid":
        return GridSearchCV(estimator, spaces, **common)
    if described.strategy == "optuna":
        del common["reuse"]
        given = {name: getattr(described, name) for name in OF_PROPOSALS}
        common |= {name: value for name, value in given.items() if value is not None}
        return OptunaSearchCV(estimator, spaces, random_state=described.random_state, **common)
    if described.strategy.startswith("halving"):
        del common["reuse"]
        given = {key: getattr(described, key) for key in HALVING_KEYS}
        common |= {name: value for name, value in given.items() if value is not None}
        kind = HalvingGridSearchCV if described.strategy == "halving-grid" else HalvingRandomSearchCV
        return kind(estimator, spaces, random_state=described.random_state, return_train_score=False, **common)
    return RandomizedSearchCV(
        estimator, spaces, n_iter=described.n_iter or 10, random_state=described.random_state, **common
    )
