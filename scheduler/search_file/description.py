"""The YAML file of a search: validated, then made into an estimator, data and a search."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gridfleet.scheduler.search_file.data import DataFile, read_data
from gridfleet.scheduler.search_file.document import Document, Place, read_document
from gridfleet.scheduler.search_file.model import import_model
from gridfleet.scheduler.search_file.space import is_distribution, parse_values
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.fit_mode import FitMode

if TYPE_CHECKING:
    from gridfleet.scheduler.search_cv import GridSearchCV, RandomizedSearchCV

#: Splitters that need nothing but X and y.
SPLITTERS = (
    "KFold",
    "LeaveOneOut",
    "LeavePOut",
    "RepeatedKFold",
    "RepeatedStratifiedKFold",
    "ShuffleSplit",
    "StratifiedKFold",
    "StratifiedShuffleSplit",
    "TimeSeriesSplit",
)
#: What scikeras' wrappers do with a parameter ``<prefix>__<name>``.
WRAPPER_PREFIXES = ("model", "fit", "compile", "predict", "optimizer", "loss", "metrics", "callbacks")
#: Arguments that scikeras itself passes to a model function.
PASSED_BY_WRAPPER = ("meta", "compile_kwargs", "params")


@dataclass(frozen=True)
class FileSearch:
    """What a search file describes, ready for `submit`."""

    name: str
    search: GridSearchCV | RandomizedSearchCV
    X: Any
    y: Any


def _splitter(raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 2:
            raise ValueError(f"is {raw}; it needs at least 2 splits")
        return raw
    if not isinstance(raw, Mapping) or "splitter" not in raw:
        raise ValueError(f"is {raw!r}; write a number of splits, or {{splitter: StratifiedKFold, n_splits: 5}}")
    settings = dict(raw)
    name = settings.pop("splitter")
    if name not in SPLITTERS:
        raise ValueError(f"names the splitter {name!r}; {nearest(str(name), SPLITTERS)}")
    from sklearn import model_selection

    kind = getattr(model_selection, name)
    known = [parameter for parameter in inspect.signature(kind).parameters if not parameter.startswith("_")]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"has {setting!r}, which is not a setting of {name}; {nearest(setting, known)}")
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"is refused by {name}: {error}") from error


def _scorer_name(raw: Any) -> Any:
    from sklearn.metrics import get_scorer_names

    for name in raw if isinstance(raw, list) else [raw]:
        if name is not None and name not in get_scorer_names():
            raise ValueError(
                f"is {name!r}, which is no scorer of scikit-learn; {nearest(str(name), get_scorer_names())}"
            )
    if isinstance(raw, list) and not raw:
        raise ValueError("is an empty list; leave it out for the estimator's own score")
    return raw


class SearchFile(BaseModel):
    """The keys of a search file."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: StrictStr | None = Field(None, description="Name of the search and of its view; default: the file's name.")
    model: StrictStr = Field(
        description="models.py:function or package.module:function that returns a Keras model, or a scikit-learn "
        "estimator's class, as in sklearn.svm:SVC."
    )
    wrapper: Literal["classifier", "regressor"] | None = Field(None, description="scikeras' wrapper of the function.")
    fit: dict[str, Any] = Field(default_factory=dict, description="Settings of the wrapper or of the estimator.")
    random_state: StrictInt | None = Field(None, description="Of the estimator, and of the draws of a random search.")
    data: DataFile = Field(description="The data file and its target, as in {file: data.csv, target: column}.")
    strategy: Literal["grid", "random"] = "grid"
    n_iter: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Draws of a random search; default 10.")
    space: Annotated[
        list[dict[str, Annotated[Any, AfterValidator(parse_values)]]],
        BeforeValidator(lambda raw: [raw] if isinstance(raw, Mapping) else raw),
        Field(min_length=1, description="Hyperparameters and their values; a list of such for several grids."),
    ]
    cv: Annotated[Any, AfterValidator(_splitter)] = Field(5, description="Number of splits, or a splitter.")
    scoring: Annotated[StrictStr | list[StrictStr] | None, BeforeValidator(_scorer_name)] = Field(
        None, description="One or several of scikit-learn's scorers; default: the estimator's own score."
    )
    refit: StrictBool | StrictStr | None = Field(None, description="Which of several scorers chooses the best.")
    fit_mode: FitMode | None = Field(None, description="How Keras models are trained; default: the settings'.")
    trial_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Seconds that one attempt at a trial may take; default: the settings'."
    )
    search_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Seconds after its first trial started at which the search is stopped."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for index, space in enumerate(self.space):
            if not space:
                raise _problem(("space", index), "is empty; give at least one hyperparameter and its values")
            for name, values in space.items():
                if self.strategy == "grid" and is_distribution(values):
                    raise _problem(
                        ("space", index, name), "is a distribution; a grid needs lists, or `strategy: random`"
                    )
        if self.strategy == "grid" and self.n_iter is not None:
            raise _problem(("n_iter",), "is for `strategy: random`; a grid tries every combination")
        scorers = [self.scoring] if isinstance(self.scoring, str) else self.scoring or []
        if isinstance(self.refit, str) and self.refit not in scorers:
            raise _problem(("refit",), f"is {self.refit!r}, which `scoring` does not list")
        return self


def load_search(path: Path, *, name: str | None = None) -> FileSearch:
    """Read a search file, its data and its model.

    Parameters
    ----------
    path : Path
        The YAML file. What it names is relative to it.
    name : str, default=None
        Instead of the file's own name.

    Returns
    -------
    FileSearch

    Raises
    ------
    InvalidSearchError
        One sentence with the file, the line and the key; nothing is stored then.
    """
    document = read_document(path)
    described = parse(document)
    folder = path.resolve().parent
    try:
        X, y = read_data(described.data, folder)
        model = import_model(described.model, folder)
        estimator = _estimator(described, model)
        _check_names(described, model, estimator)
        _check_target(estimator, y)
    except InvalidSearchError as error:
        raise InvalidSearchError(f"{path}: {error}") from error
    return FileSearch(name=name or name_of(path, described), search=_search(described, estimator), X=X, y=y)


def parse(document: Document) -> SearchFile:
    """Validate the content of a search file.

    Parameters
    ----------
    document : Document
        The file.

    Returns
    -------
    SearchFile

    Raises
    ------
    InvalidSearchError
        Naming the file, the line and the key of the first mistake.
    """
    if not isinstance(document.content, dict):
        raise document.refuse((), "has no keys; a search file has at least `model`, `data` and `space`")
    try:
        return SearchFile.model_validate(document.content)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # a mistyped key is also a missing one, but only the mistyped one has a line
        first = next((mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"), mistakes[0])
        place = _place(first["ctx"]["place"] if "place" in first.get("ctx", {}) else first["loc"], document.content)
        raise document.refuse(place, _sentence(first, place)) from error


def name_of(path: Path, described: SearchFile) -> str:
    """Return the name of a search: the one in the file, or the file's own."""
    return described.name or path.stem


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest a known name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names[:20])}"


def _problem(place: Place, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("gridfleet", sentence.replace("{", "{{").replace("}", "}}"), {"place": place})


def _place(loc: Sequence[str | int], content: Any) -> Place:
    """Leave out of pydantic's location what is not in the file, such as the branches of a union."""
    place: list[str | int] = []
    for number, part in enumerate(loc):
        is_there = (isinstance(content, dict) and part in content) or (
            isinstance(content, list) and isinstance(part, int) and part < len(content)
        )
        if is_there:
            content = content[part]
            place.append(part)
        elif number == len(loc) - 1 and isinstance(content, dict) and isinstance(part, str):
            place.append(part)  # a key that is missing
    return tuple(place)


def _sentence(error: Any, place: Place) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        fields = DataFile.model_fields if place[:1] == ("data",) and len(place) > 1 else SearchFile.model_fields
        return f"is no key of a search file; {nearest(str(place[-1]), fields)}"
    if kind == "missing":
        fields = DataFile.model_fields if place[:1] == ("data",) and len(place) > 1 else SearchFile.model_fields
        return f"is missing; it is: {fields[str(place[-1])].description}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "gridfleet":
        return str(error["msg"])
    return f"is {error['input']!r}; {error['msg'][:1].lower()}{error['msg'][1:]}"


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
                f"`fit.{setting}` is not a parameter of {model.__name__}; {nearest(setting, known)}"
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
        known = list(estimator.get_params(deep=True))
        for key, name in names.items():
            if name not in known:
                raise InvalidSearchError(
                    f"`{key}` is not a parameter of {type(estimator).__name__}; {nearest(name, known)}"
                )
        return
    for key, name in {**{f"fit.{name}": name for name in described.fit}, **names}.items():
        _check_wrapped_name(key, name, described, model)


def _check_wrapped_name(key: str, name: str, described: SearchFile, model: Callable[..., Any]) -> None:
    from gridfleet.scheduler.submission.checks import unknown_argument

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
        candidates = [*own, *(f"model__{argument}" for argument in arguments)]
        raise InvalidSearchError(
            f"`{key}` is no parameter of the {described.wrapper} wrapper; {nearest(name, candidates)}"
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
    from sklearn.base import is_regressor

    if is_regressor(estimator) and y.dtype.kind not in "fiub":
        raise InvalidSearchError(f"`data.target`: {type(estimator).__name__} needs numbers, y has {str(y.flat[0])!r}")


def _search(described: SearchFile, estimator: Any) -> GridSearchCV | RandomizedSearchCV:
    from gridfleet.scheduler.search_cv import GridSearchCV, RandomizedSearchCV

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
    }
    if described.strategy == "grid":
        return GridSearchCV(estimator, spaces, **common)
    return RandomizedSearchCV(
        estimator, spaces, n_iter=described.n_iter or 10, random_state=described.random_state, **common
    )
