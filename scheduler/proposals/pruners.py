"""The pruners by their names: which there are, what may be set, and whether a search can be pruned by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.pruner import SCORE, SMALLER_IS_BETTER, WILCOXON, Pruner, sign_of
from gridfleet.storage.spaces import Space
from gridfleet.storage.suggestion import did_you_mean

#: What a setting has to be, and what is said of it.
_Rule = tuple[str, Callable[[Any], bool]]


def _whole(least: int, most: int | None = None) -> _Rule:
    said = f"a whole number from {least} " + ("on" if most is None else f"to {most}")
    return said, lambda value: _is_whole(value) and value >= least and (most is None or value <= most)


def _between(least: float, most: float) -> _Rule:
    return f"a number from {least:g} to {most:g}", lambda value: _is_number(value) and least <= value <= most


#: The factor is raised to this power; and epochs of which hyperband makes brackets.
MAX_RATE, MAX_RESOURCE = 30, 10**9

_OF_HALVING = {"reduction_factor": _whole(2), "bootstrap_count": _whole(0)}
_OF_QUANTILES = {
    "n_startup_trials": _whole(0),
    "n_warmup_steps": _whole(0),
    "interval_steps": _whole(1),
    "n_min_trials": _whole(1),
}
#: What may be set of each, as Optuna's class of that pruner calls it; ``min_resource`` of all but ``wilcoxon``.
SETTINGS: dict[str, dict[str, _Rule]] = {
    "asha": {**_OF_HALVING, "min_early_stopping_rate": _whole(0, MAX_RATE)},
    "hyperband": {**_OF_HALVING, "max_resource": _whole(1, MAX_RESOURCE)},
    "median": _OF_QUANTILES,
    "percentile": {**_OF_QUANTILES, "percentile": _between(0, 100)},
    WILCOXON: {"p_threshold": _between(0, 1), "n_startup_steps": _whole(0)},
}
#: What Optuna's class has no default of.
DEFAULTS: dict[str, dict[str, Any]] = {"percentile": {"percentile": 25.0}}
#: Characters of the name of a curve.
MAX_MONITOR = 200


def given_pruner(given: Any, *, min_resource: Any, monitor: Any, estimator: Any, space: Space) -> Pruner | None:
    """Return the pruner that a user names.

    Parameters
    ----------
    given : None, str or mapping
        A name, or a dict with ``name`` and settings; None: nothing is pruned.
    min_resource : int
        Epochs before the first comparison.
    monitor : str
        What is compared.
    estimator : estimator object
        Whose models are trained, of which the pruner may have to know the epochs.
    space : Space
        The hyperparameters that are searched.

    Returns
    -------
    Pruner or None

    Raises
    ------
    InvalidSearchError
        One sentence: an unknown name or setting, a value that is none for it, or a curve of which nobody knows whether
        more of it is better.
    """
    if not _is_whole(min_resource) or min_resource < 1:
        raise InvalidSearchError(f"min_resource={min_resource!r} must be a whole number of epochs, 1 or more")
    _check_monitor(monitor)
    if given is None:
        return None
    settings = {"name": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise InvalidSearchError(
            f"pruner={given!r} must be a name, as 'asha', or a dict, as {{'name': 'asha', 'reduction_factor': 3}}"
        )
    settings = dict(settings)
    name = settings.pop("name")
    if name not in SETTINGS:
        raise InvalidSearchError(f"pruner={name!r} is unknown; {did_you_mean(name, SETTINGS)}")
    own = settings.pop("min_resource", None) if name != WILCOXON else None
    for setting, value in settings.items():
        _check_setting(name, setting, value)
    if own is not None:
        if not _is_whole(own) or own < 1:
            raise InvalidSearchError(f"pruner: min_resource={own!r} must be a whole number of epochs, 1 or more")
        if min_resource not in (1, own):
            raise InvalidSearchError(
                f"min_resource={min_resource} and the pruner's min_resource={own} are one thing; give one of them"
            )
        min_resource = own
    plain: dict[str, Any] = {**DEFAULTS.get(name, {}), **{key: _plain(value) for key, value in settings.items()}}
    if name == "hyperband":
        plain["max_resource"] = _max_resource(plain.get("max_resource"), estimator, space, int(min_resource))
    return Pruner(name, int(min_resource), plain)


def check_pruned(pruner: Pruner, monitor: str, *, estimator: Any, names: Sequence[str], n_splits: int) -> None:
    """Make sure that there is something in a search that a pruner can compare.

    Parameters
    ----------
    pruner : Pruner
        The search's.
    monitor : str
        What is compared between epochs.
    estimator : estimator object
        The search's.
    names : sequence of str
        Of the hyperparameters that are searched.
    n_splits : int
        Of each trial.

    Raises
    ------
    InvalidSearchError
        One sentence with what is missing.
    """
    params = {**estimator.get_params(deep=True), **dict.fromkeys(names)}
    has_epochs = any(name.rpartition("__")[2] == "epochs" for name in params)
    if pruner.name == WILCOXON:
        least = _splits_of_wilcoxon(float(pruner.settings.get("p_threshold", 0.1)))
        if n_splits < least:
            raise InvalidSearchError(
                f"pruner='wilcoxon' compares scores split by split, and can tell nothing before the end of "
                f"{n_splits} {'split' if n_splits == 1 else 'splits'}; give a cv of {least} or more, or take 'asha'"
            )
        return
    if has_epochs:
        _check_validation(monitor, params)
    elif n_splits == 1:
        raise InvalidSearchError(
            f"pruner={pruner.name!r} has nothing to compare before the end of a trial: {type(estimator).__name__} has "
            "no epochs, and cv gives one split; give a cv of two or more"
        )
    elif monitor != SCORE:
        raise InvalidSearchError(
            f"monitor={monitor!r} is a learning curve, which {type(estimator).__name__} has not, for it has no epochs; "
            "give monitor='score'"
        )


def _check_monitor(monitor: Any) -> None:
    if not isinstance(monitor, str) or not 1 <= len(monitor) <= MAX_MONITOR or not monitor.isprintable():
        raise InvalidSearchError(f"monitor={monitor!r} must be 'score', or the name of a learning curve, as 'val_loss'")
    if monitor != SCORE and sign_of(monitor) is None:
        raise InvalidSearchError(
            f"monitor={monitor!r} does not say whether more of it is better, as names with 'loss', 'error' or "
            f"'accuracy' do; {did_you_mean(monitor, [SCORE, 'val_accuracy', 'val_auc', *_losses()])}"
        )


def _losses() -> list[str]:
    return [f"val_{name}" for name in SMALLER_IS_BETTER[:3]]


def _check_setting(name: str, setting: Any, value: Any) -> None:
    known = SETTINGS[name] if name == WILCOXON else {"min_resource": _whole(1), **SETTINGS[name]}
    if setting not in known:
        raise InvalidSearchError(f"pruner: {setting!r} is no setting of {name!r}; {did_you_mean(str(setting), known)}")
    expected, is_right = known[setting]
    if not is_right(value):
        raise InvalidSearchError(f"pruner: {setting}={value!r} must be {expected}")


def _max_resource(given: int | None, estimator: Any, space: Space, min_resource: int) -> int:
    """Return how many epochs hyperband's brackets are made for: those of the estimator, if nobody said so."""
    most = given
    if most is None:
        searched = any(name.rpartition("__")[2] == "epochs" for branch in space.branches for name in branch)
        found = [
            value
            for name, value in estimator.get_params(deep=True).items()
            if name.rpartition("__")[2] == "epochs" and _is_whole(value)
        ]
        if searched or len(found) != 1:
            raise InvalidSearchError(
                "pruner='hyperband' has to know how many epochs a trial has; give "
                "{'name': 'hyperband', 'max_resource': 27} with the most that there are"
            )
        most = int(found[0])
    if most < min_resource:
        raise InvalidSearchError(
            f"pruner: max_resource={most} is less than min_resource={min_resource}, so there is nothing to compare"
        )
    return most


def _check_validation(monitor: str, params: Mapping[str, Any]) -> None:
    """Refuse a curve of a validation that surely does not take place."""
    last = {name.rpartition("__")[2]: value for name, value in params.items()}
    has_none = last.get("validation_split", "unknown") in (0, 0.0) and "validation_data" not in last
    if monitor.startswith("val_") and has_none:
        raise InvalidSearchError(
            f"monitor={monitor!r} is a curve of the validation, and validation_split is 0; set it, as to 0.2, or give "
            "monitor='score'"
        )


def _splits_of_wilcoxon(p_threshold: float) -> int:
    """Return with how many splits one can be pruned before the last: n pairs give no p below 2 to the power of -n."""
    n_pairs = 2
    while 0.5**n_pairs >= p_threshold and n_pairs < 50:
        n_pairs += 1
    return n_pairs + 1


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return int(value) if _is_whole(value) else float(value)
