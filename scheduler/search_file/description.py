"""The keys of a search file, and the sentence about the first that is wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gridfleet.scheduler.search_file.data import DataFile, Reference
from gridfleet.scheduler.search_file.document import Document, Place
from gridfleet.scheduler.search_file.space import is_distribution, parse_values
from gridfleet.scheduler.submission.sizes import MAX_SPLITS
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.searches import MAX_PRIORITY
from gridfleet.storage.suggestion import did_you_mean
from gridfleet.storage.tags import check_tags

if TYPE_CHECKING:
    pass

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
#: Splitters that need `data.groups` too.
GROUP_SPLITTERS = ("GroupKFold", "GroupShuffleSplit", "LeaveOneGroupOut", "LeavePGroupsOut", "StratifiedGroupKFold")


def _splitter(raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 2:
            raise ValueError(f"is {raw}; it needs at least 2 splits")
        _refuse_too_many_splits(raw)
        return raw
    if not isinstance(raw, Mapping) or "splitter" not in raw:
        raise ValueError(f"is {raw!r}; write a number of splits, or {{splitter: StratifiedKFold, n_splits: 5}}")
    settings = dict(raw)
    name = settings.pop("splitter")
    known_splitters = (*SPLITTERS, *GROUP_SPLITTERS)
    if name not in known_splitters:
        raise ValueError(f"names the splitter {name!r}; {did_you_mean(str(name), known_splitters)}")
    from sklearn import model_selection

    kind = getattr(model_selection, name)
    known = [parameter for parameter in inspect.signature(kind).parameters if not parameter.startswith("_")]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"has {setting!r}, which is not a setting of {name}; {did_you_mean(str(setting), known)}")
    try:
        splitter = kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"is refused by {name}: {error}") from error
    numbers = [settings[number] for number in ("n_splits", "n_repeats") if number in settings]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"has {number!r}, which is no number of splits; write an integer of at least 1")
    _refuse_too_many_splits(math.prod(numbers))
    return splitter


def _refuse_too_many_splits(n_splits: int) -> None:
    if n_splits > MAX_SPLITS:
        raise ValueError(f"asks for {n_splits} splits; a search may have {MAX_SPLITS}")


def _scorer_name(raw: Any) -> Any:
    from sklearn.metrics import get_scorer_names

    for name in raw if isinstance(raw, list) else [raw]:
        if name is not None and name not in get_scorer_names():
            raise ValueError(
                f"is {name!r}, which is no scorer of scikit-learn; {did_you_mean(str(name), get_scorer_names())}"
            )
    if isinstance(raw, list) and not raw:
        raise ValueError("is an empty list; leave it out for the estimator's own score")
    return raw


def _tags(raw: dict[Any, Any]) -> dict[str, str]:
    try:
        return check_tags(raw)
    except InvalidSearchError as error:
        raise ValueError(f"is refused: {error}") from error


#: What only halving searches have, as scikit-learn calls it.
HALVING_KEYS = ("n_candidates", "factor", "resource", "min_resources", "max_resources", "aggressive_elimination")
#: Keys that are arguments of `OptunaSearchCV`.
OF_PROPOSALS = ("n_trials", "sampler", "lookahead", "pruner", "monitor", "min_resource")


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
    random_state: StrictInt | None = Field(
        None,
        description="Of the estimator, of the draws of a random search, of proposals, and of the samples of rounds.",
    )
    data: DataFile = Field(description="The data file and its target, as in {file: data.csv, target: column}.")
    strategy: Literal["grid", "random", "optuna", "halving-grid", "halving-random"] = "grid"
    n_iter: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Draws of a random search; default 10.")
    n_trials: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Trials of a search that learns; default 50."
    )
    sampler: StrictStr | dict[str, Any] | None = Field(
        None, description="What proposes them, as in tpe or {name: tpe, n_startup_trials: 20}; default tpe."
    )
    lookahead: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="How many of them may be open beside each other; default 16."
    )
    n_candidates: Annotated[StrictInt, Field(ge=1)] | Literal["exhaust"] | None = Field(
        None, description="Candidates of the first round of a random halving search; default exhaust."
    )
    factor: Annotated[StrictInt | StrictFloat, Field(gt=1, allow_inf_nan=False)] | None = Field(
        None, description="By which a halving search has fewer candidates in each round, which get more; default 3."
    )
    resource: StrictStr | None = Field(
        None,
        description="What candidates get more of: n_samples, or a hyperparameter, as in epochs; default n_samples.",
    )
    min_resources: Annotated[StrictInt, Field(ge=1)] | Literal["exhaust", "smallest"] | None = Field(
        None, description="What they get in the first round; default as in scikit-learn."
    )
    max_resources: Annotated[StrictInt, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="What they get at most; default auto, the number of samples."
    )
    aggressive_elimination: StrictBool | None = Field(
        None, description="Whether the first rounds stay small until the last has fewer candidates than factor."
    )
    pruner: StrictStr | dict[str, Any] | None = Field(
        None, description="What stops poor ones, as in asha or {name: asha, reduction_factor: 3}; default: nothing."
    )
    monitor: StrictStr | None = Field(
        None, description="What they are compared by between epochs, as in val_loss; default score."
    )
    min_resource: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Epochs before they are compared first; default 1."
    )
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
    load_if_exists: StrictBool = Field(
        False, description="Whether a search of that name is gone on with, if it is the same."
    )
    reuse: StrictBool = Field(False, description="Whether trials that were computed before take the results of then.")
    priority: Annotated[StrictInt, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = Field(
        0, description="Its trials start before those of searches with a lower one."
    )
    keep_curves: StrictBool = Field(True, description="Whether the learning curves of Keras models are stored.")
    tags: Annotated[dict[Any, Any], AfterValidator(_tags)] = Field(
        default_factory=dict, description="What the search is found by, as in {dataset: pima}."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for index, space in enumerate(self.space):
            if not space:
                raise _problem(("space", index), "is empty; give at least one hyperparameter and its values")
            for name, values in space.items():
                if self.strategy in ("grid", "halving-grid") and is_distribution(values):
                    raise _problem(
                        ("space", index, name),
                        "is a distribution; a grid needs lists, or `strategy: random` or `optuna`",
                    )
        if self.strategy == "grid" and self.n_iter is not None:
            raise _problem(("n_iter",), "is for `strategy: random`; a grid tries every combination")
        self._check_proposals()
        self._check_halving()
        if type(self.cv).__name__ in GROUP_SPLITTERS and self.data.groups is None:
            raise _problem(("cv",), f"is a {type(self.cv).__name__}, which needs `data.groups`, a reference")
        scorers = [self.scoring] if isinstance(self.scoring, str) else self.scoring or []
        if isinstance(self.refit, str) and self.refit not in scorers:
            raise _problem(("refit",), f"is {self.refit!r}, which `scoring` does not list")
        return self

    def _check_halving(self) -> None:
        if self.strategy not in ("halving-grid", "halving-random"):
            for key in HALVING_KEYS:
                if getattr(self, key) is not None:
                    raise _problem((key,), "is for `strategy: halving-grid` or `halving-random`")
            return
        if self.strategy == "halving-grid" and self.n_candidates is not None:
            raise _problem(("n_candidates",), "is for `strategy: halving-random`; a grid begins with every combination")
        if self.n_iter is not None:
            raise _problem(("n_iter",), "is for `strategy: random`; write `n_candidates`")
        if self.reuse:
            raise _problem(
                ("reuse",),
                f"is not for `strategy: {self.strategy}`: who adds the trials of a round sees none of their values",
            )
        if isinstance(self.scoring, list):
            raise _problem(("scoring",), "is a list; a halving search goes by one score")

    def _check_proposals(self) -> None:
        if self.strategy != "optuna":
            for key in OF_PROPOSALS:
                if getattr(self, key) is not None:
                    raise _problem((key,), "is for `strategy: optuna`")
            return
        if self.n_iter is not None:
            raise _problem(("n_iter",), "is for `strategy: random`; write `n_trials`")
        if self.reuse:
            raise _problem(("reuse",), "is not for `strategy: optuna`: who proposes trials sees none of their values")


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


def _keys_beside(place: Place) -> Mapping[str, Any]:
    """Return the keys that there are where one is wrong or missing."""
    if place[:1] != ("data",) or len(place) == 1:
        return SearchFile.model_fields
    return DataFile.model_fields if len(place) == 2 else Reference.model_fields


def _sentence(error: Any, place: Place) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"is no key of a search file; {did_you_mean(str(place[-1]), _keys_beside(place))}"
    if kind == "missing":
        return f"is missing; it is: {_keys_beside(place)[str(place[-1])].description}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "gridfleet":
        return str(error["msg"])
    return f"is {error['input']!r}; {error['msg'][:1].lower()}{error['msg'][1:]}"
