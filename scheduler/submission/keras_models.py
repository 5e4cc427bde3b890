"""Keras models among hyperparameters: what of them can't be made again elsewhere, said by the name that it has."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gridfleet.storage.errors import NotPicklableError
from gridfleet.worker.trial.keras_objects import can_travel, keras_objects_of_the_script

#: What Keras says of a class or function that it finds nowhere, at the end of the whole model's configuration.
_NOT_FOUND = re.compile(r"Could not locate (class|function) '([^']*)'")
#: Before what a layer's own code raised.
_RAISED = "Exception encountered: "
#: Characters of that which are shown.
MAX_SHOWN = 300


def check_keras_models(estimator: Any, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that Keras can make the models among hyperparameters again, here and on a worker.

    Raises
    ------
    NotPicklableError
        Naming the layer, loss or function, and what to do.
    """
    if "keras" not in sys.modules:
        return
    checked: set[int] = set()
    for name, model in _models(estimator, candidates):
        if id(model) not in checked:
            checked.add(id(model))
            _check_can_be_copied(name, model)
            _check_registered_travel(name, model)


def _models(estimator: Any, candidates: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    from keras import Model

    for params in (estimator.get_params(deep=True), *candidates):
        for name, value in params.items():
            if isinstance(value, Model):
                yield name, value


def _check_can_be_copied(name: str, model: Any) -> None:
    try:
        copy.deepcopy(model)  # by Keras' own saving and loading, as it travels
    except Exception as error:
        not_found = _NOT_FOUND.search(str(error))
        if not_found:
            kind, missing = not_found.groups()
            reason = (
                f"has the {'function' if kind == 'function' else 'layer or other class'} {missing}, which is not "
                f"registered; put @keras.saving.register_keras_serializable() above it, or give the function that "
                f"builds the model"
            )
        else:
            said = str(error).rpartition(_RAISED)[2].split("\n")[0][:MAX_SHOWN]
            reason = (
                f"says {type(error).__name__}: {said}; a layer of your own needs a get_config() with all arguments of "
                "its __init__, or give the function that builds the model"
            )
        raise NotPicklableError(
            f"{name} is a model that Keras can't make again, so it can't travel to the workers: it {reason}"
        ) from error


def _check_registered_travel(name: str, model: Any) -> None:
    from keras.saving import serialize_keras_object

    of_the_script = keras_objects_of_the_script()
    if of_the_script is None:
        return
    used = set(_texts(serialize_keras_object(model)))
    for registered, obj in of_the_script.objects.items():
        if registered in used and not can_travel(obj):
            raise NotPicklableError(
                f"{name} is a model with {obj.__name__} (registered as {registered!r}), which can't be pickled, so "
                "it can't travel to the workers; keep locks, files and the like out of its class and its globals"
            )


def _texts(config: Any) -> Iterator[str]:
    """List all texts in a configuration: Keras tells classes by one, and functions by another."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from _texts(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _texts(value)
