"""The best model of a search that was fitted on the fleet: checked, and only then loaded."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.storage import models
from gridfleet.storage.errors import BestModelError, MissingCodeError, PayloadSignatureError, first_line
from gridfleet.storage.payloads.format import load, pickle_of
from gridfleet.storage.payloads.packages import modules_named
from gridfleet.storage.plain import plain
from gridfleet.storage.refits import Refit
from gridfleet.storage.schema import Search
from gridfleet.storage.searches import SIGNED_COLUMNS, check_signature
from gridfleet.storage.signer import Verifier
from gridfleet.storage.versions import installed_versions
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
from gridfleet.worker.trial.keras_objects import registered_for_a_trial
from gridfleet.worker.trial.keras_state import any_model_loads
from gridfleet.worker.trial.sources import ScriptModules

#: What the releases are called that a model depends on, by their columns.
RELEASES = {
    "keras_version": "Keras",
    "tensorflow_version": "TensorFlow",
    "scikit_learn_version": "scikit-learn",
    "python_version": "Python",
}
#: What a pickle names that has a Keras model in it.
KERAS = ("keras", "scikeras")
_SIGNED = [getattr(Search, name) for name in (*SIGNED_COLUMNS, "signature", "refit_of", "model_key")]


@dataclass(frozen=True, slots=True)
class BestModel:
    """A search's best model, loaded.

    Parameters
    ----------
    estimator : estimator object
        Fitted on all data.
    number : int
        The trial whose hyperparameters it has.
    refit_time : float or None
        Seconds of the fit.
    versions : dict of str to str or None
        What it was fitted with, by the columns of ``best_models``.
    keras_objects : dict of str to object
        What its script registered with Keras, by its names.
    """

    estimator: Any
    number: int
    refit_time: float | None
    versions: dict[str, str | None]
    keras_objects: Mapping[str, Any]


@contextmanager
def opened(fleet: Fleet, summary: reader.SearchSummary, refit: Refit) -> Iterator[BestModel]:
    """Have the model of a refit that is stored in a block, in which the modules of its script can be imported.

    It is a pickle, so loading it runs what is in it. It is loaded only if the search and its refit are what a submitter
    signed, and the model what a worker signed for them.

    Parameters
    ----------
    fleet : Fleet
        With the public or the secret key.
    summary : SearchSummary
        The search.
    refit : Refit
        Its refit.

    Raises
    ------
    PayloadSignatureError
        If any of the signatures does not hold. Nothing is loaded then.
    BestModelError
        If it can't be loaded with the releases that are installed here.
    """
    row, content = _checked(fleet, summary.id, refit)
    versions: dict[str, str | None] = {name: getattr(row, name) for name in installed_versions()}
    with ExitStack() as stack:
        try:
            objects, estimator = _load(content)
        except MissingCodeError as error:
            # of a script whose modules this process does not find, or finds changed
            if summary.sources_digest is None:
                raise _not_loaded(summary.name, versions, error) from error
            modules, get = ScriptModules(fleet.payloads, fleet.settings), fleet.payloads.get
            stack.enter_context(modules.of_search(summary.sources_digest, get))
            try:
                objects, estimator = _load(content)
            except MissingCodeError as again:
                raise _not_loaded(summary.name, versions, again) from again
        _warn_of_keras(summary.name, versions)
        yield BestModel(estimator, row.number, refit.refit_time, versions, objects)


def load_best_model(fleet: Fleet, summary: reader.SearchSummary, refit: Refit) -> BestModel:
    """Load the model of a refit that is stored, as `opened` has it."""
    with opened(fleet, summary, refit) as model:
        return model


def _checked(fleet: Fleet, search_id: int, refit: Refit) -> tuple[Any, memoryview]:
    """Return the model's row and content; the search, its refit and the model are what was signed."""
    verifier = fleet.settings.verifier()
    with fleet.database.read() as connection:
        ids = (search_id, refit.search_id)
        rows = {
            row.id: row._mapping for row in connection.execute(select(Search.id, *_SIGNED).where(Search.id.in_(ids)))
        }
    for each in ids:
        check_signature(verifier, each, dict(rows[each]))
    of_refit = rows[refit.search_id]
    if of_refit["refit_of"] != search_id:
        raise PayloadSignatureError(f"search {refit.search_id} is not the refit of search {search_id}")
    return models.read_model(fleet.database, Verifier(of_refit["model_key"]), refit.search_id, refit.trial_id)


def _load(content: memoryview) -> tuple[Mapping[str, Any], Any]:
    # first, so that any of its models loads
    if not modules_named(pickle_of(content)).isdisjoint(KERAS) and not _can_import_keras():
        raise MissingCodeError("it needs Keras, which is not installed here")
    # all that it needs of the script's is registered by what is loaded first
    with registered_for_a_trial(), any_model_loads():
        _, (registered, estimator) = load(content)
    objects = {} if registered is None else registered.objects
    if objects:
        _keep_registered(objects)
    return objects, estimator


def _keep_registered(objects: Mapping[str, Any]) -> None:
    """Register what this process has nothing else for: to copy or to save the model needs it too."""
    from keras.saving import get_custom_objects
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

    for name, obj in objects.items():
        if name not in get_custom_objects():
            get_custom_objects()[name] = obj
            if ">" in name:
                GLOBAL_CUSTOM_NAMES[obj] = name


def _can_import_keras() -> bool:
    quiet_tensorflow()
    try:
        importlib.import_module("keras")
    except ImportError:
        return False
    return True


def _not_loaded(name: str, versions: Mapping[str, str | None], error: MissingCodeError) -> BestModelError:
    here = installed_versions()
    differing = [
        f"{release} {versions[column]}, here {here[column] or 'none'}"
        for column, release in RELEASES.items()
        if versions[column] is not None and versions[column] != here[column]
    ]
    fitted = f"; it was fitted with {', with '.join(differing)}" if differing else ""
    is_said = error.__cause__ is None or isinstance(error.__cause__, ImportError)
    cause = str(error) if is_said or error.__cause__ is None else first_line(error.__cause__)
    return BestModelError(
        f"the best model of search {name!r} can't be loaded here ({plain(cause)}){fitted}. Install the releases that "
        "it was fitted with, or fit best_params_ anew"
    )


def _warn_of_keras(name: str, versions: Mapping[str, str | None]) -> None:
    """Warn of another Keras, as scikit-learn does of another scikit-learn."""
    there, here = versions["keras_version"], installed_versions()["keras_version"]
    if "keras" in sys.modules and there is not None and there != here:
        warnings.warn(
            f"the best model of search {name!r} was fitted with Keras {there} and is loaded with Keras {here}, where "
            "it may predict something else",
            UserWarning,
            stacklevel=2,
        )
