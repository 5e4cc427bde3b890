"""By which keys the results of a search's trials are found again: equal keys are of equal computations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from gridfleet.scheduler.submission.fingerprint import Fingerprint, NotSeenError, is_own_code
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation

#: Columns of a search that decide what its trials compute, beside what the evaluation consists of.
DECIDING = (
    "x_digest",
    "y_digest",
    "splits_digest",
    "refit_metric",
    "fit_mode",
    "python_version",
    "tensorflow_version",
    "keras_version",
    "scikit_learn_version",
    "gridfleet_version",
)
#: Packages that decide it too, and that the columns do not name.
PACKAGES = ("numpy", "scipy", "scikeras")
#: Arguments of ``_fit_and_score`` that decide what is printed and no more.
SAID = ("verbose",)
SEED = "random_state"


@dataclass(frozen=True)
class ReuseKeys:
    """The key of each trial, by its number, and why some have none."""

    keys: Sequence[str | None]
    no_reuse: str | None


def reuse_keys(
    evaluation: Evaluation, candidates: Candidates, columns: Mapping[str, Any], archive: bytes | None
) -> ReuseKeys:
    """Return the keys of all trials of a search.

    Parameters
    ----------
    evaluation : Evaluation
        What the trials share.
    candidates : Candidates
        Their combinations.
    columns : mapping of str to object
        What the table ``searches`` says of the search.
    archive : bytes or None
        The source of the script's own modules; None: it has none.
    """
    none = [None] * len(candidates.params)
    try:
        seeds = _Seeds(evaluation.estimator)
        shared = _shared(evaluation, columns, archive)
    except NotSeenError as error:
        return ReuseKeys(none, str(error))
    except Exception as error:  # noqa: BLE001 - of a user's objects, which no search that asks for no reuse may suffer from
        return ReuseKeys(none, f"the estimator can't be seen into ({type(error).__name__}: {error})")
    keys: list[str | None] = []
    no_reuse: str | None = None
    for number, params in enumerate(candidates.params):
        try:
            seeds.check(params)
            keys.append(shared.copy().add(dict(params), f"trial {number}").digest())
        except Exception as error:  # noqa: BLE001 - as above
            keys.append(None)
            no_reuse = no_reuse or (str(error) if isinstance(error, NotSeenError) else f"trial {number}: {error}")
    return ReuseKeys(keys, no_reuse)


def _shared(evaluation: Evaluation, columns: Mapping[str, Any], archive: bytes | None) -> Fingerprint:
    filters = evaluation.warning_filters.filters if evaluation.warning_filters else []
    shared = Fingerprint().add(evaluation.estimator, "estimator")
    for name, argument in sorted(evaluation.arguments.items()):
        if name not in SAID:
            shared.add(name, name).add(argument, name)
    shared.add(dict(evaluation.config), "scikit-learn's configuration")
    shared.add(dict(evaluation.keras_config), "Keras' configuration")
    objects = evaluation.keras_objects.objects if evaluation.keras_objects else {}
    shared.add([(name, objects[name]) for name in sorted(objects)], "what is registered with Keras")
    # warnings that are raised decide a result, others are only noted
    shared.add([each for each in filters if each[0] == "error"], "warning filters")
    shared.add([str(columns[name]) for name in DECIDING], "what decides a result")
    shared.add([_version(name) for name in PACKAGES], "packages")
    return shared.add(None if archive is None else hashlib.sha256(archive).digest(), "modules")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class _Seeds:
    """Whether all that a trial draws comes of seeds."""

    def __init__(self, estimator: Any) -> None:
        params = estimator.get_params(deep=True)
        self._name = type(estimator).__name__
        self._seeds = _seeds_in(params)
        parts = [estimator, *(value for value in params.values() if hasattr(value, "get_params"))]
        self._own = next((type(part).__name__ for part in parts if is_own_code(type(part))), None)

    def check(self, params: Mapping[str, Any]) -> None:
        """Make sure that a combination leaves nothing without a seed.

        Raises
        ------
        NotSeenError
            With what has none.
        """
        seeds = {}
        for name, value in self._seeds.items():
            if name in params:
                value = params[name]
            elif any(name.startswith(f"{replaced}__") for replaced in params):
                continue  # with what it is of
            seeds[name] = value
        for name, value in params.items():
            if hasattr(value, "get_params") and not isinstance(value, type):
                seeds |= {f"{name}__{inner}": seed for inner, seed in _seeds_in(value.get_params(deep=True)).items()}
        unseeded = next((name for name, seed in seeds.items() if seed is None), None)
        if unseeded is not None:
            raise NotSeenError(f"{self._name} has {unseeded}=None, and draws other numbers each time; give it a seed")
        if not seeds and self._own is not None:
            raise NotSeenError(
                f"{self._own} is the script's own and has no {SEED}, so that nobody knows whether it draws numbers"
            )


def _seeds_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an estimator, and of all that it is made of, that are seeds."""
    seeds = {name: value for name, value in params.items() if name.rpartition("__")[2] == SEED}
    for name, value in params.items():  # a splitter, say
        if not hasattr(value, "get_params") and not isinstance(value, type) and getattr(value, SEED, 0) is None:
            seeds[f"{name}__{SEED}"] = None
    return seeds
